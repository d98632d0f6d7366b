import json

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import regions, regions_peers
from experiments.mixers import EDGE_STEPS, MIXERS, TREE
from experiments.photographs import (
    Photograph,
    click,
    draw_tasks,
    intersection_over_union,
    load_photographs,
    read_photograph,
)
from experiments.regions import EXPERIMENT, VARIANTS, budget, make_network, run
from experiments.regions_peers import PEERS, labels_of
from experiments.runner import main
from experiments.training import num_parameters
from tests.equipment.photographs import write_photographs

OTHERS = TREE, "edge steps over the colors", regions.CONVOLUTIONS


@pytest.fixture(params=[False, True], ids=["folder", "archive"])
def folder(request, tmp_path):
    write_photographs(tmp_path, request.param)
    return tmp_path


@pytest.fixture
def data(tmp_path):
    write_photographs(tmp_path / "data", False)
    return tmp_path / "data"


def test_photographs_are_read_in_either_form(folder):
    photographs = load_photographs(folder, "train")
    assert [photograph.colors.shape for photograph in photographs] == 3 * [(3, 32, 48)]
    for photograph in photographs:
        assert photograph.regions.shape == (2, 32, 48)
        assert photograph.regions.sum(dim=0).eq(1).all()
        # The bright half is the one whose number is greater.
        dark, bright = (photograph.colors[:, region].mean() for region in photograph.regions)
        assert dark < 0.15 and bright > 0.6


def test_a_folder_without_photographs_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no photographs in"):
        load_photographs(tmp_path, "train")


def test_tiny_and_huge_regions_are_not_asked_for(tmp_path):
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(tmp_path / "0.jpg")
    numbers = np.ones((32, 48), np.uint16)
    numbers[:3, :3] = 2
    Image.fromarray(numbers).save(tmp_path / "0.png")
    assert len(read_photograph(tmp_path / "0.jpg", tmp_path / "0.png").regions) == 0


def test_clicks_lie_inside_and_outside():
    is_inside = torch.arange(32 * 48).view(1, 32, 48) % 48 < 20
    photograph = Photograph(torch.rand(3, 32, 48), is_inside)
    tasks = draw_tasks([photograph] * 4, [1, 3, 5, 5], torch.Generator().manual_seed(0))
    assert tasks.clicks.sum(dim=(2, 3)).tolist() == [[1, 1], [3, 3], [5, 5], [5, 5]]
    assert (tasks.clicks[:, 0].bool() & ~tasks.is_inside).sum() == 0
    assert (tasks.clicks[:, 1].bool() & tasks.is_inside).sum() == 0
    assert not tasks.clicks[2].equal(tasks.clicks[3])


def test_clicks_are_no_more_than_nodes():
    assert click(torch.eye(2, dtype=torch.bool), 5, torch.Generator()).sum() == 2


def test_intersection_over_union_by_hand():
    found = torch.tensor([[[True, True, False, False]], [[False] * 4]])
    is_inside = torch.tensor([[[False, True, True, False]], [[True] * 4]])
    assert intersection_over_union(found, is_inside).tolist() == pytest.approx([1 / 3, 0])


@pytest.mark.full
def test_networks_have_the_same_parameters_within_two_percent():
    counts = [num_parameters(make_network(variant)) for variant in VARIANTS]
    assert max(counts) <= budget and max(counts) <= 1.02 * min(counts)


def test_variants_compute_different_things():
    """The same weights as far as they go, and another answer."""
    colors, clicks = torch.rand(1, 3, 32, 48), torch.zeros(1, 2, 32, 48)
    clicks[0, 0, 9, 9] = clicks[0, 1, 20, 30] = 1
    found = []
    for make in MIXERS.values():
        torch.manual_seed(0)
        network = regions.TreeNetwork(make, 96).eval()
        reference = found[0][1] if found else network.state_dict()
        network.load_state_dict(reference, strict=False)
        with torch.no_grad():
            found.append((network(colors, clicks), reference))
    outputs = [output for output, _ in found]
    assert all(output.shape == (1, 32, 48) for output in outputs)
    for number, output in enumerate(outputs):
        assert not any(torch.allclose(output, other, atol=1e-6) for other in outputs[:number])


@pytest.mark.parametrize(
    "variant",
    [
        EDGE_STEPS,
        *(pytest.param(variant, marks=pytest.mark.full) for variant in OTHERS),
    ],
)
def test_a_run_follows_its_seed(variant, data, monkeypatch):
    monkeypatch.setattr(regions, "steps_per_check", 2)
    monkeypatch.setattr(regions, "most_steps", 4)
    results = [run(variant, seed, 1e-3, data) for seed in (0, 0, 1)]
    for result in results:
        assert result.pop("seconds") > 0
    assert results[0] == results[1]
    assert 0 <= results[0]["accuracy"] == results[0]["iou_3"] <= 1
    assert results[0]["steps_in_all"] == 4


def test_the_command_chooses_a_rate_and_goes_on(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(regions, "steps_per_check", 1)
    monkeypatch.setattr(regions, "most_steps", 1)
    files = ["--json", str(tmp_path / "runs.json"), "--plot", str(tmp_path / "plot.png")]
    options = ["--data", str(data), "--variant", EDGE_STEPS, *files]
    main(EXPERIMENT, [*options, "--seeds", "1"])
    runs = main(EXPERIMENT, [*options, "--seeds", "2"])
    assert len(runs) == len(regions.learning_rates) + 1
    assert "data" not in json.loads((tmp_path / "runs.json").read_text())["runs"][0]
    assert f"| {EDGE_STEPS} | " in capsys.readouterr().out
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_asks_for_data_where_runs_are_missing(tmp_path):
    with pytest.raises(SystemExit, match="--data FOLDER is needed, .* BSDS500"):
        main(EXPERIMENT, ["--json", str(tmp_path / "runs.json")])


@pytest.mark.parametrize("peer", PEERS)
def test_peers_find_a_half_of_one_color(peer, data):
    method, numbers = PEERS[peer]
    photograph = load_photographs(data, "test")[0]
    clicks = torch.zeros(2, 32, 48)
    clicks[0, 16, 8] = clicks[1, 16, 40] = 1
    colors = photograph.colors.permute(1, 2, 0).double().numpy()
    found = torch.from_numpy(method(colors, labels_of(clicks), numbers[-2]))
    left = torch.zeros(32, 48, dtype=torch.bool)
    left[:, :24] = True
    assert intersection_over_union(found[None], left[None]).item() > 0.9


def test_the_command_of_peers_chooses_their_numbers(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(regions_peers, "PEERS", {"watershed": PEERS["watershed"]})
    (result,) = main(
        regions_peers.EXPERIMENT,
        ["--data", str(data), "--json", str(tmp_path / "runs.json"), "--peer", "watershed"],
    )
    assert result["number"] in PEERS["watershed"][1] and result["iou_5"] > 0.5
    assert "| watershed | " in capsys.readouterr().out
