import os
import pickle
import sys
import types

import pytest
import torch
from safetensors.torch import save_file

from groot_graph.models import GrootV, convert_grootv_checkpoint, grootv_tiny, load_grootv
from tests.equipment.published import published_weights


@pytest.fixture
def model():
    return GrootV(channels=8, depths=(1, 2, 1, 1), num_classes=5)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def same(model, other) -> bool:
    weights = other.state_dict()
    return all(weights[name].equal(value) for name, value in model.state_dict().items())


def test_published_names_become_ours():
    wanted = grootv_tiny().state_dict()
    converted = convert_grootv_checkpoint(published_weights())
    assert converted.keys() == wanted.keys()
    assert all(converted[name].shape == value.shape for name, value in wanted.items())


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict", "module", "params"])
@pytest.mark.parametrize("prefix", ["module.", "model.", "net.", "backbone.", "model.backbone."])
def test_wrappers_and_prefixes_are_taken_off(wrapper, prefix):
    prefixed = {f"{prefix}{name}": value for name, value in published_weights().items()}
    converted = convert_grootv_checkpoint({wrapper: prefixed, "epoch": 3})
    assert converted.keys() == convert_grootv_checkpoint(published_weights()).keys()


def test_the_average_is_taken_where_asked_for_or_alone(model):
    average = {name: value + 1 for name, value in model.state_dict().items()}
    both = {"model": model.state_dict(), "model_ema": average}
    assert convert_grootv_checkpoint(both)["head.bias"].equal(model.head.bias)
    assert convert_grootv_checkpoint(both, ema=True)["head.bias"].equal(model.head.bias + 1)
    alone = convert_grootv_checkpoint({"model_ema": average, "epoch": 3})
    assert alone["head.bias"].equal(model.head.bias + 1)
    with pytest.raises(ValueError, match="'ema' must be False where a checkpoint holds no average"):
        convert_grootv_checkpoint({"model": average}, ema=True)


def compiled(model):
    return torch.compile(model)


def averaged(model):
    return torch.optim.swa_utils.AveragedModel(model)


def data_parallel(model):
    return torch.nn.DataParallel(model)


def checkpointed(model):
    from torch.distributed.algorithms._checkpoint import checkpoint_wrapper

    for stage in model.stages:
        stage.blocks[0] = checkpoint_wrapper.checkpoint_wrapper(stage.blocks[0])
    return model


def partly_compiled(model):
    model.stem, model.stages[1] = torch.compile(model.stem), torch.compile(model.stages[1])
    return model


def for_transformers(model):
    pytest.importorskip("transformers", minversion="5.5")
    from groot_graph.models.grootv.transformers import GrootVForImageClassification

    return GrootVForImageClassification.from_grootv(model)


@pytest.mark.parametrize(
    "wrappers",
    [
        [compiled],
        [averaged],
        [data_parallel],
        [checkpointed],
        [partly_compiled],
        [for_transformers],
        [compiled, data_parallel],
        [data_parallel, compiled],
        [compiled, averaged],
        [for_transformers, compiled, data_parallel, averaged],
    ],
    ids=lambda wrappers: "_".join(wrapper.__name__ for wrapper in wrappers),
)
def test_weights_of_a_wrapped_network_are_read(model, path, wrappers):
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    wrapped = model
    for wrap in wrappers:
        wrapped = wrap(wrapped)
    torch.save(wrapped.state_dict(), path)
    read = load_grootv(path).state_dict()
    assert read.keys() == wanted.keys()
    assert all(read[name].equal(value) for name, value in wanted.items())


def test_an_average_alone_is_one(model, path):
    torch.save(averaged(model).state_dict(), path)
    assert same(model, load_grootv(path, ema=True))


def test_the_checkpoint_of_the_example_is_read(model, path):
    """Of examples/image_training.py."""
    average = averaged(GrootV(channels=8, depths=(1, 2, 1, 1), num_classes=5))
    parts = {"network": model, "ema": average, "optimizer": torch.optim.AdamW(model.parameters())}
    content = {name: part.state_dict() for name, part in parts.items()}
    torch.save({"config": {"seed": 0}, "random_state": torch.get_rng_state(), **content}, path)
    assert same(model, load_grootv(path))
    assert same(average.module, load_grootv(path, ema=True))


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'path' must be a file of weights, got the folder"):
        load_grootv(tmp_path)


def test_converting_twice_changes_nothing():
    converted = convert_grootv_checkpoint(published_weights())
    again = convert_grootv_checkpoint(converted)
    assert again.keys() == converted.keys()
    assert all(again[name] is value for name, value in converted.items())


@pytest.mark.parametrize(
    "state_dict, error, message",
    [
        ({"blocks.0.attn.qkv.weight": torch.zeros(1)}, ValueError, "got the name 'blocks.0.attn"),
        ({"head.bias": 3}, TypeError, "got int under 'head.bias'"),
        ([1], TypeError, "'state_dict' must be a dict, got list"),
        ({0: torch.zeros(1)}, TypeError, "must have names as keys, got 0"),
    ],
)
def test_other_weights_are_refused(state_dict, error, message):
    with pytest.raises(error, match=message):
        convert_grootv_checkpoint(state_dict)


def test_a_published_file_is_read(path):
    torch.save({"model": published_weights()}, path)
    model = load_grootv(path, drop_path_rate=0.1)
    assert model.depths == (2, 2, 9, 2) and model.channels == [80, 160, 320, 640]
    converted = convert_grootv_checkpoint(published_weights())
    assert all(model.state_dict()[name].equal(value) for name, value in converted.items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_our_own_files_are_read(model, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save(model.state_dict(), path)
    read = load_grootv(path)
    assert same(model, read)
    images = torch.randn(1, 3, 32, 32)
    assert model.eval()(images).equal(read.eval()(images))


def test_sizes_are_found_in_the_weights(path):
    model = GrootV(6, (1, 1, 1, 2), 3, in_channels=4, mlp_ratio=2.5, head_scale=2.0)
    torch.save(model.state_dict(), path)
    assert same(model, load_grootv(str(path)))
    # Widths that were rounded differently from stage to stage.
    odd = {"channels": 44, "depths": (1, 1, 1, 1), "mlp_ratio": 1.37, "head_scale": 0.35}
    torch.save(GrootV(**odd).state_dict(), path)
    assert load_grootv(path, mlp_ratio=1.37).num_features == round(0.35 * 352)


def test_another_number_of_classes_starts_a_new_head(model, path):
    torch.save(model.state_dict(), path)
    read = load_grootv(path, num_classes=3)
    assert read.head.weight.shape == (3, 96)
    assert read.head_conv.weight.equal(model.head_conv.weight)
    assert load_grootv(path, num_classes=0)(torch.randn(2, 3, 32, 32)).shape == (2, 96)


def test_weights_without_a_head_are_read(path):
    torch.save(GrootV(8, (1, 1, 1, 1), num_classes=0).state_dict(), path)
    assert load_grootv(path).num_classes == 0
    assert load_grootv(path, num_classes=4).head.weight.shape == (4, 96)


def test_a_given_model_is_filled(model, path):
    torch.save(model.state_dict(), path)
    other = GrootV(channels=8, depths=(1, 2, 1, 1), num_classes=5)
    assert load_grootv(path, model=other) is other
    assert same(model, other)
    with pytest.raises(ValueError, match="'model' brings its own sizes"):
        load_grootv(path, num_classes=3, model=other)
    with pytest.raises(TypeError, match="'model' must be a GrootV, got Linear"):
        load_grootv(path, model=torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    "other, message",
    [
        ({"channels": 16}, "channels 8 instead of 16"),
        ({"depths": (1, 1, 1, 1)}, r"depths \(1, 2, 1, 1\) instead of \(1, 1, 1, 1\)"),
        ({"num_classes": 7}, "num_classes 5 instead of 7"),
        ({"in_channels": 1}, "in_channels 3 instead of 1"),
    ],
)
def test_a_checkpoint_of_another_size_is_refused_and_nothing_changed(model, path, other, message):
    torch.save(model.state_dict(), path)
    filled = GrootV(**{"channels": 8, "depths": (1, 2, 1, 1), "num_classes": 5, **other})
    before = {name: value.clone() for name, value in filled.state_dict().items()}
    with pytest.raises(ValueError, match=f"'path' must hold weights of the size.*{message}"):
        load_grootv(path, model=filled)
    assert all(before[name].equal(value) for name, value in filled.state_dict().items())


def test_missing_and_misshapen_weights_are_named(model, path):
    weights = model.state_dict()
    del weights["stages.1.norm.bias"]
    torch.save(weights, path)
    with pytest.raises(ValueError, match="no 'stages.1.norm.bias'"):
        load_grootv(path)
    weights = model.state_dict()
    weights["head_norm.bias"] = torch.zeros(3)
    torch.save(weights, path)
    with pytest.raises(ValueError, match=r"'head_norm.bias' of shape \[3\] instead of \[96\]"):
        load_grootv(path)
    torch.save({"head.bias": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="lacks 'stem.norm2.weight'"):
        load_grootv(path)


class Harmful:
    def __reduce__(self):
        return os.mkdir, (os.environ["GROOT_GRAPH_TEST_FOLDER"],)


def test_pickled_code_does_not_run(model, path, tmp_path, monkeypatch):
    folder = tmp_path / "made"
    monkeypatch.setenv("GROOT_GRAPH_TEST_FOLDER", str(folder))
    torch.save({"model": model.state_dict(), "config": Harmful()}, path)
    with pytest.raises(ValueError, match="must be a file of weights alone"):
        load_grootv(path)
    assert not folder.exists()
    pickle.loads(pickle.dumps(Harmful()))
    assert folder.exists()  # it would have been made


def test_settings_beside_published_weights_are_passed_over(model, path, monkeypatch):
    """The published training code stores its settings as yacs's CfgNode, a dict."""
    yacs, config = types.ModuleType("yacs"), types.ModuleType("yacs.config")
    CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    yacs.config, config.CfgNode = config, CfgNode
    settings = CfgNode(DEPTHS=[1, 2], NESTED=CfgNode(EPOCHS=300))
    settings.__dict__["frozen"] = True
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", yacs)
        patch.setitem(sys.modules, "yacs.config", config)
        torch.save({"model": model.state_dict(), "config": settings}, path)
    assert same(model, load_grootv(path))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"not a checkpoint"])
def test_damaged_files_are_refused(tmp_path, suffix, content):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="'path' must be a"):
        load_grootv(path)


def test_a_cut_off_file_is_refused(model, path):
    torch.save(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="'path' must be a"):
        load_grootv(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_missing_file_is_told(tmp_path, suffix):
    with pytest.raises(FileNotFoundError):
        load_grootv(tmp_path / f"none{suffix}")


def test_a_file_without_weights_is_refused(path):
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds no weights of GrootV"):
        load_grootv(path)
