import json

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.harness.memory import Taken
from benchmarks.harness.registry import rows_of
from benchmarks.networks import long_range
from benchmarks.networks.long_range import MODELS, make_step, make_warm_step
from experiments.long_range import TASKS
from experiments.networks import OURS

SMOKE = ["--smoke", "--op", "long_range", "--repeats", "1"]


def of_model(make, sizes, small):
    """What stands for the memory of each model."""
    return Taken(1.0, 1000 + list(MODELS).index(sizes[-1]), 0)


@pytest.mark.full
def test_every_row_is_of_all_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(long_range, "taken_alone", of_model)
    path = tmp_path / "results.json"
    options = ["--row", "tree", "--set", "distances=(2,)", "--json", str(path)]
    assert main([*SMOKE, *options]) == 0
    results = json.loads(path.read_text())["results"]
    title = "training step on 2 graphs, tree"
    assert [result["work"] for result in results] == [
        f"{title}, distance 2",
        f"{title}, distance 2, peak extra memory",
    ]
    peers = [model for model in MODELS if model != OURS]
    for result in results:
        assert list(result["samples"]) == ["ours", *peers]
    expected = {model: [1000 + list(MODELS).index(model)] for model in peers}
    for memory in results[1::2]:
        assert memory["samples"] == {"ours": [1000], **expected}


def test_every_task_has_a_row_of_its_distances():
    rows = {row.full.get("task"): row for row in rows_of("networks") if row.op == "long_range"}
    assert rows.keys() == {*TASKS, None}
    assert all(rows[name].full["distances"] == task.distances for name, task in TASKS.items())


def test_a_step_trains_on_its_graphs():
    torch.manual_seed(0)
    step = make_step("ring", 5, 4, OURS)
    losses = [step().item() for _ in range(20)]
    assert losses[-1] < losses[0]


@pytest.mark.full
def test_memory_grows_with_the_graphs():
    small = "ring", 5, 1, "GCN"
    few, many = (
        long_range.taken_alone(make_warm_step, ("ring", 50, graphs, "GCN"), small).extra_bytes
        for graphs in (8, 64)
    )
    # Fifty layers hold at least one row of floats per node: 100 nodes, over 30 channels.
    assert many - few > 56 * 100 * 30 * 4 * 50


@pytest.mark.full
def test_rings_are_measured_per_node(tmp_path):
    path = tmp_path / "results.json"
    assert main([*SMOKE, "--row", "one ring", "--json", str(path)]) == 0
    first, second = json.loads(path.read_text())["results"]
    assert (first["num_nodes"], second["num_nodes"]) == (20, 40)
    assert first["ratio"] == 1 and first["unit"] == "s/node"
