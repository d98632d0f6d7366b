import json

import pytest
import torch

from experiments import vision
from experiments.mixers import raster_chains
from experiments.runner import main
from experiments.vision import (
    EXPERIMENT,
    TREE,
    VARIANTS,
    Network,
    run,
    table,
)


@pytest.fixture
def images(monkeypatch):
    """A few images, learnt from and held out, in place of MNIST."""
    draw = torch.Generator().manual_seed(0)
    part = torch.rand(12, 1, 28, 28, generator=draw), torch.arange(12) % 10
    monkeypatch.setattr(vision, "load_images", lambda: (part, part))
    return part, part


def make(variant: str) -> Network:
    torch.manual_seed(0)
    return Network(variant).eval()


def test_variants_have_the_same_initial_weights():
    reference = make(TREE).state_dict()
    for variant in VARIANTS:
        weights = make(variant).state_dict()
        assert weights.keys() == reference.keys()
        assert all(weights[name].equal(value) for name, value in reference.items()), variant


def test_variants_compute_different_things(images):
    (x, _), _ = images
    with torch.no_grad():
        logits = {variant: make(variant)(x) for variant in VARIANTS}
    names = list(logits)
    for number, name in enumerate(names):
        for other in names[:number]:
            assert not torch.allclose(logits[name], logits[other], atol=1e-6), (name, other)


def test_raster_chainss_are_chains_of_the_rows_and_columns():
    u = torch.zeros(2, 2, 3, 1)
    rows, columns = raster_chains(u), raster_chains(u, by_column=True)
    assert rows.parent.tolist() == [1, 2, 3, 4, 5, 5, 7, 8, 9, 10, 11, 11]
    assert columns.parent.tolist() == [3, 4, 5, 1, 2, 5, 9, 10, 11, 7, 8, 11]


def test_a_run_depends_on_its_seed_alone(images):
    results = [run(TREE, seed, 1) for seed in (0, 0, 1)]
    for result in results:
        assert result.pop("seconds") > 0
    assert results[0] == results[1]
    assert results[0]["train_loss"] != results[2]["train_loss"]
    assert results[0]["num_parameters"] == sum(value.numel() for value in make(TREE).parameters())


def test_goes_on_where_it_stopped(images, tmp_path, capsys):
    files = ["--json", str(tmp_path / "a" / "runs.json"), "--plot", str(tmp_path / "plot.png")]
    options = ["--epochs", "1", "--variant", TREE, *files]
    first = main(EXPERIMENT, ["--seeds", "1", *options])
    both = main(EXPERIMENT, ["--seeds", "2", "--variant", "no propagation", *options])
    assert both[0] == first[0] and len(both) == 4
    assert json.loads((tmp_path / "a" / "runs.json").read_text())["runs"] == both
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert f"| {TREE} | " in capsys.readouterr().out


def test_table_has_means_deviations_and_paired_differences():
    def result(variant, seed, accuracy):
        return {"variant": variant, "seed": seed, "accuracy": accuracy, "num_parameters": 1234}

    name = "no propagation"
    runs = [
        result(TREE, 0, 0.90), result(TREE, 1, 0.94), result(name, 0, 0.88), result(name, 1, 0.91),
    ]  # fmt: skip
    lines = table(runs).splitlines()
    assert lines[-2:] == [
        f"| {TREE} | 92.00 ± 2.83 |  | 2 | 1,234 |",
        f"| {name} | 89.50 ± 2.12 | -2.50 ± 0.71 | 2 | 1,234 |",
    ]
