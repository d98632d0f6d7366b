import copy

import pytest
import torch
import torch_geometric
from torch.utils.flop_counter import FlopCounterMode

from groot_graph.errors import NotANumberError
from groot_graph.models import (
    GrootV,
    convert_grootv_checkpoint,
    grootv_base,
    grootv_micro,
    grootv_small,
    grootv_tiny,
)
from groot_graph.models.grootv.blocks import GrootVBlock, Stem
from groot_graph.nn import TreeSSM
from tests.equipment.published import published_outputs, published_weights

SIZES = {  # Name: network, parameters, published GFLOPs at 224 x 224.
    "tiny": (grootv_tiny, 29_958_600, 4.8),
    "small": (grootv_small, 51_331_624, 8.5),
    "base": (grootv_base, 90_597_096, 15.1),
}


def small(**kwargs) -> GrootV:
    return GrootV(channels=8, depths=(1, 1, 2, 1), num_classes=5, **kwargs)


@pytest.fixture
def images():
    return torch.randn(2, 3, 40, 33)


@pytest.mark.parametrize(
    "network, num_parameters, giga_flops",
    [
        pytest.param(*size, id=name, marks=() if name == "tiny" else pytest.mark.full)
        for name, size in SIZES.items()
    ],
)
def test_parameters_and_flops_of_the_paper(network, num_parameters, giga_flops):
    model = network().eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 224, 224))
    # The counter takes a multiplication with an addition for two, papers for one.
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga_flops, rel=0.03)
    assert torch.ops.groot_graph.tree_scan in counter.get_flop_counts()["Global"]


def test_the_micro_network():
    model = grootv_micro(10, in_channels=1, initializer_range=0.1)
    assert (model.channels, model.depths) == ([24, 48, 96, 192], (1, 1, 2, 1))
    assert model.initializer_range == 0.1
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    "height, width, sides",
    [
        (32, 32, [(8, 8), (4, 4), (2, 2), (1, 1)]),
        (64, 96, [(16, 24), (8, 12), (4, 6), (2, 3)]),
        (33, 47, [(9, 12), (5, 6), (3, 3), (2, 2)]),
        (65, 32, [(17, 8), (9, 4), (5, 2), (3, 1)]),
    ],
    ids=str,
)
def test_maps_of_any_image_size(height, width, sides):
    model = small().eval()
    maps = model.forward_features(torch.randn(2, 3, height, width))
    channels = [8, 16, 32, 64]
    assert [tuple(features.shape) for features in maps] == [
        (2, width, *side) for width, side in zip(channels, sides, strict=True)
    ]
    assert model(torch.randn(1, 3, height, width)).shape == (1, 5)


def test_an_image_does_not_depend_on_its_batch(images):
    model = small().eval()
    torch.testing.assert_close(model(images)[1:], model(images[1:]))


def test_classes_and_channels():
    assert small(in_channels=1)(torch.randn(2, 1, 32, 32)).shape == (2, 5)
    model = GrootV(channels=8, depths=(1, 1, 1, 1), num_classes=0)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 96)
    model.reset_classifier(7)
    assert model.num_classes == 7
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_every_parameter_gets_a_finite_gradient(images):
    model = small().train()
    model(images).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_initial_weights():
    model = small()
    for ssm in (module for module in model.modules() if isinstance(module, TreeSSM)):
        delta = torch.nn.functional.softplus(ssm.dt_proj.bias.detach())
        assert delta.min() >= 0.0009 and delta.max() <= 0.1001
        assert ssm.A_log.eq(0).all() and ssm.D.eq(1).all()
    block = model.stages[2].blocks[0]
    weight = block.mlp.fc1.weight.detach()
    assert weight.std() == pytest.approx(0.0177, rel=0.1)  # 0.02, cut off
    assert weight.abs().max() <= 0.04
    assert block.mlp.fc1.bias.eq(0).all()


def test_the_deviation_of_initial_projections():
    model, published = small(initializer_range=0.1), small()
    for network, deviation in ((model, 0.1), (published, 0.02)):
        for weight in (network.stages[2].blocks[0].mlp.fc1.weight, network.head.weight):
            weight = weight.detach()
            assert weight.std() == pytest.approx(0.88 * deviation, rel=0.1)
            assert weight.abs().max() <= 2 * deviation
    model.reset_classifier(7)
    assert 0.04 < model.head.weight.abs().max() <= 0.2


def test_parameters_that_do_not_decay():
    model = copy.deepcopy(small())
    decaying = {
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and name not in model.no_weight_decay()
    }
    skipped = {name for name, _ in model.named_parameters()} - decaying
    assert len(model.no_weight_decay()) == 2 * 5
    assert all(name.endswith((".A_log", ".D")) for name in model.no_weight_decay())
    assert not any(name.endswith((".A_log", ".D", ".bias")) or "norm" in name for name in decaying)
    assert all(name.endswith((".A_log", ".D", ".bias")) or "norm" in name for name in skipped)


def test_the_same_seed_gives_the_same_weights_also_after_a_reset():
    torch.manual_seed(1)
    model = small()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(2)
    model.reset_parameters()
    again = model.state_dict()
    assert not torch.equal(weights["head.weight"], again["head.weight"])
    for value in model.parameters():
        torch.nn.init.constant_(value, 7.0)
    torch.manual_seed(2)
    model.reset_parameters()
    assert all(again[name].equal(value) for name, value in model.state_dict().items())
    torch.manual_seed(1)
    assert all(weights[name].equal(value) for name, value in small().state_dict().items())


@pytest.mark.parametrize("tree", ["min", "random"])
def test_gradient_checkpointing_changes_nothing(images, tree):
    grads = []
    for enable in (False, True):
        torch.manual_seed(0)
        model = small(drop_path_rate=0.5, tree=tree).train()
        model.set_grad_checkpointing(enable)
        model(images).square().sum().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    assert all(a.equal(b) for a, b in zip(*grads, strict=True))


def test_gradient_checkpointing_holds_less(images):
    def held(enable):
        sizes = []
        model = small().train()
        model.set_grad_checkpointing(enable)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: (sizes.append(tensor.numel()), tensor)[1], lambda tensor: tensor
        ):
            model(images)
        return sum(sizes)

    assert held(True) < held(False) / 2


def test_stochastic_depth_grows_with_the_depth_and_keeps_the_mean():
    model = small(drop_path_rate=0.4)
    rates = [block.drop_path_rate for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    block = GrootVBlock(4, drop_path_rate=0.25).train()
    dropped = block.drop_path(torch.ones(4000, 1, 1, 2))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert dropped.mean() == pytest.approx(1, abs=0.05)
    assert dropped[..., 0].equal(dropped[..., 1])  # an image is dropped as a whole
    assert block.eval().drop_path(torch.ones(5)).equal(torch.ones(5))


def test_bfloat16_autocast_scans_in_float32(images):
    model = small().eval()
    seen = []
    model.stages[0].blocks[0].mixer.out_norm.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].dtype)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images)
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
    assert seen == [torch.bfloat16]
    difference = (logits.float() - model(images)).abs().max()
    assert difference < 0.05


def test_double_precision(images):
    logits = small().double()(images.double())
    assert logits.dtype == torch.float64


@pytest.mark.parametrize(
    "option",
    [{"metric": "manhattan"}, {"tree": "max"}, {"direction": "up"}, {"edge_steps": True}],
    ids=str,
)
def test_options_of_the_tree_change_the_output(images, option):
    torch.manual_seed(0)
    logits = small().eval()(images)
    torch.manual_seed(0)
    assert not torch.allclose(small(**option).eval()(images), logits)


def test_trees_learn_with_edge_steps(images):
    model = small(edge_steps=True)
    model(images).square().sum().backward()
    for stage in model.stages:
        for block in stage.blocks:
            assert block.mixer.topology.metric == "learned"
            assert block.mixer.topology.embedding.weight.grad.abs().sum() > 0
            assert block.mixer.ssm.sigma.grad.abs().sum() > 0
    # As PyTorch draws, not as the network's other projections.
    assert model.stages[0].blocks[0].mixer.topology.embedding.weight.abs().max() > 0.1
    assert len(model.no_weight_decay()) == 3 * 5


@pytest.mark.parametrize("edge_steps", [False, True])
def test_every_module_that_is_called_returns_tensors(images, edge_steps):
    """What tools that look at every layer count on: torchinfo, profilers, Captum."""
    model, others = small(edge_steps=edge_steps), []

    def look(module, inputs, output):
        values = output if isinstance(output, tuple) else (output,)
        if not all(isinstance(value, torch.Tensor) for value in values):
            others.append(module)

    for module in model.modules():
        module.register_forward_hook(look)
    model(images)
    assert others == []


@pytest.mark.parametrize("edge_steps", [False, True])
def test_summary_of_pyg(images, edge_steps):
    model = small(edge_steps=edge_steps)
    assert "GrootVStage" in torch_geometric.nn.summary(model, images)


def test_summary_of_torchinfo(images):
    torchinfo = pytest.importorskip("torchinfo")
    model = small()
    found = torchinfo.summary(model, input_data=images, verbose=0)
    assert found.total_params == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("edge_steps", [False, True])
def test_every_parameter_is_read_through_its_module(images, edge_steps):
    """As offloading, pruning and LoRA do: each brings the weights in a hook of their module."""
    model = small(edge_steps=edge_steps).eval()
    wanted = model(images)

    def bring(module, inputs):
        for name, value in module.stored.items():
            module._parameters[name].data = value

    def take(module, *_):
        for parameter in module._parameters.values():
            if parameter is not None:
                parameter.data = torch.full_like(parameter, torch.nan)

    for module in model.modules():
        module.stored = {
            name: value.data for name, value in module._parameters.items() if value is not None
        }
        take(module)
        module.register_forward_pre_hook(bring)
        module.register_forward_hook(take)
    assert model(images).equal(wanted)


@pytest.mark.full
def test_compiles_without_a_graph_break_for_any_size():
    torch._dynamo.reset()
    model = GrootV(channels=4, depths=(1, 1, 1, 1), num_classes=5).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for shape in [(2, 3, 40, 33), (3, 3, 64, 50)]:
            images = torch.randn(shape)
            torch.testing.assert_close(compiled(images), model(images))


@pytest.mark.full
def test_inductor_takes_convolutions_of_any_size(images):
    torch._dynamo.reset()
    # In double, because a norm over two channels makes much of how a processor rounds.
    stem, images = Stem(3, 4).double(), images.double()
    compiled = torch.compile(stem, fullgraph=True, dynamic=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), stem(images))


@pytest.mark.full
def test_inductor_takes_the_head_for_any_size(images):
    torch._dynamo.reset()
    stem = Stem(3, 64)  # because a head whose sides are no sums of symbols compiles in any case
    model = small().eval()

    def classify(images):
        return model.head(model.pool(stem(images).permute(0, 3, 1, 2)))

    compiled = torch.compile(classify, fullgraph=True, dynamic=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), classify(images))


@pytest.mark.full
def test_compiles_without_a_graph_break_for_training(images):
    torch._dynamo.reset()
    model = GrootV(channels=4, depths=(1, 1, 1, 1), num_classes=5).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    grads = []
    for run in (model, compiled):
        model.zero_grad()
        run(images).square().sum().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((2, 1, 64, 64), r"height, width\] = \[any, 3, any, any\], got \[2, 1, 64, 64\]"),
        ((3, 64, 64), r"got \[3, 64, 64\]"),
        ((2, 3, 31, 64), r"at least 32 x 32 pixels large, got 31 x 64"),
        ((2, 3, 64, 16), r"at least 32 x 32 pixels large, got 64 x 16"),
    ],
)  # fmt: skip
def test_images_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(shape))
    with pytest.raises(ValueError, match=message):
        small().forward_features(torch.zeros(shape))


def test_images_of_bytes_are_refused():
    with pytest.raises(TypeError, match="'images' must have a floating point dtype"):
        small()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize("tree", ["min", "random"])
def test_images_that_hold_nan_are_told_as_such(images, tree):
    images[1, 2, 3, 4] = torch.nan
    with pytest.raises(NotANumberError, match="'images' must not hold NaN, got NaN in image 1"):
        small(tree=tree)(images)


def test_weights_that_hold_nan_are_told_by_the_layer(images):
    model = small()
    with torch.no_grad():
        model.stages[1].norm.bias.fill_(torch.nan)
    with pytest.raises(NotANumberError, match="'x' must give a dissimilarity for every edge"):
        model(images)


@pytest.mark.full
def test_compiled_networks_tell_nan_too(images):
    torch._dynamo.reset()
    model = GrootV(channels=4, depths=(1, 1, 1, 1), num_classes=5).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad(), pytest.raises(NotANumberError, match="'x' must give a dissimilarity"):
        compiled(images * torch.nan)


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({"channels": 0}, ValueError, "'channels' must be at least 1, got 0"),
        ({"channels": 9}, ValueError, "'channels' must be even"),
        ({"channels": 8.0}, TypeError, "'channels' must be an int"),
        ({"depths": (1, 1, 1)}, ValueError, "'depths' must hold the blocks of four stages, got 3"),
        ({"depths": 2}, TypeError, "'depths' must be a tuple of four ints, got int"),
        ({"num_classes": -1}, ValueError, "'num_classes' must be at least 1, got -1"),
        ({"in_channels": 0}, ValueError, "'in_channels'"),
        ({"drop_path_rate": 1.0}, ValueError, r"'drop_path_rate' must lie in \[0, 1\), got 1.0"),
        ({"mlp_ratio": 0}, ValueError, "'mlp_ratio' must be positive and finite, got 0"),
        ({"metric": "cosinus"}, ValueError, "'metric' must be one of"),
        ({"initializer_range": 0}, ValueError, "'initializer_range' must be positive and finite"),
        ({"initializer_range": "0.1"}, TypeError, "'initializer_range' must be a number, got str"),
    ],
)
def test_bad_settings_are_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        GrootV(**{"channels": 8, "depths": (1, 1, 1, 1), **kwargs})


def test_numbers_of_the_published_code():
    """The feature maps and logits of the published code, for weights filled from their names."""
    model = grootv_tiny().eval()
    model.load_state_dict(convert_grootv_checkpoint(published_weights()))
    outputs = published_outputs()
    with torch.no_grad():
        maps, logits = model.forward_features(outputs["images"]), model(outputs["images"])
    for number, features in enumerate(maps):
        wanted = outputs[f"map{number}"]
        torch.testing.assert_close(features.contiguous(), wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(logits, outputs["logits"], rtol=0, atol=1e-4)
