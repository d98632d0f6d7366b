import json

import pytest
import torch

from benchmarks.large_graph import (
    chunks,
    edges_per_node,
    forest_at_once,
    forest_of_stream,
    main,
    training_step,
)


def test_chunks_hold_every_edge_once_and_are_the_same_each_time(monkeypatch):
    monkeypatch.setattr("benchmarks.large_graph.chunk_size", 30)
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
    step = training_step(100)
    first = step()
    assert all(step() < first for _ in range(5))


@pytest.mark.full
def test_the_command_writes_what_it_prints(tmp_path, capsys):
    file = tmp_path / "results.json"
    results = main(["--nodes", "400", "--json", str(file)])
    assert json.loads(file.read_text())["results"] == results
    printed = capsys.readouterr().out
    assert len(results) == 2 + 2 * len(edges_per_node)
    for result in results:
        assert result["work"] in printed
        assert result["seconds"] > 0 and result["whole_bytes"] > result["extra_bytes"] >= 0


def test_too_few_nodes_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--nodes", "3"])
    assert "--nodes must be at least 4" in capsys.readouterr().err
