import json

import pytest
import torch

pytest.importorskip("transformers", minversion="5.5")
peft = pytest.importorskip("peft")

from groot_graph.models import GrootLForCausalLM  # noqa: E402
from groot_graph.models.grootl import GrootLModel, adapters  # noqa: E402
from tests.equipment.grootl import mamba, tokens  # noqa: E402

TREE = {"tree_mode": "causal", "tree_window": 5, "tree_scale": 0.7}


@pytest.fixture
def base(tmp_path):
    mamba().save_pretrained(tmp_path / "mamba")
    return tmp_path / "mamba"


def adapted(model, **kwargs):
    settings = {"r": 2, "target_modules": ["in_proj"], "init_lora_weights": False}
    return peft.get_peft_model(model, peft.LoraConfig(**settings, **kwargs)).eval()


def same_logits(found, expected) -> bool:
    input_ids = tokens(2, 9)
    with torch.no_grad():
        return found(input_ids=input_ids).logits.equal(expected(input_ids=input_ids).logits)


def test_an_auto_class_reads_the_tree_of_an_adapter(tmp_path, base):
    model = adapted(GrootLForCausalLM.from_pretrained(base, **TREE), task_type="CAUSAL_LM")
    model.save_pretrained(tmp_path / "adapter")
    again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert isinstance(again.get_base_model(), GrootLForCausalLM)
    assert {name: getattr(again.config, name) for name in TREE} == TREE
    assert same_logits(again, model)


def test_settings_of_the_caller_go_before_those_of_the_adapter(tmp_path, base):
    model = adapted(GrootLForCausalLM.from_pretrained(base, **TREE), task_type="CAUSAL_LM")
    model.save_pretrained(tmp_path / "adapter")
    again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", tree_window=2)
    assert (again.config.tree_mode, again.config.tree_window) == ("causal", 2)


def test_every_adapter_of_a_model_tells_of_its_tree(tmp_path, base):
    model = adapted(GrootLForCausalLM.from_pretrained(base, **TREE), task_type="CAUSAL_LM")
    config = peft.LoraConfig(r=3, target_modules=["x_proj"], task_type="CAUSAL_LM")
    model.add_adapter("second", config)
    model.save_pretrained(tmp_path / "adapter")
    folder = tmp_path / "adapter" / "second"
    again = peft.AutoPeftModelForCausalLM.from_pretrained(folder)
    assert again.config.tree_mode == "causal"


def test_an_adapter_without_a_task(tmp_path, base):
    model = adapted(GrootLForCausalLM.from_pretrained(base, **TREE))
    model.save_pretrained(tmp_path / "adapter")
    again = peft.AutoPeftModel.from_pretrained(
        tmp_path / "adapter", import_allowlist=["groot_graph"]
    ).eval()
    assert same_logits(again, model)


def test_adapters_of_a_mamba_are_left_as_they_were(tmp_path, base):
    from transformers import AutoModelForCausalLM, MambaForCausalLM

    model = adapted(MambaForCausalLM.from_pretrained(base), task_type="CAUSAL_LM")
    model.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["auto_mapping"] is None
    again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert type(again.get_base_model()) is MambaForCausalLM
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")) is MambaForCausalLM


def test_grootl_reads_an_adapter_folder_itself(tmp_path, base):
    model = adapted(GrootLForCausalLM.from_pretrained(base, **TREE), task_type="CAUSAL_LM")
    model.save_pretrained(tmp_path / "adapter")
    again = GrootLForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert {name: getattr(again.config, name) for name in TREE} == TREE
    assert same_logits(again, model)


def test_the_auto_class_of_transformers_says_how_to_read_it(tmp_path, base):
    from transformers import AutoModelForCausalLM

    model = adapted(GrootLForCausalLM.from_pretrained(base, **TREE), task_type="CAUSAL_LM")
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="got one of a GrootLForCausalLM .*'causal'.* reads it"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    AutoModelForCausalLM.from_pretrained(base)


@pytest.fixture
def adapter(tmp_path, base):
    model = adapted(GrootLForCausalLM.from_pretrained(base, **TREE), task_type="CAUSAL_LM")
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_peft_warns_of_an_adapter_learned_with_another_tree(base, adapter, monkeypatch):
    warned = []
    monkeypatch.setattr(adapters.logger, "warning", warned.append)
    same = GrootLForCausalLM.from_pretrained(base, **TREE)
    peft.PeftModel.from_pretrained(same, adapter)
    assert not warned
    other = GrootLForCausalLM.from_pretrained(base, **{**TREE, "tree_window": 2})
    peft.PeftModel.from_pretrained(other, adapter)
    (message,) = warned
    assert "learned with {'tree_window': 5}; the model here has {'tree_window': 2}" in message


def test_peft_does_not_put_an_adapter_of_grootl_on_a_mamba(base, adapter):
    from transformers import MambaForCausalLM

    plain = MambaForCausalLM.from_pretrained(base)
    with pytest.raises(
        ValueError, match="'model_id' must be an adapter of a MambaForCausalLM, got one of"
    ):
        peft.PeftModel.from_pretrained(plain, adapter)
    of_mamba = adapted(MambaForCausalLM.from_pretrained(base), task_type="CAUSAL_LM")
    of_mamba.save_pretrained(adapter.parent / "mamba_adapter")
    peft.PeftModel.from_pretrained(plain, adapter.parent / "mamba_adapter")


def test_an_adapter_that_transformers_saves_tells_of_its_tree(tmp_path, base):
    from transformers import AutoModelForCausalLM

    model = GrootLForCausalLM.from_pretrained(base, **TREE).eval()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["in_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    again = GrootLForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert {name: getattr(again.config, name) for name in TREE} == TREE
    assert same_logits(again, model)
    with pytest.raises(ValueError, match="'peft_model_id' must be an adapter of a Mamba"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")


def test_an_adapter_of_the_blocks_alone(tmp_path, base):
    model = adapted(GrootLModel.from_pretrained(base, **TREE), task_type="FEATURE_EXTRACTION")
    model.save_pretrained(tmp_path / "adapter")
    again = peft.AutoPeftModelForFeatureExtraction.from_pretrained(tmp_path / "adapter").eval()
    assert type(again.get_base_model()) is GrootLModel
    input_ids = tokens(2, 9)
    with torch.no_grad():
        found, expected = (net(input_ids=input_ids) for net in (again, model))
    assert found.last_hidden_state.equal(expected.last_hidden_state)


def test_the_blocks_alone_are_known_to_the_auto_class(tmp_path, base):
    from transformers import AutoModel

    GrootLForCausalLM.from_pretrained(base, **TREE).save_pretrained(tmp_path / "grootl")
    model = AutoModel.from_pretrained(tmp_path / "grootl")
    assert type(model) is GrootLModel and model.config.tree_mode == "causal"
