import importlib.util
import runpy
import sys

import pytest
import torch
from torch import nn

from groot_graph.models import GrootV, convert_grootv_checkpoint, load_grootv
from tests.equipment.published import published_weights

if importlib.util.find_spec("timm") is None:
    pytest.skip("timm is not installed", allow_module_level=True)

try:
    import torchvision  # noqa: F401
except RuntimeError:
    # A torchvision built for CUDA cannot load its operators beside a PyTorch without CUDA.
    for name in ("nms", "qnms"):
        signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define(f"torchvision::{name}", signature)

import timm  # noqa: E402
from timm.models import group_parameters  # noqa: E402
from timm.optim import create_optimizer_v2, param_groups_layer_decay  # noqa: E402

import groot_graph.models.grootv.timm  # noqa: E402
from groot_graph.models.grootv.timm import TimmGrootV  # noqa: E402

SIZES = {
    "grootv_micro": 1_416_592,
    "grootv_tiny": 29_958_600,
    "grootv_small": 51_331_624,
    "grootv_base": 90_597_096,
}


def create(**kwargs) -> TimmGrootV:
    return timm.create_model(
        "grootv_tiny", **{"channels": 8, "depths": (1, 1, 2, 1), "num_classes": 5, **kwargs}
    )


def without_gradient(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.grad is None]


@pytest.fixture
def images():
    return torch.randn(2, 3, 40, 70)


@pytest.fixture
def model():
    return create().eval()


def test_names_are_registered():
    assert timm.list_models("grootv*") == [
        "grootv_base",
        "grootv_micro",
        "grootv_small",
        "grootv_tiny",
    ]
    assert timm.list_models("grootv*", module="timm") == timm.list_models("grootv*")
    assert timm.list_models("grootv*", pretrained=True) == []


@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_default_configuration(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == SIZES[name]
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (3, 224, 224)
    assert config["mean"] == (0.485, 0.456, 0.406)
    assert config["std"] == (0.229, 0.224, 0.225)
    assert model.pretrained_cfg["architecture"] == name
    assert f"{model.pretrained_cfg['classifier']}.weight" in model.state_dict()
    assert f"{model.pretrained_cfg['first_conv']}.weight" in model.state_dict()
    assert model.get_classifier() is model.head


def test_computes_what_grootv_computes(model, images):
    grootv = GrootV(channels=8, depths=(1, 1, 2, 1), num_classes=5).eval()
    grootv.load_state_dict(model.state_dict())
    assert model.state_dict().keys() == grootv.state_dict().keys()
    torch.testing.assert_close(model(images), grootv(images))
    wanted = grootv.forward_features(images)
    assert model.forward_features(images).equal(wanted[-1])
    for features, map in zip(model.forward_intermediates(images)[1], wanted, strict=True):
        assert features.equal(map)


def test_arguments_of_timm_reach_the_network():
    model = create(num_classes=10, in_chans=1, drop_path_rate=0.2, drop_rate=0.3)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 10)
    rates = [block.drop_path_rate for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert model.head_drop.p == 0.3
    assert create(metric="euclidean").stages[0].blocks[0].mixer.topology.metric == "euclidean"
    assert create(edge_steps=True).stages[0].blocks[0].mixer.ssm.edge_steps


def test_dropout_works_in_training_alone():
    model = create(drop_rate=0.5)
    features = torch.randn(2, 64, 3, 3)
    assert model.forward_head(features, pre_logits=True).eq(0).float().mean() > 0.3
    assert model.eval().forward_head(features, pre_logits=True).ne(0).all()


def test_new_last_layers_are_drawn_as_grootv_draws_them(model):
    for head in (model.head, create(global_pool="catavgmax").head):
        assert 0 < head.weight.abs().max() <= 0.04
        assert head.bias.eq(0).all()
    assert 0.04 < create(initializer_range=0.1).head.weight.abs().max() <= 0.2


# Features. ----------------------------------------------------------------------------------------


def test_features_only(images):
    backbone = create(features_only=True).eval()
    assert backbone.feature_info.channels() == [8, 16, 32, 64]
    assert backbone.feature_info.reduction() == [4, 8, 16, 32]
    shapes = [tuple(features.shape[1:]) for features in backbone(images)]
    assert shapes == [(8, 10, 18), (16, 5, 9), (32, 3, 5), (64, 2, 3)]


def test_default_features_of_the_tiny_network():
    backbone = timm.create_model("grootv_tiny", features_only=True)
    assert backbone.feature_info.channels() == [80, 160, 320, 640]


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (0, 2), (1,), (-1,), (-3, -2)], ids=str)
def test_chosen_features_hold_no_needless_parameters(images, out_indices):
    model = create().eval()
    backbone = create(features_only=True, out_indices=out_indices).eval()
    backbone.model.load_state_dict(model.state_dict(), strict=False)
    wanted = model.forward_intermediates(images, intermediates_only=True)
    found = backbone(images)
    assert len(found) == len(out_indices)
    for index, features in zip(out_indices, found, strict=True):
        assert features.equal(wanted[index])
    assert backbone.feature_info.channels() == [[8, 16, 32, 64][index] for index in out_indices]
    found[-1].square().mean().backward()
    assert without_gradient(backbone) == []


def test_intermediates(model, images):
    wanted = model.forward_intermediates(images, intermediates_only=True)
    last, maps = model.forward_intermediates(images, indices=2)
    assert last.equal(wanted[3])
    assert [features.size(1) for features in maps] == [32, 64]
    calls = []
    model.stages[2].register_forward_hook(lambda *args: calls.append(args))
    last, (first, second) = model.forward_intermediates(images, indices=[0, 1], stop_early=True)
    assert calls == []
    assert first.equal(wanted[0])
    assert last is second
    assert second.equal(wanted[1])
    with pytest.raises(ValueError, match="'output_fmt' must be 'NCHW', got 'NHWC'"):
        model.forward_intermediates(images, output_fmt="NHWC")


def test_a_network_without_its_last_stages_gives_its_last_map(model, images):
    wanted = model.forward_intermediates(images, intermediates_only=True)[1]
    assert model.prune_intermediate_layers([1]) == [1]
    assert model(images).equal(wanted)
    assert model.num_features == model.head_hidden_size == 16
    model.reset_classifier(3, "avg")
    assert model(images).shape == (2, 3)


def test_pruning_can_leave_the_head(model, images):
    wanted = model(images)
    assert model.prune_intermediate_layers([2, 3], prune_head=False) == [2, 3]
    assert model(images).equal(wanted)


# The head. ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("global_pool, width", [("avg", 96), ("max", 96), ("catavgmax", 192)])
def test_pooling(images, global_pool, width):
    model = create(global_pool=global_pool).eval()
    features = model.forward_features(images)
    pooled = model.forward_head(features, pre_logits=True)
    assert (model.num_features, model.head_hidden_size) == (64, width)
    assert features.shape == (2, 64, 2, 3)
    assert pooled.shape == (2, width)
    assert model(images).equal(model.head(pooled))
    convolved = nn.functional.gelu(model.head_norm(model.head_conv(features)))
    if global_pool != "max":
        torch.testing.assert_close(pooled[:, :96], convolved.mean(dim=(2, 3)))
    if global_pool != "avg":
        torch.testing.assert_close(pooled[:, -96:], convolved.amax(dim=(2, 3)))


def test_resetting_the_classifier(model, images):
    pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert model(images).equal(pooled)
    model.reset_classifier(0, "")
    assert model(images).shape == (2, 96, 2, 3)
    model.reset_classifier(7, "max")
    assert model.num_classes == 7
    assert model(images).shape == (2, 7)
    model.double().reset_classifier(3)
    assert model(images.double()).dtype == torch.float64


def test_a_map_cannot_be_classified_without_pooling():
    with pytest.raises(ValueError, match="'global_pool' must name a pooling"):
        create(num_classes=5, global_pool="")


# Training. ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("features_only", [False, True])
def test_checkpointing_changes_no_gradient(images, features_only):
    model = create(features_only=features_only).train()
    inner = model.model if features_only else model
    calls = []
    inner.stages[0].blocks[0].register_forward_pre_hook(lambda *args: calls.append(args))

    def gradients() -> list:
        model.zero_grad()
        output = model(images)
        (output[-1] if features_only else output).square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    wanted = gradients()
    assert len(calls) == 1
    inner.set_grad_checkpointing(True)
    for gradient, other in zip(gradients(), wanted, strict=True):
        torch.testing.assert_close(gradient, other)
    assert len(calls) == 3


def test_layers_are_grouped_in_their_order(model):
    groups = group_parameters(model, model.group_matcher())
    prefixes = [
        ("stem.",),
        ("stages.0.",),
        ("stages.1.",),
        ("stages.2.blocks.0.",),
        ("stages.2.blocks.1.", "stages.2.norm.", "stages.2.downsample."),
        ("stages.3.",),
        ("head_conv.", "head_norm.", "head."),
    ]
    assert len(groups) == len(prefixes)
    for names, prefix in zip(groups.values(), prefixes, strict=True):
        assert all(name.startswith(prefix) for name in names)
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    assert len(group_parameters(model, model.group_matcher(coarse=True))) == 6


def test_state_space_parameters_do_not_decay(model):
    groups = param_groups_layer_decay(
        model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5
    )
    decaying = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() > 1 and not name.endswith("A_log")
        assert (id(parameter) in decaying) == is_matrix, name


def test_an_optimizer_of_timm_trains_it():
    model = create(num_classes=2).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=3e-3, weight_decay=0.05, layer_decay=0.9)
    labels = torch.arange(16).remainder(2)
    images = 0.3 * torch.randn(16, 3, 32, 32)
    images[labels == 0, :, :16] += 1
    images[labels == 1, :, 16:] += 1
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# Weights. -----------------------------------------------------------------------------------------


def test_there_are_no_pretrained_weights_to_download():
    with pytest.raises(RuntimeError, match="No pretrained weights exist for grootv_tiny"):
        timm.create_model("grootv_tiny", pretrained=True)


def test_weights_of_grootv_are_read(tmp_path, images):
    grootv = GrootV(channels=8, depths=(1, 1, 2, 1), num_classes=5).eval()
    path = tmp_path / "weights.pth"
    torch.save(grootv.state_dict(), path)
    wanted = grootv(images)
    torch.testing.assert_close(create(checkpoint_path=str(path)).eval()(images), wanted)
    torch.testing.assert_close(load_grootv(path, model=create()).eval()(images), wanted)


def test_published_weights_are_adapted(tmp_path):
    """By timm, to other channels and classes."""
    torch.save({"model": published_weights()}, tmp_path / "published.pth")
    model = timm.create_model(
        "grootv_tiny", pretrained=True, in_chans=1, num_classes=7,
        pretrained_cfg_overlay={"file": str(tmp_path / "published.pth")},
    )  # fmt: skip
    converted = convert_grootv_checkpoint(published_weights())
    weights = model.state_dict()
    stem = "stem.conv1.weight"
    torch.testing.assert_close(weights[stem], converted[stem].sum(dim=1, keepdim=True))
    assert model.head.weight.shape == (7, 960)
    for name in converted.keys() - {stem, "head.weight", "head.bias"}:
        assert weights[name].equal(converted[name]), name


# What is refused. ---------------------------------------------------------------------------------


def test_errors_of_grootv_come_through(model):
    for network in (model, create(features_only=True)):
        with pytest.raises(ValueError, match=r"\[any, 3, any, any\], got \[1, 1, 64, 64\]"):
            network(torch.randn(1, 1, 64, 64))
        with pytest.raises(ValueError, match="at least 32 x 32 pixels large, got 31 x 64"):
            network(torch.randn(1, 3, 31, 64))
    with pytest.raises(ValueError, match="'depths' must hold the blocks of four stages"):
        create(depths=(1, 1))
    with pytest.raises(TypeError, match="unexpected keyword argument 'window_size'"):
        create(window_size=7)


def test_error_without_timm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.data", None)
    with pytest.raises(ImportError, match="pip install timm"):
        runpy.run_path(groot_graph.models.grootv.timm.__file__)
