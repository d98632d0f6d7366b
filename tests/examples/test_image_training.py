import json
import math
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file

from examples import image_training
from examples.image_training import main
from groot_graph.models import grootv_micro, load_grootv
from tests.equipment.examples import EXAMPLES, copy_images, same, save_stripes
from tests.equipment.failing import fails

import image_sets

# With all that the recipe draws at random: crops, RandAugment, mixing, erasing, skipped blocks.
SETTINGS = {
    "--model": "grootv_micro",
    "--image-size": 32,
    "--epochs": 2,
    "--warmup-epochs": 1,
    "--batch-size": 4,
    "--workers": 0,
    "--drop-path": 0.2,
    "--ema-decay": 0.9,
    "--checkpoint-steps": 2,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    save_stripes(folder / "train", 5, 36, random)
    save_stripes(folder / "val", 2, 36, random)
    (folder / "val" / "noise" / "0.png").unlink()
    return folder


@pytest.fixture(autouse=True)
def clean_state(tmp_path_factory, monkeypatch):
    """Nothing is cached elsewhere, and accelerate forgets the settings of the last run."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    forget_accelerate()
    yield
    forget_accelerate()


def forget_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def options(data, output, **changed):
    settings = SETTINGS | {"--" + key.replace("_", "-"): value for key, value in changed.items()}
    given = [f"{name}={value}" for name, value in settings.items()]
    return [*given, f"--data={data}", f"--output={output}"]


@pytest.fixture
def train(photos, tmp_path):
    def run(*flags, output="out", data=photos, **changed):
        forget_accelerate()
        return main([*options(data, tmp_path / output, **changed), *flags])

    return run


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """The folder of a run from start to end."""
    output = tmp_path_factory.mktemp("whole")
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "cache")
    threads = torch.get_num_threads()
    forget_accelerate()
    main(options(photos, output))
    forget_accelerate()
    torch.set_num_threads(threads)
    patch.undo()
    return output


def read(path):
    return torch.load(path, weights_only=True)


def timeless(checkpoint):
    """A checkpoint without the only thing in it that hangs on the clock."""
    for line in checkpoint["history"]:
        assert line.pop("images_per_second") > 0
    return checkpoint


def assert_same_run(output, whole):
    a, b = (timeless(read(folder / "checkpoint.pt")) for folder in (output, whole))
    assert same(a, b)
    for name in ("model.safetensors", "ema.safetensors"):
        assert (output / name).read_bytes() == (whole / name).read_bytes()
    assert len((output / "metrics.jsonl").read_text().splitlines()) == 2


def test_files_and_metrics(whole):
    assert sorted(path.name for path in whole.iterdir()) == [
        "checkpoint.pt",
        "curve.png",
        "ema.safetensors",
        "metrics.jsonl",
        "model.safetensors",
        "settings.json",
    ]
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 3), (2, 6)]
    for line in lines:
        assert line["val_images"] == 5
        # Hardly trained: near the loss of a guess among three classes.
        assert line["train_loss"] == pytest.approx(math.log(3), abs=0.5)
    settings = json.loads((whole / "settings.json").read_text())
    assert settings["classes"] == ["lying", "noise", "standing"]
    assert settings["randaugment"] == 9 and settings["epochs"] == 2
    with Image.open(whole / "curve.png") as picture:
        assert picture.width > 500


def evaluate(model, photos):
    """The accuracy on the val folder, one image at a time and without the example's loaders."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (image_sets.mean, image_sets.std))
    settings = image_training.published | {"image_size": 32}
    images = image_sets.ImageSet(None, settings, is_training=False)
    hits = []
    for number, name in enumerate(["lying", "noise", "standing"]):
        for file in sorted((photos / "val" / name).iterdir()):
            with Image.open(file) as image:
                image = images.fit(image.convert("RGB"))
            with torch.no_grad():
                logits = model.eval()(((image / 255 - mean) / std)[None])
            hits.append(int(logits.argmax()) == number)
    return sum(hits) / len(hits)


@pytest.mark.parametrize("name", ["model", "ema"])
def test_the_weights_are_what_was_measured(whole, photos, name):
    model = load_grootv(whole / f"{name}.safetensors")
    checkpoint = read(whole / "checkpoint.pt")
    stored = checkpoint["network"]
    if name == "ema":
        stored = {
            key.removeprefix("module."): value
            for key, value in checkpoint["ema"].items()
            if key != "n_averaged"
        }
    assert same(dict(model.state_dict()), dict(stored))
    key = {"model": "val_top1", "ema": "ema_val_top1"}[name]
    assert evaluate(model, photos) == pytest.approx(checkpoint["history"][-1][key])


@pytest.mark.full
def test_the_same_seed_gives_the_same_bits(train, whole, tmp_path):
    # Also with other processes reading the images.
    train(workers=2)
    assert_same_run(tmp_path / "out", whole)
    train(output="other", seed=1)
    assert not same(load_file(whole / "model.safetensors"),
                    load_file(tmp_path / "other" / "model.safetensors"))  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("calls", [5, 6], ids="stopped in batch {}".format)
def test_an_interrupted_run_goes_on_to_the_same_bits(
    train, whole, tmp_path, monkeypatch, capsys, calls
):
    made = []
    train_batch = image_training.Training.train_batch

    def interrupted(*arguments):
        made.append(1)
        if len(made) == calls + 1:
            raise KeyboardInterrupt
        return train_batch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(image_training.Training, "train_batch", interrupted)
        if calls < 6:
            with pytest.raises(SystemExit) as exit_info:
                train()
            assert exit_info.value.code == 130
            assert "--resume" in capsys.readouterr().err
        else:
            train()
    train("--resume")
    assert_same_run(tmp_path / "out", whole)


@pytest.mark.full
def test_accumulated_gradients_resume_as_well(train, tmp_path, monkeypatch):
    train(accumulation=2, output="whole")
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    # Three batches of an epoch are two steps.
    assert [json.loads(line)["step"] for line in lines] == [2, 4]

    save = image_training.Training.save

    def stop_in_the_second_epoch(training):
        save(training)
        if (training.epoch, training.batch) == (1, 2):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(image_training.Training, "save", stop_in_the_second_epoch)
        train(accumulation=2)
    train("--resume", accumulation=2)
    a, b = (timeless(read(tmp_path / name / "checkpoint.pt")) for name in ("out", "whole"))
    assert same(a, b)


def environment():
    paths = [str(EXAMPLES.parent), str(EXAMPLES), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


KILLED = """
import os, signal, sys
from examples import image_training

replace, writes = os.replace, []

def killing_replace(source, target):
    writes.append(target)
    # The fourth checkpoint, in the second epoch, is written but not yet in its place.
    if sum(path.name == "checkpoint.pt" for path in writes) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = killing_replace
image_training.main(sys.argv[1:])
"""


@pytest.mark.full
@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no SIGKILL")
def test_a_killed_run_goes_on_to_the_same_bits(train, photos, whole, tmp_path):
    # Settled by three steps, the kill comes while the checkpoint of step five is written.
    command = [sys.executable, "-c", KILLED, *options(photos, tmp_path / "out")]
    result = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True)
    assert result.returncode == -9
    left = read(tmp_path / "out" / "checkpoint.pt")
    assert (left["epoch"], left["batch"]) == (1, 2)
    assert (tmp_path / "out" / "checkpoint.pt.tmp").exists()
    train("--resume")
    assert_same_run(tmp_path / "out", whole)


TWO_PROCESSES = """
import sys, torch
from examples import image_training

training = image_training.main(sys.argv[2:])
rank = training.accelerator.process_index
content = {"network": training.network.state_dict(), "ema": training.ema.state_dict()}
torch.save(content, f"{sys.argv[1]}/rank{rank}.pt")
"""


@pytest.mark.full
def test_two_processes(photos, tmp_path):
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", tmp_path / "script.py", tmp_path]
    command += options(photos, tmp_path / "out", batch_size=2, epochs=2)
    result = subprocess.run(
        command, env=environment(), cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    # Only one of them speaks.
    assert result.stdout.count("held-out top-1 of the weights") == 1
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["processes"] == 2

    ranks = [read(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    assert same(*ranks)
    last = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    # 15 images in steps of 2 x 2; the 5 of val are not to be divided evenly.
    assert last["step"] == 6
    assert last["val_images"] == 5
    model = load_grootv(tmp_path / "out" / "model.safetensors")
    assert same(dict(model.state_dict()), dict(ranks[0]["network"]))
    assert evaluate(model, photos) == pytest.approx(last["val_top1"])


@pytest.mark.full
def test_bf16(train, tmp_path):
    training = train("--mixed-precision=bf16", epochs=2)
    assert training.network.head.weight.dtype == torch.float32
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["mixed_precision"] == "bf16"
    with torch.no_grad():
        images = torch.randn(2, 3, 32, 32)
        rounded = training.model(images)
        forget_accelerate()
        exact = load_grootv(tmp_path / "out" / "model.safetensors").eval()(images)
    assert 0 < (rounded - exact).abs().max() < 0.1


@pytest.mark.full
def test_digits(tmp_path, capsys):
    training = main(["--epochs=1", "--warmup-epochs=0", f"--output={tmp_path}"])
    printed = capsys.readouterr()
    result = training.history[-1]
    assert result["val_images"] == 450
    # Far from the full training, and far from guessing.
    assert result["val_top1"] > 0.6
    assert result["val_top5"] > result["val_top1"]
    assert f"held-out top-1 of the weights: {100 * result['val_top1']:.2f} %" in printed.out
    assert "1344/1344" in printed.err  # the progress bar


def test_one_folder_is_split(photos, train):
    training = train(data=photos / "train", held_out=0.4, epochs=2)
    assert training.config["train_images"] == 9
    assert training.history[-1]["val_images"] == 6


def test_drop_path_and_rate_of_the_recipe():
    for name, rate in {"tiny": 0.1, "small": 0.3, "base": 0.5}.items():
        _, settings = image_training.parse_arguments(["--data=x", f"--model=grootv_{name}"])
        assert settings["drop_path"] == rate
    _, settings = image_training.parse_arguments(["--data=x", "--drop-path=0.2"])
    assert settings["drop_path"] == 0.2


@pytest.mark.full
def test_the_learning_rate_follows_the_images_of_a_step(train):
    training = train(lr=1e-2, min_lr=1e-3, warmup_lr=1e-4, accumulation=2, epochs=3)
    rates = [line["lr"] for line in training.history]
    # 4 images, twice, instead of 512.
    assert rates[0] == pytest.approx(1e-2 * 8 / 512, rel=0.2)
    assert rates[0] > rates[1] > rates[2] >= 1e-3 * 8 / 512


def test_norms_biases_and_state_matrices_do_not_decay():
    network = grootv_micro(3)
    names = {parameter: name for name, parameter in network.named_parameters()}
    decayed, plain = image_training.parameter_groups(network, 0.05)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0)
    decayed, plain = ({names[p] for p in group["params"]} for group in (decayed, plain))
    assert decayed | plain == set(names.values())
    assert all(name.endswith("weight") and "norm" not in name for name in decayed)
    assert all(name.endswith(("bias", "A_log", "ssm.D")) or "norm" in name for name in plain)


def test_a_missing_checkpoint(train, tmp_path, capsys):
    wanted = tmp_path / "out" / "checkpoint.pt"
    fails(capsys, lambda: train("--resume"), wanted, "no checkpoint to resume from")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def trained(whole, tmp_path):
    """A checkpoint to spoil."""
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "checkpoint.pt"
    path.write_bytes((whole / "checkpoint.pt").read_bytes())
    return path


def test_a_checkpoint_is_not_overwritten_by_a_new_run(train, trained, capsys):
    before = trained.read_bytes()
    fails(capsys, train, trained, "exists: --resume goes on")
    assert trained.read_bytes() == before


def flip_a_bit(path):
    weight = read(path)["network"]["head.weight"].numpy().tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(weight) + 5] ^= 1
    path.write_bytes(content)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        flip_a_bit,
        lambda path: torch.save({"epoch": 1}, path),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({**read(path), "network": {}}, path),
        lambda path: torch.save({**read(path), "epoch": Malicious()}, path),
    ],
    ids=["empty", "cut", "one bit", "other keys", "a list", "no weights", "code"],
)
def test_a_damaged_checkpoint(train, trained, capsys, monkeypatch, tmp_path, damage):
    monkeypatch.chdir(tmp_path)
    damage(trained)
    before = trained.read_bytes()
    fails(capsys, lambda: train("--resume"), trained, "damaged")
    assert trained.read_bytes() == before
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epochs": 3}, "made with epochs 2, this run has 3"),
        ({"drop_path": 0.3}, "made with drop_path 0.2, this run has 0.3"),
        ({"seed": 4}, "made with seed 0, this run has 4"),
    ],
    ids=["epochs", "drop path", "seed"],
)
def test_other_settings(train, trained, capsys, changed, message):
    before = trained.read_bytes()
    fails(capsys, lambda: train("--resume", **changed), trained, message)
    assert trained.read_bytes() == before


@pytest.fixture
def copy(photos, tmp_path):
    return copy_images(photos, tmp_path / "copy")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("part", ["train", "val"])
def test_an_unreadable_image(train, copy, capsys, workers, part):
    file = copy / part / "standing" / "1.png"
    file.write_bytes(file.read_bytes()[:100])
    run = lambda: train(data=copy, workers=workers, batch_size=15)  # noqa: E731
    fails(capsys, run, f"error: {file}: unreadable image")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (None, "no such folder"),
        ([], "no images in sub-folders"),
        (["one"], "at least two classes, found 1: ['one']"),
    ],
    ids=["missing", "empty", "one class"],
)
def test_folders_that_do_not_fit(train, tmp_path, capsys, folders, message):
    data = tmp_path / "data"
    if folders is not None:
        data.mkdir()
    for name in folders or []:
        (data / name).mkdir()
        for number in range(4):
            Image.new("RGB", (40, 40)).save(data / name / f"{number}.png")
    fails(capsys, lambda: train(data=data), message)
    assert not (tmp_path / "out").exists()


def test_a_class_without_images_to_train_on(train, copy, capsys):
    for file in (copy / "train" / "noise").iterdir():
        file.unlink()
    fails(capsys, lambda: train(data=copy), "class 'noise' has no images to train on")


def test_too_few_images(train, photos, capsys):
    message = "--batch-size 16 on 1 process(es) needs more than the 15 images"
    fails(capsys, lambda: train(batch_size=16), message)
    few = lambda: train(data=photos / "train", held_out=0.01)  # noqa: E731
    fails(capsys, few, "cannot hold out images of every class")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--dataset=folder"], "--data DIR and --dataset folder belong together"),
        (["--dataset=digits", "--data=x"], "--data DIR and --dataset folder belong together"),
        (["--image-size=16"], "--image-size must lie from 32 to 4096, got 16"),
        (["--lr=nan"], "--lr must lie from 0 to"),
        (["--warmup-epochs=20"], "--warmup-epochs below --epochs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_do_not_fit(capsys, given, message):
    fails(capsys, lambda: main(given), message)


def test_a_loss_that_explodes(train, tmp_path, capsys):
    fails(capsys, lambda: train(lr=1e3, clip=0, epochs=3, warmup_lr=1e3), "try a lower --lr")
