import pytest
import torch

from experiments import digits
from experiments.digits import EXPERIMENT, MIXERS, PLACES, ROWS, TREE, make_network, run
from experiments.runner import main
from experiments.training import num_parameters
from groot_graph.models.click_segmenter import place_of


@pytest.fixture
def few_images(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    part = torch.rand(12, 1, 28, 28, generator=draw), torch.arange(12) % 10
    monkeypatch.setattr(digits, "load_parts", lambda: [part, part, part])
    monkeypatch.setattr(digits, "steps_per_check", 1)
    monkeypatch.setattr(digits, "most_steps", 2)
    return part


def test_the_parts_share_no_image():
    parts = digits.load_parts()
    assert [len(labels) for _, labels in parts] == [2777, 556, 1667]
    images = torch.cat([images for images, _ in parts]).flatten(1)
    assert len(images.unique(dim=0)) == len(images)


@pytest.mark.full
def test_all_networks_are_of_one_size():
    found = [num_parameters(make_network(*cell)) for cell in cells()]
    assert max(found) <= 1.02 * min(found)


def cells():
    return [(variant, place) for variant in MIXERS for place in PLACES]


def test_place_is_row_and_column():
    place = place_of(torch.zeros(2, 1, 3, 5))
    assert place.shape == (2, 2, 3, 5)
    assert place[0, :, 0, 0].tolist() == [-1, -1] and place[1, :, 2, 4].tolist() == [1, 1]
    assert place[0, :, 1, 2].tolist() == [0, 0]


@pytest.mark.full
def test_all_networks_compute_different_things(few_images):
    images, _ = few_images
    found = []
    for cell in cells():
        torch.manual_seed(0)
        found.append(make_network(*cell).eval()(images).flatten())
    distance = torch.cdist(torch.stack(found), torch.stack(found))
    assert (distance + torch.eye(len(found)) > 1e-4).all()


def test_without_a_place_the_inputs_of_places_are_silent(few_images):
    images, _ = few_images
    for place, is_silent in zip(PLACES, (True, False), strict=True):
        network = make_network(ROWS, place)
        network(images).sum().backward()
        assert network.stem.weight.grad[:, 1:].eq(0).all() == is_silent


@pytest.mark.full
def test_a_run_follows_its_seed(few_images):
    found = [run(TREE, "place", seed, 4e-3) for seed in (0, 0, 1, 2, 3)]
    for result in found:
        assert result.pop("seconds") > 0
    assert found[0] == found[1]
    assert any(result != found[0] for result in found[2:])


def test_the_command_prints_what_it_found(few_images, tmp_path, capsys):
    files = ["--json", str(tmp_path / "runs.json"), "--plot", str(tmp_path / "plot.png")]
    argv = ["--seeds", "2", "--variant", TREE, "--variant", ROWS, "--place", "place", *files]
    runs = main(EXPERIMENT, argv)
    assert len(runs) == 8
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert f"| {TREE}, place | " in capsys.readouterr().out
