"""What reaches the weights of a mixer: adapters, offloading, hooks."""

import pytest
import torch

pytest.importorskip("transformers", minversion="5.5")

from groot_graph.analysis import scan_of_layer  # noqa: E402
from groot_graph.models import GrootLForCausalLM  # noqa: E402
from groot_graph.models.grootl.trees import TextLayout  # noqa: E402
from tests.equipment.grootl import MODES, close, grootl, tokens  # noqa: E402

MODULES = ["in_proj", "conv1d", "x_proj", "dt_proj", "out_proj", "embeddings", "lm_head"]
PARAMETERS = ["mixer.A_log", "conv1d.weight", "dt_proj.weight", "x_proj.weight"]


@pytest.fixture(autouse=True)
def no_gradient(request):
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


@pytest.fixture(params=MODES)
def model(request):
    return grootl(tree_mode=request.param)


def adapted(model, rank=2, **targets):
    """With adapters that change something from the start."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        **{"r": rank, "target_modules": [], "task_type": "CAUSAL_LM", **targets},
        init_lora_weights=False,
    )
    return peft.get_peft_model(model, config)


def adapters_of(model) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("target", MODULES)
def test_gradient_of_a_lora_on_any_module(model, target):
    # A grouped convolution wants as many ranks as it has groups.
    rank = 64 if target == "conv1d" else 2
    input_ids, plain = tokens(2, 9), None
    with torch.no_grad():
        plain = model(input_ids, context_lengths=4).logits
    lora = adapted(model, rank, target_modules=[target])
    output = lora(input_ids=input_ids, labels=input_ids, context_lengths=4)
    output.loss.backward()
    found = adapters_of(lora)
    assert found and all(value.grad.abs().sum() > 0 for value in found.values())
    assert not output.logits.equal(plain)
    # peft merges neither a grouped convolution nor one of two tied weights.
    if target in ("conv1d", "embeddings", "lm_head"):
        return
    whole = lora.merge_and_unload()
    assert isinstance(whole, GrootLForCausalLM)
    close(whole(input_ids, context_lengths=4).logits, output.logits)


@pytest.mark.parametrize("target", PARAMETERS)
def test_gradient_of_a_lora_on_any_parameter(model, target):
    input_ids = tokens(2, 9)
    lora = adapted(model, target_parameters=[target])
    output = lora(input_ids=input_ids, labels=input_ids, context_lengths=4)
    output.loss.backward()
    found = adapters_of(lora)
    assert found and all(value.grad.abs().sum() > 0 for value in found.values())
    text = lora.generate(input_ids=input_ids, max_new_tokens=4, do_sample=False)
    whole = lora.merge_and_unload()
    close(whole(input_ids, context_lengths=4).logits, output.logits)
    assert whole.generate(input_ids, max_new_tokens=4, do_sample=False).equal(text)


@pytest.mark.parametrize("target", ["mixer.A_log", "x_proj.weight"])
def test_scan_of_a_layer_under_an_adapter(model, target):
    input_ids = tokens(2, 9)
    plain = scan_of_layer(model, input_ids, layer=1)
    lora = adapted(model, target_parameters=[target])
    forest, transition = scan_of_layer(lora, input_ids=input_ids, layer=1)
    assert not transition.equal(plain[1])
    expected = scan_of_layer(lora.merge_and_unload(), input_ids, layer=1)
    assert forest.parent.equal(expected[0].parent)
    close(transition, expected[1])


@pytest.mark.parametrize("where", ["disk", "cpu"])
def test_offloaded_weights_are_there_in_time(tmp_path, model, where):
    accelerate = pytest.importorskip("accelerate")
    input_ids = tokens(2, 9)

    def all_of_it() -> tuple[torch.Tensor, ...]:
        logits = model(input_ids, context_lengths=[9, 4], use_cache=False).logits
        text = model.generate(input_ids, max_new_tokens=4, do_sample=False)
        forest, transition = scan_of_layer(model, input_ids, layer=-1)
        return logits, text, forest.parent, transition

    expected = all_of_it()
    device = torch.device("cpu")
    if where == "disk":
        accelerate.disk_offload(model, tmp_path, execution_device=device)
    else:
        accelerate.cpu_offload(model, execution_device=device)
    assert model.backbone.layers[0].mixer.A_log.is_meta
    for found, value in zip(all_of_it(), expected, strict=True):
        assert found.equal(value)


@pytest.mark.parametrize("way", [{}, {"num_beams": 2}, {"use_cache": False}], ids=str)
def test_hooks_that_move_what_a_block_is_given(model, way):
    hooks = pytest.importorskip("accelerate.hooks")
    input_ids = tokens(2, 9)
    expected = model.generate(input_ids, max_new_tokens=4, do_sample=False, **way)
    for block in model.backbone.layers:
        for module in (block, block.mixer, block.mixer.tree, block.mixer.conv1d):
            hook = hooks.AlignDevicesHook("cpu", io_same_device=True)
            hooks.add_hook_to_module(module, hook)
    assert model.generate(input_ids, max_new_tokens=4, do_sample=False, **way).equal(expected)


def test_a_layout_follows_to_the_device_of_a_layer():
    first = torch.zeros(2, 1, dtype=torch.long)
    is_token = torch.ones(2, 5, dtype=torch.bool)
    layout = TextLayout(first, first + 5, first + 3, 5, 3, 2, is_token)
    elsewhere = layout.on(torch.device("meta"))
    assert layout.on(torch.device("cpu")) is layout
    # Once, as all layers there share its edges.
    assert layout.on(torch.device("meta")) is elsewhere
    tensors = elsewhere.start, elsewhere.stop, elsewhere.context_stop, elsewhere.is_token
    assert all(tensor.is_meta for tensor in tensors)
    assert (elsewhere.num_nodes, elsewhere.window) == (layout.num_nodes, layout.window)


def test_pruned_weights_stay_pruned_with_gradient(model):
    from torch.nn.utils import prune

    names = ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj")
    input_ids, mixer = tokens(1, 9), model.backbone.layers[0].mixer
    for name in names:
        prune.l1_unstructured(getattr(mixer, name), "weight", amount=0.5)
    output = model(input_ids, labels=input_ids, context_lengths=9)
    output.loss.backward()
    for name in names:
        module = getattr(mixer, name)
        assert module.weight_orig.grad[module.weight_mask == 0].eq(0).all()
        prune.remove(module, "weight")
    close(model(input_ids).logits, output.logits)
