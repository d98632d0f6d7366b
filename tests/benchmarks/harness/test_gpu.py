"""The rows on a GPU, as far as they run without one: on the CPU, under its clock."""

import json
from pathlib import Path

import pytest
import torch

import groot_graph
from benchmarks.__main__ import main
from benchmarks.harness import gpu, machine, timing
from benchmarks.harness.graphs import grids
from benchmarks.harness.registry import rows_of

ROOT = Path(__file__).parents[3]
GPU = {
    "name": "a GPU",
    "memory": 80 * 10**9,
    "driver": "580.1",
    "cuda": "13.0",
    "cupy": "14.0",
    "copy_bandwidth": 2.9e12,
}


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(gpu, "event_seconds", timing.wall_seconds)
    monkeypatch.setattr(gpu, "captured", lambda call: call)
    monkeypatch.setattr(gpu, "host_seconds", timing.wall_seconds)
    monkeypatch.setattr(gpu, "missing", lambda: None)
    monkeypatch.setattr(gpu, "COPY_BYTES", 1024)
    monkeypatch.setattr(machine, "_gpu", lambda: GPU)
    monkeypatch.setattr(timing, "LEAD_IN_SECONDS", 0.0)


@pytest.mark.full
def test_smoke_run_has_every_row(without_gpu, tmp_path, capsys):
    file = tmp_path / "results.json"
    argv = ["--device", "cuda", "--smoke", "--repeats", "2", "--json", str(file)]
    assert main(argv) == 0
    content = json.loads(file.read_text())
    assert (content["machine"]["device"], content["machine"]["gpu"]) == ("cuda", GPU)
    found = {(result["op"], result["row"]) for result in content["results"]}
    rows = [row for row in rows_of("ops") if row.device == "cuda"]
    assert found == {(row.op, row.name(smoke=True)) for row in rows}
    for result in content["results"]:
        assert len(result["samples"]["ours"]) == 2
        assert result["met"] is None
    assert capsys.readouterr().out.startswith("a GPU, 80 GB")


def test_launches_are_measured_and_graphs_printed(without_gpu):
    called, replayed = gpu.measure([lambda: None], 3, {"peer": lambda: None})
    assert called.judged and not replayed.judged
    assert replayed.work == gpu.REPLAY
    for measured in (called, replayed):
        assert len(measured.ours) == 3 and set(measured.peers) == {"peer"}


@pytest.mark.full
def test_wrong_result_ends_the_run(without_gpu, monkeypatch, capsys):
    right = groot_graph.minimum_spanning_forest
    calls = iter(range(100))
    monkeypatch.setattr(
        groot_graph,
        "minimum_spanning_forest",
        lambda *args: right(*args) ^ (next(calls) % 2 == 0),
    )
    assert main(["--device", "cuda", "--smoke", "--op", "minimum_spanning_forest"]) == 1
    assert "edges of the spanning forest, on the GPU and on the CPU" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_refused_without_a_gpu(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--device", "cuda"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert "--device cuda needs a GPU" in error and "Traceback" not in error


def test_refused_without_cupy(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as exit_:
        main(["--device", "cuda"])
    assert exit_.value.code == 2
    assert "--device cuda needs CuPy: pip install 'groot-graph[cuda12]'" in capsys.readouterr().err


def test_calls_take_turns():
    call = gpu.in_turn([lambda: "a", lambda: "b"])
    assert "".join(call() for _ in range(5)) == "ababa"


def test_input_sets_are_more_than_a_cache_holds(monkeypatch):
    graph = grids(2, 7, 7)
    size = gpu.num_bytes(graph.edge_index, graph.edge_weight)
    assert size == 20 * graph.edge_index.size(1)
    for cache_bytes, number in ((1, 1), (size, 1), (3 * size - 1, 3), (10**9, gpu.MOST_SETS)):
        monkeypatch.setattr(gpu, "CACHE_BYTES", cache_bytes)
        sets = gpu.input_sets(lambda seed: grids(2, 7, 7, seed))
        assert len(sets) == number
    assert not torch.equal(sets[0].edge_weight, sets[1].edge_weight)


def test_our_kernels_are_those_of_the_sources():
    names = gpu.our_kernels()
    assert {"find_lowest", "cut_tiers", "reduce_input", "finish_input"} <= names
    text = "".join(path.read_text() for path in (ROOT / "cuda").glob("*.cu*"))
    assert len(names) <= text.count("__global__")
    assert all(f"{name}(" in text for name in names)


KERNELS = [
    {"name": "finish_input", "launches": 2.0, "seconds": 3e-3},
    {"name": "cub::sort", "launches": 1.0, "seconds": 1e-3},
]


@pytest.mark.parametrize(
    ("kernels", "text"),
    [
        (
            KERNELS,
            "the CPU alone takes 2 ms, the kernels 4 ms in 3 launches, 25% of it outside ours "
            "(PyTorch's sorts and running sums count as outside); most: finish_input 3 ms, "
            "cub::sort 1 ms",
        ),
        ([], "the CPU alone takes 2 ms; PyTorch's profiler saw no kernel"),
    ],
)
def test_a_profile_in_words(kernels, text):
    assert gpu.told({"host_seconds": 2e-3, "kernels": kernels}) == text


def test_a_profile_stands_beside_its_row(without_gpu, monkeypatch):
    monkeypatch.setattr(gpu, "kernels_of", lambda call: KERNELS)
    called, replayed = gpu.measure([lambda: None], 3)
    assert called.details["kernels"] == KERNELS and called.details["host_seconds"] >= 0
    assert called.note == gpu.told(called.details)
    assert not replayed.note and not replayed.details
