import pytest
import torch

pytest.importorskip("transformers", minversion="5.5")

from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    MambaConfig,
)

from groot_graph.models import GrootLForCausalLM  # noqa: E402
from groot_graph.models.grootl import GrootLConfig, GrootLModel  # noqa: E402
from tests.equipment.grootl import grootl, mamba, tokens  # noqa: E402


@pytest.fixture(autouse=True)
def no_gradient():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("settings", [{}, {"tree_mode": "causal", "tree_window": 4}], ids=str)
def test_a_mamba_folder_with_its_own_configuration(tmp_path, settings):
    mamba().save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is MambaConfig
    model, info = GrootLForCausalLM.from_pretrained(
        tmp_path, config=config, output_loading_info=True, **settings
    )
    assert not any(info.values())
    assert type(model.config) is GrootLConfig and type(config) is MambaConfig
    input_ids = tokens(2, 9)
    assert model(input_ids).logits.equal(grootl(**settings)(input_ids).logits)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert again(input_ids).logits.equal(model(input_ids).logits)


def test_the_blocks_alone_with_the_configuration_of_a_mamba(tmp_path):
    mamba().save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    model = GrootLModel.from_pretrained(tmp_path, config=config, tree_scale=0.1)
    assert model.config.tree_scale == 0.1


def test_settings_of_the_tree_beside_a_configuration_of_grootl(tmp_path):
    grootl(tree_window=2).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    model = GrootLForCausalLM.from_pretrained(tmp_path, config=config, tree_mode="causal")
    assert (model.config.tree_mode, model.config.tree_window) == ("causal", 2)
    assert config.tree_mode == "context"
    with pytest.raises(ValueError, match="'tree_window' must be at least 1, got 0"):
        GrootLForCausalLM.from_pretrained(tmp_path, config=config, tree_window=0)


@pytest.mark.parametrize("network", [GrootLForCausalLM, GrootLModel])
def test_a_configuration_without_a_tree_makes_no_network(network):
    with pytest.raises(TypeError, match="'config' must be a GrootLConfig, got MambaConfig; .*of_m"):
        network(MambaConfig(hidden_size=16, num_hidden_layers=1))


def test_a_configuration_of_another_model(tmp_path):
    mamba().save_pretrained(tmp_path)
    message = "'config' must be a GrootLConfig or a MambaConfig, got BertConfig"
    with pytest.raises(TypeError, match=message):
        GrootLConfig.of_mamba(BertConfig())
    with pytest.raises(TypeError, match=message):
        GrootLForCausalLM.from_pretrained(tmp_path, config=BertConfig())
