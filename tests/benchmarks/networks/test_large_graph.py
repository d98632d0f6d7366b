import json

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.harness import memory
from benchmarks.networks import large_graph
from benchmarks.networks.large_graph import (
    chunks,
    forest_at_once,
    forest_of_stream,
    training_step,
)
from groot_graph import minimum_spanning_forest

SMOKE = ["--smoke", "--op", "large_graph", "--repeats", "1"]


def test_chunks_hold_every_edge_once_and_are_the_same_each_time(monkeypatch):
    monkeypatch.setattr("benchmarks.networks.large_graph.CHUNK_SIZE", 30)
    found = list(chunks(50, 100))
    assert [weight.numel() for _, weight in found] == [30, 30, 30, 10]
    assert all(index.max() < 50 for index, _ in found)
    for (index, weight), (again, weight_again) in zip(found, chunks(50, 100), strict=True):
        assert index.equal(again) and weight.equal(weight_again)


def test_forests_span():
    assert forest_at_once(100)().sum() == 99
    assert forest_of_stream(100, 3000)().numel() == 99


def test_a_training_step_trains():
    torch.manual_seed(3)
    step = training_step(100, 16)
    first = step()
    assert all(step() < first for _ in range(5))


def test_a_stream_spans_what_all_its_edges_span(monkeypatch):
    monkeypatch.setattr(large_graph, "CHUNK_SIZE", 40)
    edge_index, weight = (torch.cat(parts, dim=-1) for parts in zip(*chunks(50, 200), strict=True))
    expected = weight[minimum_spanning_forest(edge_index, weight, 50)]
    assert forest_of_stream(50, 200)().sort().values.equal(expected.sort().values)


def test_every_row_takes_what_its_call_takes(tmp_path, monkeypatch):
    """In this process: every row has its own sizes, and its three figures are those measured."""
    asked = []

    def taken_alone(make, sizes, small):
        asked.append((make.__name__, sizes))
        assert make(*small)().numel() > 0
        return memory.Taken(2.0, 10, 100 + len(asked))

    monkeypatch.setattr(large_graph, "taken_alone", taken_alone)
    path = tmp_path / "results.json"
    for row in ("grid", "nodes, 2 random", "nodes, 8 random", "nodes, 32 random"):
        monkeypatch.setattr(
            large_graph,
            "in_fresh_processes",
            lambda function, ranks: [memory.Taken(rank[1], 5, rank[1]) for rank in ranks],
        )
        assert main([*SMOKE, "--row", row, "--json", str(path)]) == 0
    assert ("forest_at_once", (400,)) in asked and ("training_step", (400, 16)) in asked
    assert [sizes for name, sizes in asked if name == "forest_of_stream"] == [
        (400, 800), (400, 3200), (400, 12800)
    ]  # fmt: skip
    alone, group = (json.loads(path.read_text())["results"][first : first + 3] for first in (0, 3))
    assert [result["ours"] for result in alone] == [2.0, 10, 100 + len(asked)]
    # Of the process that takes most, each figure by itself.
    assert [result["ours"] for result in group] == [1, 5, 1]


@pytest.mark.full
def test_the_rows_run_in_processes_of_their_own(tmp_path):
    path = tmp_path / "results.json"
    assert main([*SMOKE, "--json", str(path)]) == 0
    results = json.loads(path.read_text())["results"]
    assert len(results) == 3 * 8
    for _, extra, whole in zip(results[::3], results[1::3], results[2::3], strict=True):
        assert whole["ours"] > extra["ours"]


def test_too_few_nodes_are_refused(capsys):
    with pytest.raises(SystemExit):
        main([*SMOKE, "--set", "num_nodes=3"])
    assert "num_nodes must be at least 4, got 3" in capsys.readouterr().err
