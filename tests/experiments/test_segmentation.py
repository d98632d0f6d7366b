from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import segmentation
from experiments.camvid import (
    CLASSES,
    VOID,
    Scenes,
    confusion,
    intersection_over_union,
    load_scenes,
)
from experiments.mixers import EDGE_STEPS, TREE
from experiments.runner import main
from experiments.segmentation import (
    EXPERIMENT,
    VARIANTS,
    batches,
    budget,
    loss_of,
    make_network,
    run,
    score,
)
from experiments.training import num_parameters, update
from tests.equipment.street_scenes import PARTS, ROAD, SKY, write_scenes

OTHERS = TREE, "edge steps over learned colors", segmentation.UNET


@pytest.fixture
def data(tmp_path):
    write_scenes(tmp_path / "data", False)
    return tmp_path / "data"


@pytest.mark.parametrize("is_tutorial", [False, True])
def test_scenes_are_read_in_either_form(is_tutorial, tmp_path):
    write_scenes(tmp_path, is_tutorial)
    scenes = load_scenes(tmp_path, "train")
    assert scenes.colors.shape == (PARTS["train"], 3, 120, 160)
    assert scenes.classes.unique().tolist() == [SKY, ROAD, VOID]
    brightness = scenes.colors.mean(dim=1)
    assert brightness[scenes.classes == SKY].min() > 0.6
    assert brightness[scenes.classes == ROAD].max() < 0.3


def test_a_folder_without_scenes_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no scenes in"):
        load_scenes(tmp_path, "train")


def test_numbers_that_are_no_classes_are_told(data):
    Image.fromarray(np.full((120, 160), 12, np.uint8)).save(data / "val" / "0.png")
    with pytest.raises(ValueError, match="must hold the numbers 0 to 11"):
        load_scenes(data, "val")


def test_intersection_over_union_by_hand():
    classes = torch.tensor([[0, 0, 1, 1, VOID]])
    counts = confusion(torch.tensor([[0, 1, 1, 4, 0]]), classes)
    assert counts.sum() == 4 and counts.shape == (len(CLASSES), len(CLASSES))
    assert counts[1, 4] == 1
    # The fourth class is found and does not occur.
    assert intersection_over_union(counts).tolist() == pytest.approx([1 / 2, 1 / 3])


@pytest.mark.full
def test_networks_have_the_same_parameters_within_two_percent():
    counts = [num_parameters(make_network(variant)) for variant in VARIANTS]
    assert max(counts) <= budget and max(counts) <= 1.02 * min(counts)


def test_a_mirrored_scene_keeps_its_classes(data):
    scenes = load_scenes(data, "train")
    before = scenes.colors.clone()
    batch = next(batches(scenes, torch.Generator().manual_seed(0)))
    assert scenes.colors.equal(before)
    bright = batch.colors.mean(dim=1) > 0.4
    assert bright[batch.classes == SKY].all() and not bright[batch.classes == ROAD].any()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_gives_each_pixel_its_classes(variant):
    torch.manual_seed(0)
    network = make_network(variant).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, 120, 160)).shape == (1, len(CLASSES), 120, 160)


def test_void_teaches_nothing():
    network = make_network(segmentation.UNET).eval()
    colors, classes = torch.rand(1, 3, 120, 160), torch.full((1, 120, 160), VOID)
    classes[:, :9] = SKY
    loss_of(network, Scenes(colors, classes)).backward()
    far = network.head.bias.grad.clone()
    classes[:, :9] = VOID
    classes[:, 60:] = SKY
    network.zero_grad()
    loss_of(network, Scenes(colors, classes)).backward()
    assert not network.head.bias.grad.equal(far)
    assert confusion(network(colors).argmax(1), torch.full_like(classes, VOID)).sum() == 0


@pytest.mark.full
def test_training_finds_sky_and_road(data):
    torch.manual_seed(0)
    network, scenes = make_network(EDGE_STEPS), load_scenes(data, "train")
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(9):
        update(network, optimizer, partial(loss_of, network, scenes))
    assert score(network, load_scenes(data, "test")) > 0.9


@pytest.mark.full
@pytest.mark.parametrize(
    "variant", [EDGE_STEPS, *(pytest.param(other, marks=pytest.mark.full) for other in OTHERS)]
)
def test_a_run_follows_its_seed(variant, data, monkeypatch):
    monkeypatch.setattr(segmentation, "steps_per_check", 2)
    monkeypatch.setattr(segmentation, "most_steps", 4)
    results = [run(variant, seed, 1e-3, data) for seed in (0, 0)]
    for result in results:
        assert result.pop("seconds") > 0
    assert results[0] == results[1] and results[0]["steps_in_all"] == 4


def test_the_command_chooses_a_rate(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(segmentation, "steps_per_check", 1)
    monkeypatch.setattr(segmentation, "most_steps", 1)
    files = ["--json", str(tmp_path / "runs.json"), "--plot", str(tmp_path / "plot.png")]
    runs = main(
        EXPERIMENT, ["--data", str(data), "--variant", segmentation.UNET, *files, "--seeds", "2"]
    )
    assert len(runs) == len(segmentation.learning_rates) + 1
    assert f"| {segmentation.UNET} | " in capsys.readouterr().out
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
