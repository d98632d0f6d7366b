import math
import runpy
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from groot_graph.models import GrootV, load_grootv
from groot_graph.nn import TreeSSM

transformers = pytest.importorskip("transformers", minversion="5.5")

from transformers import (  # noqa: E402
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    RTDetrConfig,
    RTDetrForObjectDetection,
    Trainer,
    TrainingArguments,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    set_seed,
)

from groot_graph.models.grootv import transformers as grootv_transformers  # noqa: E402
from groot_graph.models.grootv.transformers import (  # noqa: E402
    GrootVBackbone,
    GrootVConfig,
    GrootVForImageClassification,
    GrootVModel,
)

STAGES = ["stage1", "stage2", "stage3", "stage4"]


def small_config(**kwargs) -> GrootVConfig:
    return GrootVConfig(**{"channels": 8, "depths": (1, 1, 2, 1), "num_labels": 5, **kwargs})


def same(model: nn.Module, other: nn.Module) -> bool:
    weights = other.state_dict()
    return weights.keys() == model.state_dict().keys() and all(
        weights[name].equal(value) for name, value in model.state_dict().items()
    )


def without_gradient(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.grad is None]


@pytest.fixture
def images():
    return torch.randn(2, 3, 40, 70)


@pytest.fixture
def classifier():
    return GrootVForImageClassification(small_config()).eval()


@pytest.fixture
def folder(tmp_path, classifier):
    """Where a classifier is saved."""
    classifier.save_pretrained(tmp_path)
    return tmp_path


# The configuration. -------------------------------------------------------------------------------


def test_configuration_is_that_of_the_tiny_network_by_default():
    model = GrootVForImageClassification(GrootVConfig(num_labels=1000))
    assert model.num_parameters() == 29_958_600


def test_configuration_survives_saving(tmp_path):
    config = small_config(
        num_channels=1, mlp_ratio=2.5, head_scale=0.5, drop_path_rate=0.2, metric="euclidean",
        tree="max", root="last", direction="up", initializer_range=0.1, edge_steps=True,
        out_features=["stem", "stage3"],
        num_labels=2, id2label={0: "cat", 1: "dog"},
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    read = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(read, GrootVConfig)
    assert read.to_diff_dict().keys() == config.to_diff_dict().keys()
    for name in config.to_diff_dict().keys() - {"depths", "transformers_version"}:
        assert getattr(read, name) == getattr(config, name), name
    assert tuple(read.depths) == config.depths
    assert (read.out_indices, read.num_labels) == ([0, 3], 2)


def test_configuration_reaches_the_network():
    config = small_config(
        num_channels=1, mlp_ratio=2, head_scale=0.5, drop_path_rate=0.25, metric="manhattan",
        tree="max", root="last", direction="down", initializer_range=0.1, edge_steps=True,
    )  # fmt: skip
    grootv = GrootVForImageClassification(config).grootv
    block = grootv.stages[-1].blocks[-1]
    assert (grootv.channels, grootv.depths) == ([8, 16, 32, 64], (1, 1, 2, 1))
    assert (grootv.in_channels, grootv.num_classes, grootv.num_features) == (1, 5, 32)
    assert (block.mlp.fc1.out_features, block.drop_path_rate) == (128, 0.25)
    topology = block.mixer.topology
    assert (topology.metric, topology.tree, topology.root) == ("manhattan", "max", "last")
    assert block.mixer.ssm.direction == "down" and block.mixer.ssm.edge_steps
    assert grootv.initializer_range == 0.1
    assert 0.04 < block.mlp.fc1.weight.abs().max() <= 0.2


@pytest.mark.parametrize(
    "argument, match",
    [
        ({"depths": (1, 1)}, "'depths' must hold the blocks of four stages, got 2"),
        ({"channels": 0}, "'channels' must be"),
        ({"drop_path_rate": 1.0}, r"'drop_path_rate' must lie in \[0, 1\), got 1"),
        ({"metric": "hamming"}, "'metric' must be"),
    ],
    ids=["depths", "channels", "drop_path_rate", "metric"],
)
def test_what_the_network_refuses_is_refused(argument, match):
    with pytest.raises(ValueError, match=match):
        GrootVForImageClassification(small_config(**argument))


def test_unknown_out_features_are_refused():
    with pytest.raises(ValueError, match="out_features must be a subset of stage_names"):
        small_config(out_features=["stage5"])


# The outputs. -------------------------------------------------------------------------------------


def test_classifier_computes_what_grootv_computes(classifier, images):
    output = classifier(images)
    assert output.logits.equal(classifier.grootv(images))
    assert output.loss is None
    assert output.hidden_states is None


@pytest.mark.parametrize("model_class", [GrootVForImageClassification, GrootVBackbone, GrootVModel])
def test_hidden_states_are_the_maps(model_class, images):
    model = model_class(small_config()).eval()
    runs = []
    model.grootv.stem.register_forward_hook(lambda *args: runs.append(args))
    stem, *maps = model(images, output_hidden_states=True).hidden_states
    assert len(runs) == 1
    assert stem.equal(model.grootv.stem(images).permute(0, 3, 1, 2))
    for features, wanted in zip(maps, model.grootv.forward_features(images), strict=True):
        assert features.equal(wanted)
    model.config.output_hidden_states = True
    assert len(model(images).hidden_states) == 5
    assert "hidden_states" not in model(images, output_hidden_states=False)


def test_return_dict_false_gives_a_tuple(classifier, images):
    (logits,) = classifier(images, return_dict=False)
    loss, same_logits = classifier(images, labels=torch.tensor([0, 4]), return_dict=False)
    assert logits.equal(same_logits)
    assert loss.dim() == 0


@pytest.mark.parametrize(
    "problem_type, labels, loss_function",
    [
        ("single_label_classification", torch.tensor([3, 1]), nn.CrossEntropyLoss()),
        ("multi_label_classification", torch.eye(5)[[3, 1]], nn.BCEWithLogitsLoss()),
        ("regression", torch.randn(2, 5), nn.MSELoss()),
    ],
)
def test_loss_of_every_problem(classifier, images, problem_type, labels, loss_function):
    classifier.config.problem_type = problem_type
    output = classifier(images, labels=labels)
    assert output.loss.equal(loss_function(output.logits, labels))


def test_model_pools_as_the_classifier(classifier, folder, images):
    model = AutoModel.from_pretrained(folder)
    assert isinstance(model, GrootVModel)
    output = model(images)
    assert output.last_hidden_state.equal(classifier.grootv.forward_features(images)[-1])
    assert classifier.grootv.head(output.pooler_output).equal(classifier(images).logits)


@pytest.mark.parametrize("model_class", [GrootVForImageClassification, GrootVBackbone, GrootVModel])
def test_errors_of_grootv_come_through(model_class):
    model = model_class(small_config())
    with pytest.raises(ValueError, match=r"\[any, 3, any, any\], got \[1, 1, 64, 64\]"):
        model(torch.randn(1, 1, 64, 64))
    with pytest.raises(ValueError, match="at least 32 x 32 pixels large, got 31 x 64"):
        model(torch.randn(1, 3, 31, 64))
    with pytest.raises(TypeError, match="'images' must have a floating point dtype"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_backbone_returns_what_is_asked_for(images):
    backbone = AutoBackbone.from_config(small_config(out_features=["stem", "stage2", "stage4"]))
    assert isinstance(backbone, GrootVBackbone)
    maps = backbone(images).feature_maps
    assert [tuple(features.shape[1:]) for features in maps] == [(8, 10, 18), (16, 5, 9), (64, 2, 3)]
    assert backbone.channels == [8, 16, 64]
    backbone.out_indices = [1, 2, 3, 4]
    wanted = backbone.grootv.forward_features(images)
    for features, map in zip(backbone(images).feature_maps, wanted, strict=True):
        assert features.equal(map)
    assert backbone.channels == [8, 16, 32, 64]
    assert backbone.out_feature_channels["stem"] == 8


def test_backbone_has_the_last_map_by_default(images):
    backbone = GrootVBackbone(small_config())
    (features,) = backbone(images).feature_maps
    assert backbone.out_features == ["stage4"]
    assert features.shape == (2, 64, 2, 3)


def test_every_parameter_of_the_backbone_learns(images):
    backbone = GrootVBackbone(small_config(out_features=["stage4"]))
    backbone(images).feature_maps[0].square().mean().backward()
    assert without_gradient(backbone) == []


# Saving and reading. ------------------------------------------------------------------------------


def test_saving_and_reading_gives_the_same_logits(classifier, folder, images):
    assert (folder / "model.safetensors").is_file()
    read = AutoModelForImageClassification.from_pretrained(folder)
    assert isinstance(read, GrootVForImageClassification)
    assert not read.training
    assert read(images).logits.equal(classifier(images).logits)


def test_backbone_and_classifier_read_each_other(classifier, folder, tmp_path, images):
    backbone, info = GrootVBackbone.from_pretrained(
        folder, out_features=STAGES, output_loading_info=True
    )
    assert not any(info.values())
    wanted = classifier.grootv.forward_features(images)
    for features, map in zip(backbone(images).feature_maps, wanted, strict=True):
        assert features.equal(map)

    backbone.save_pretrained(tmp_path / "backbone")
    again, info = AutoModelForImageClassification.from_pretrained(
        tmp_path / "backbone", output_loading_info=True
    )
    assert all(name.startswith("grootv.head") for name in info["missing_keys"])
    assert same(again.grootv.stages, classifier.grootv.stages)
    assert again.grootv.head_norm.running_var.eq(1).all()
    assert 0 < again.grootv.head.weight.abs().max() <= 0.04
    assert again(images).logits.isfinite().all()


def test_another_number_of_classes_gets_a_new_last_layer(classifier, folder):
    read = AutoModelForImageClassification.from_pretrained(
        folder, num_labels=3, ignore_mismatched_sizes=True
    )
    assert same(read.grootv.stages, classifier.grootv.stages)
    assert read.grootv.head_conv.weight.equal(classifier.grootv.head_conv.weight)
    assert read.grootv.head.weight.shape == (3, 96)
    assert 0 < read.grootv.head.weight.abs().max() <= 0.04
    assert read.grootv.head.bias.eq(0).all()


def test_reading_in_half_precision_runs(folder, images):
    read = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.bfloat16)
    logits = read(images.bfloat16()).logits
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


def test_drop_path_rates_survive_reading(tmp_path):
    GrootVForImageClassification(small_config(drop_path_rate=0.4)).save_pretrained(tmp_path)
    read = GrootVForImageClassification.from_pretrained(tmp_path)
    rates = [block.drop_path_rate for stage in read.grootv.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


# Random weights. ----------------------------------------------------------------------------------


def check_state_space_models(model: nn.Module) -> None:
    ssms = [module for module in model.modules() if isinstance(module, TreeSSM)]
    assert len(ssms) == 5
    for ssm in ssms:
        assert ssm.A_log.eq(0).all()
        assert ssm.D.eq(1).all()
        delta = nn.functional.softplus(ssm.dt_proj.bias)
        assert delta.min() >= 1e-3 * (1 - 1e-3)
        assert delta.max() <= 0.1 * (1 + 1e-3)
        assert delta.std() > 0.01


@pytest.mark.parametrize("auto_class", [AutoModelForImageClassification, AutoBackbone, AutoModel])
def test_random_weights_are_those_of_grootv(auto_class):
    model = auto_class.from_config(small_config(channels=32))
    check_state_space_models(model)
    wanted = GrootV(channels=32, depths=(1, 1, 2, 1), num_classes=5).state_dict()
    for name, value in model.grootv.state_dict().items():
        value, other = value.float(), wanted[name].float()
        if other.numel() == 1 or other.std() == 0:
            assert value.equal(other), name
        else:
            # Four deviations of an estimated deviation; the short ones are left to the bounds.
            spread = 4 / math.sqrt(other.numel())
            assert value.std().item() == pytest.approx(other.std().item(), rel=spread), name
            assert value.abs().max() <= 1.5 * other.abs().max(), name


def test_same_seed_same_weights():
    set_seed(3)
    first = GrootVForImageClassification(small_config())
    set_seed(3)
    assert same(first, GrootVForImageClassification(small_config()))


@pytest.mark.parametrize(
    "missing",
    ["ssm.A_log", "ssm.D", "ssm.dt_proj.bias", "ssm.dt_proj.weight", "ssm.x_proj.weight", "ssm."],
)
def test_missing_weights_alone_are_drawn(classifier, folder, missing):
    """What the file has must stay, also where it lies beside what the file lacks."""
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(0.001)
    wanted = classifier.state_dict()
    kept = {name: value for name, value in wanted.items() if missing not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    read, info = GrootVForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert info["missing_keys"] == wanted.keys() - kept.keys()
    weights = read.state_dict()
    assert all(weights[name].equal(value) for name, value in kept.items())
    for name in info["missing_keys"]:
        assert weights[name].isfinite().all()
        assert not weights[name].equal(wanted[name])
    if missing == "ssm.":
        check_state_space_models(read)
    if missing == "ssm.x_proj.weight":
        # A projection inside a state space model is drawn as PyTorch does.
        assert weights["grootv.stages.0.blocks.0.mixer.ssm.x_proj.weight"].std() > 0.1


# Networks that already exist. ---------------------------------------------------------------------


def test_wrapping_a_network_keeps_it(tmp_path, images):
    grootv = GrootV(
        channels=44, depths=(1, 1, 1, 1), num_classes=3, mlp_ratio=1.37, head_scale=0.35,
        drop_path_rate=0.25, metric="euclidean", tree="max", root="last", direction="up",
        initializer_range=0.05,
    ).eval()  # fmt: skip
    wrapper = GrootVForImageClassification.from_grootv(grootv, id2label={0: "a", 1: "b", 2: "c"})
    assert wrapper.grootv is grootv
    assert not wrapper.training
    wrapper.save_pretrained(tmp_path)
    read = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert read(images).logits.equal(grootv(images))
    assert read.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert read.config.drop_path_rate == 0.25
    assert read.config.initializer_range == read.grootv.initializer_range == 0.05
    assert read.grootv.num_features == grootv.num_features == int(0.35 * 352)
    topology = read.grootv.stages[0].blocks[0].mixer.topology
    assert (topology.metric, topology.tree, topology.root) == ("euclidean", "max", "last")
    assert read.grootv.stages[0].blocks[0].mixer.ssm.direction == "up"


def test_edge_steps_survive_saving(tmp_path, images):
    torch.manual_seed(0)
    grootv = GrootV(channels=8, depths=(1, 1, 1, 1), num_classes=4, edge_steps=True).eval()
    GrootVForImageClassification.from_grootv(grootv).save_pretrained(tmp_path)
    read = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert read.config.edge_steps and read(images).logits.equal(grootv(images))
    torch.save(grootv.state_dict(), tmp_path / "weights.pth")
    assert load_grootv(tmp_path / "weights.pth").eval()(images).equal(grootv(images))


def test_weights_from_a_file_can_be_wrapped(tmp_path, images):
    grootv = GrootV(channels=8, depths=(1, 1, 1, 1), num_classes=4).eval()
    torch.save(grootv.state_dict(), tmp_path / "weights.pth")
    wrapper = GrootVForImageClassification.from_grootv(load_grootv(tmp_path / "weights.pth").eval())
    assert wrapper.config.num_labels == 4
    assert wrapper(images).logits.equal(grootv(images))


def test_what_is_no_grootv_or_has_a_metric_of_ones_own_cannot_be_wrapped():
    with pytest.raises(TypeError, match="'model' must be a GrootV, got Linear"):
        GrootVForImageClassification.from_grootv(nn.Linear(1, 1))
    grootv = GrootV(channels=8, depths=(1, 1, 1, 1), metric=lambda x_i, x_j: x_i[:, 0] - x_j[:, 0])
    with pytest.raises(ValueError, match="'model' must have a metric that is a name"):
        GrootVForImageClassification.from_grootv(grootv)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_labels", 4, "'num_labels' must be that of 'model', 3, got 4"),
        ("id2label", {0: "a"}, "'id2label' must name the classes 0 to 2 of 'model'"),
        ("id2label", {1: "a", 2: "b", 3: "c"}, r"got names of \[1, 2, 3\]"),
        ("label2id", {"a": 0, "b": 0, "c": 1}, "'label2id' must name|'id2label' must name"),
        ("channels", 10, "'channels' must be that of 'model', 8, got 10"),
        ("depths", [1, 1, 2, 1], r"'depths' must be .* \(1, 1, 1, 1\), got \(1, 1, 2, 1\)"),
        ("num_channels", 1, "'num_channels' must be that of 'model', 3, got 1"),
        ("drop_path_rate", 0.5, "'drop_path_rate' must be that of 'model'"),
        ("metric", "euclidean", "'metric' must be that of 'model', 'cosine', got 'euclidean'"),
        ("tree", "max", "'tree' must be that of 'model', 'min', got 'max'"),
        ("edge_steps", True, "must be that of 'model'"),
    ],
)
def test_what_contradicts_the_network_is_refused(name, value, message):
    grootv = GrootV(channels=8, depths=(1, 1, 1, 1), num_classes=3)
    with pytest.raises(ValueError, match=message):
        GrootVForImageClassification.from_grootv(grootv, **{name: value})


def test_what_agrees_with_the_network_is_taken():
    grootv = GrootV(channels=8, depths=(1, 1, 1, 1), num_classes=2)
    names = {"cat": 0, "dog": 1}
    same = {"num_labels": 2, "channels": 8, "depths": [1, 1, 1, 1], "metric": None}
    config = GrootVForImageClassification.from_grootv(grootv, label2id=names, **same).config
    assert config.id2label == {0: "cat", 1: "dog"}
    assert config.label2id == names
    grootv.head = nn.Linear(96, 7)
    assert GrootVForImageClassification.from_grootv(grootv).config.num_labels == 7


# Weights that are elsewhere. ----------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("model_class", [GrootVForImageClassification, GrootVBackbone, GrootVModel])
@pytest.mark.parametrize(
    "device_map",
    [{"": "disk"}, {"grootv": "disk"}, {"grootv.stem": "cpu", "grootv.stages": "disk"}],
    ids=["all", "the network", "parts"],
)
@torch.no_grad()
def test_weights_on_disk_are_brought(tmp_path, images, model_class, device_map):
    pytest.importorskip("accelerate")
    model = model_class(small_config(edge_steps=True)).eval()
    model.save_pretrained(tmp_path / "saved")
    if "grootv.stem" in device_map:
        rest = dict.fromkeys(dict(model.grootv.named_children()), "disk")
        device_map = {f"grootv.{name}": place for name, place in rest.items()} | device_map
    read = model_class.from_pretrained(
        tmp_path / "saved", device_map=device_map, offload_folder=tmp_path / "away"
    )
    assert all(weight.is_meta for weight in read.grootv.stages.parameters())
    wanted = model(images, output_hidden_states=True).hidden_states
    found = read(images, output_hidden_states=True).hidden_states
    assert all(map(torch.equal, found, wanted))


# Training. ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_checkpointing_changes_no_gradient(images):
    labels = torch.tensor([0, 1])
    model = GrootVForImageClassification(small_config()).train()
    model(images, labels=labels).loss.backward()
    wanted = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.gradient_checkpointing_enable()
    assert model.grootv.gradient_checkpointing
    calls = []
    model.grootv.stages[0].blocks[0].register_forward_pre_hook(lambda *args: calls.append(args))
    model(images, labels=labels).loss.backward()
    assert len(calls) == 2
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def dark_and_bright(num_images: int) -> list[dict]:
    """Images whose upper or lower half is bright, which is their class."""
    data = []
    for label in torch.arange(num_images).remainder(2).tolist():
        image = 0.3 * torch.randn(3, 32, 32)
        image[:, 16 * label : 16 * (label + 1)] += 1
        data.append({"pixel_values": image, "labels": label})
    return data


def make_trainer(folder, data: list[dict]) -> Trainer:
    set_seed(0)
    arguments = TrainingArguments(
        output_dir=str(folder), num_train_epochs=4, per_device_train_batch_size=8,
        learning_rate=2e-3, logging_strategy="epoch", save_strategy="epoch", report_to="none",
        use_cpu=True, disable_tqdm=True, dataloader_num_workers=0,
    )  # fmt: skip
    model = GrootVForImageClassification(
        small_config(depths=(1, 1, 1, 1), num_labels=2, drop_path_rate=0.1)
    )
    return Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)


def test_trainer_trains_and_resumes_to_the_bit(tmp_path):
    data = dark_and_bright(24)
    trainer = make_trainer(tmp_path / "first", data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4
    assert losses[-1] < 0.5 * losses[0]
    prediction = trainer.predict(data)
    assert (prediction.predictions.argmax(1) == prediction.label_ids).all()
    assert trainer.evaluate()["eval_loss"] < losses[0]

    resumed = make_trainer(tmp_path / "second", data)
    resumed.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-6"))
    assert resumed.state.global_step == trainer.state.global_step == 12
    assert same(resumed.model, trainer.model)


# Segmenters and detectors. ------------------------------------------------------------------------


@pytest.mark.parametrize("height, width", [(64, 96), (50, 71)])
def test_upernet_learns_and_is_read(tmp_path, height, width):
    config = UperNetConfig(
        backbone_config=small_config(out_features=STAGES), num_labels=4, hidden_size=16,
        auxiliary_in_channels=32, auxiliary_channels=8, pool_scales=[1, 2],
    )  # fmt: skip
    model = UperNetForSemanticSegmentation(config)
    images, labels = torch.randn(2, 3, height, width), torch.randint(4, (2, height, width))
    output = model(images, labels=labels)
    assert output.logits.shape == (2, 4, height, width)
    output.loss.backward()
    assert without_gradient(model) == []
    assert output.loss.isfinite()
    check_state_space_models(model)

    model.eval().save_pretrained(tmp_path)
    read = UperNetForSemanticSegmentation.from_pretrained(tmp_path)
    assert isinstance(read.backbone, GrootVBackbone)
    assert read.config.backbone_config.out_features == STAGES
    assert read(images).logits.equal(model(images).logits)


DETR = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "num_queries": 10,
}  # fmt: skip
RT_DETR = {
    "d_model": 32, "encoder_hidden_dim": 32, "encoder_in_channels": [16, 32, 64],
    "feat_strides": [8, 16, 32], "encoder_ffn_dim": 32, "encoder_attention_heads": 4,
    "decoder_in_channels": [32, 32, 32], "decoder_ffn_dim": 32, "decoder_layers": 2,
    "decoder_attention_heads": 4, "num_queries": 10, "num_denoising": 0,
}  # fmt: skip
DETECTORS = {  # Name: classes, maps, sizes, an image's size.
    "detr": (DetrConfig, DetrForObjectDetection, STAGES[3:], DETR, (50, 71)),
    "conditional_detr": (
        ConditionalDetrConfig, ConditionalDetrForObjectDetection, STAGES[3:], DETR, (50, 71),
    ),
    "deformable_detr": (
        DeformableDetrConfig, DeformableDetrForObjectDetection, STAGES[1:], DETR, (50, 71),
    ),
    # Adds upsampled maps to each other, so that sides must be multiples of 32.
    "rt_detr": (RTDetrConfig, RTDetrForObjectDetection, STAGES[1:], RT_DETR, (64, 96)),
}  # fmt: skip


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_learn(name):
    pytest.importorskip("scipy", reason="the losses match boxes with scipy")
    config_class, model_class, out_features, sizes, (height, width) = DETECTORS[name]
    backbone_config = small_config(out_features=out_features)
    model = model_class(config_class(backbone_config=backbone_config, num_labels=3, **sizes))
    target = {"class_labels": torch.tensor([0, 2]), "boxes": 0.2 + 0.3 * torch.rand(2, 4)}
    output = model(torch.randn(2, 3, height, width), labels=[target, target])
    assert output.pred_boxes.shape == (2, 10, 4)
    output.loss.backward()
    backbones = [module for module in model.modules() if isinstance(module, GrootVBackbone)]
    assert output.loss.isfinite()
    assert len(backbones) == 1
    assert without_gradient(backbones[0]) == []
    check_state_space_models(model)


# Sizes of any model that has them.
SMALL = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "num_queries": 5, "encoder_hidden_dim": 32, "encoder_in_channels": [16, 32, 64],
    "decoder_in_channels": [32, 32, 32], "feature_size": 32, "mask_feature_size": 32,
    "hidden_dim": 32, "encoder_feedforward_dim": 32, "dim_feedforward": 32,
    "num_attention_heads": 2, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32,
    "auxiliary_in_channels": 32, "auxiliary_channels": 8, "use_timm_backbone": False,
    "backbone": None,
}  # fmt: skip
TAKES_A_BACKBONE = [
    "ConditionalDetrForObjectDetection",
    "DFineForObjectDetection",
    "DPTForDepthEstimation",
    "DabDetrForObjectDetection",
    "DeformableDetrForObjectDetection",
    "DepthAnythingForDepthEstimation",
    "DetrForObjectDetection",
    "Mask2FormerForUniversalSegmentation",
    "MaskFormerForInstanceSegmentation",
    "OneFormerForUniversalSegmentation",
    "PromptDepthAnythingForDepthEstimation",
    "RTDetrForObjectDetection",
    "RTDetrV2ForObjectDetection",
    "TableTransformerForObjectDetection",
    "UperNetForSemanticSegmentation",
]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", TAKES_A_BACKBONE)
def test_no_model_around_the_backbone_loses_a_weight(tmp_path, name):
    model_class = getattr(transformers, name)
    fields = model_class.config_class.__dataclass_fields__
    sizes = {key: value for key, value in SMALL.items() if key in fields}
    backbone_config = small_config(out_features=STAGES[1:], edge_steps=True)
    model = model_class(model_class.config_class(backbone_config=backbone_config, **sizes))
    assert any(isinstance(module, GrootVBackbone) for module in model.modules())

    for folder in (tmp_path / "once", tmp_path / "twice"):
        model.save_pretrained(folder)
        read, report = model_class.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert same(read, model)
        stored = load_file(folder / "model.safetensors")
        assert any(key.endswith(".mixer.out_proj.weight") for key in stored)
        model = read


def test_mask2former_learns():
    pytest.importorskip("scipy", reason="the loss matches masks with scipy")
    config = Mask2FormerConfig(
        backbone_config=small_config(out_features=STAGES), num_labels=3, feature_size=32,
        mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32, encoder_layers=1,
        num_attention_heads=4, dim_feedforward=32, decoder_layers=2, num_queries=10,
    )  # fmt: skip
    model = Mask2FormerForUniversalSegmentation(config)
    masks = torch.rand(2, 2, 50, 71).round()
    output = model(
        torch.randn(2, 3, 50, 71), mask_labels=list(masks), class_labels=[torch.tensor([0, 2])] * 2
    )
    output.loss.backward()
    assert output.loss.isfinite()
    assert without_gradient(model) == []


# Where transformers is missing. -------------------------------------------------------------------


def test_error_without_transformers_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "groot-graph\[vision\]"'):
        runpy.run_path(grootv_transformers.__file__)


def test_saved_names_are_those_of_grootv(folder):
    names = load_file(folder / "model.safetensors").keys()
    wanted = GrootV(channels=8, depths=(1, 1, 2, 1), num_classes=5).state_dict().keys()
    assert {name.removeprefix("grootv.") for name in names} == set(wanted)
