import re
import weakref

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from groot_graph import minimum_spanning_forest, minimum_spanning_forest_stream
from tests.equipment.graphs import to_edge_index
from tests.equipment.processes import free_port, leave_group
from tests.equipment.strategies import multigraphs


def expected_of(edge_index, edge_weight, num_nodes):
    kept = minimum_spanning_forest(edge_index, edge_weight, num_nodes)
    return edge_index[:, kept], edge_weight[kept], kept.nonzero().flatten()


def random_edges(num_nodes, num_edges, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(num_nodes, (2, num_edges), generator=generator)
    # Few values, so that many edges tie.
    return edge_index, torch.randint(9, (num_edges,), generator=generator).to(dtype)


def chunks_of(edge_index, edge_weight, sizes):
    return zip(edge_index.split(sizes, dim=1), edge_weight.split(sizes), strict=True)


def assert_same(found, expected):
    assert len(found) == len(expected) == 3
    for value, wanted in zip(found, expected, strict=True):
        assert value.equal(wanted) and value.dtype == wanted.dtype


@given(st.data())
def test_any_chunks_give_the_forest_of_all_edges(data):
    edges, num_nodes = data.draw(multigraphs())
    edge_index = to_edge_index(edges)
    num_edges = edge_index.size(1)
    weights = data.draw(st.lists(st.integers(0, 3), min_size=num_edges, max_size=num_edges))
    edge_weight = torch.tensor(weights, dtype=torch.float64)
    cuts = sorted(data.draw(st.lists(st.integers(0, num_edges), max_size=5)))
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, num_edges], strict=True)]
    found = minimum_spanning_forest_stream(chunks_of(edge_index, edge_weight, sizes), num_nodes)
    assert_same(found, expected_of(edge_index, edge_weight, num_nodes))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int32], ids=str)
@pytest.mark.parametrize("chunk", [1, 7, 60, 1000])
def test_chunks_of_any_size_and_dtype(chunk, dtype):
    edges = random_edges(60, 500, dtype)
    sizes = [min(chunk, 500 - start) for start in range(0, 500, chunk)]
    found = minimum_spanning_forest_stream(chunks_of(*edges, sizes), 60)
    assert_same(found, expected_of(*edges, 60))


def test_no_more_than_forest_and_chunks_is_held(monkeypatch):
    from groot_graph.ops.minimum_spanning_forest import stream

    num_nodes, chunk, sizes = 100, 30, []
    whole = stream.trusted_minimum_spanning_forest
    monkeypatch.setattr(
        stream,
        "trusted_minimum_spanning_forest",
        lambda index, *args: sizes.append(index.size(1)) or whole(index, *args),
    )
    edges = random_edges(num_nodes, 3000)
    minimum_spanning_forest_stream(chunks_of(*edges, [chunk] * 100), num_nodes)
    assert max(sizes) <= 2 * num_nodes + chunk
    # Not one for every chunk.
    assert len(sizes) <= 3000 / num_nodes + 1


def test_chunks_are_let_go_of_one_after_the_other():
    alive = []

    def chunks():
        for number in range(6):
            edges = random_edges(5, 10, seed=number)
            alive.append(sum(chunk() is not None for chunk in made))
            made.extend(weakref.ref(tensor) for tensor in edges)
            yield edges

    made: list[weakref.ref] = []
    minimum_spanning_forest_stream(chunks(), 5)
    # The last chunk alone, which the loops still name.
    assert max(alive) <= 2 and len(alive) == 6


@pytest.mark.parametrize("num_nodes", [5, 100])
def test_chunks_may_come_in_the_same_memory(num_nodes):
    edge_index, edge_weight = random_edges(num_nodes, 400)
    buffer = torch.empty(2, 20, dtype=torch.long), torch.empty(20)

    def chunks():
        for start in range(0, 400, 20):
            buffer[0].copy_(edge_index[:, start : start + 20])
            buffer[1].copy_(edge_weight[start : start + 20])
            yield buffer

    found = minimum_spanning_forest_stream(chunks(), num_nodes)
    assert_same(found, expected_of(edge_index, edge_weight, num_nodes))


def test_of_nothing():
    edge_index, edge_weight, edge_number = minimum_spanning_forest_stream([], 5)
    assert edge_index.shape == (2, 0) and edge_weight.shape == edge_number.shape == (0,)


def _in_process(rank, num_processes, port, folder):
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", address, rank=rank, world_size=num_processes)
    for case, (num_nodes, num_edges) in enumerate([(60, 500), (40, 3), (5, 0)]):
        edges = random_edges(num_nodes, num_edges)
        bounds = [num_edges * part // num_processes for part in range(num_processes + 1)]
        first, last = bounds[rank : rank + 2]
        part = edges[0][:, first:last], edges[1][first:last]
        half = (last - first) // 2
        chunks = [] if first == last else chunks_of(*part, [half, last - first - half])
        found = minimum_spanning_forest_stream(chunks, num_nodes, dist.group.WORLD)
        torch.save(found, f"{folder}/{case}-{rank}.pt")
    leave_group()


@pytest.mark.full
@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_processes_give_the_forest_of_all_their_edges(tmp_path, num_processes):
    arguments = num_processes, free_port(), tmp_path
    mp.spawn(_in_process, arguments, nprocs=num_processes)
    for case, (num_nodes, num_edges) in enumerate([(60, 500), (40, 3), (5, 0)]):
        expected = expected_of(*random_edges(num_nodes, num_edges), num_nodes)
        for rank in range(num_processes):
            assert_same(torch.load(tmp_path / f"{case}-{rank}.pt"), expected)


GOOD = torch.tensor([[0, 1], [1, 2]]), torch.ones(2)
# What each of two processes hands over, and what both are told.
FAILURES = {
    "a weight": ([[GOOD], [(GOOD[0], GOOD[1] * torch.nan)]], [3, 3], "chunk 0 of 'chunks'.*NaN"),
    "the source": ([[GOOD], None], [3, 3], "'chunks' must be an iterable"),
    "num_nodes": ([[GOOD], [GOOD]], [3, 6], r"'num_nodes' must be the same .*, got \[3, 6\]"),
    "dtypes": ([[GOOD], [(GOOD[0], GOOD[1].double())]], [3, 3], "one dtype in all processes"),
}


def _failing(rank, port, folder):
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", address, rank=rank, world_size=2)
    alone = dist.new_group([0])
    said = {}
    for name, (chunks, num_nodes, _) in FAILURES.items():
        try:
            minimum_spanning_forest_stream(chunks[rank], num_nodes[rank], dist.group.WORLD)
        except (TypeError, ValueError) as error:
            said[name] = str(error)
    for name, group in (("not a member", alone), ("not a group", 3)):
        try:
            minimum_spanning_forest_stream([GOOD], 3, group)
        except (TypeError, ValueError) as error:
            said[name] = str(error)
    torch.save(said, f"{folder}/{rank}.pt")
    leave_group()


@pytest.mark.full
def test_what_fails_in_one_process_fails_in_all(tmp_path):
    mp.spawn(_failing, (free_port(), tmp_path), nprocs=2)
    said = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, (_, _, message) in FAILURES.items():
        assert all(re.search(message, one[name]) for one in said)
    assert "'chunks' of process 1 failed with NotANumberError" in said[0]["a weight"]
    assert "not a member" not in said[0]
    assert "'group' must be" in said[1]["not a member"]
    assert all("'group' must be" in one["not a group"] for one in said)


@pytest.mark.parametrize(
    ("chunks", "num_nodes", "error", "message"),
    [
        ([GOOD], None, TypeError, "'num_nodes' must be an int, got None"),
        ([GOOD], -1, ValueError, "'num_nodes' must not be negative, got -1"),
        ([GOOD], 2, ValueError, "node numbers from 0 to num_nodes - 1 = 1, got 2"),
        ([GOOD[0]], 3, TypeError, r"chunk 0 .* a pair \(edge_index, edge_weight\), got Tensor"),
        ([(*GOOD, 1)], 3, TypeError, r"a pair \(edge_index, edge_weight\), got tuple of 3"),
        ([(GOOD[0], GOOD[1][:1])], 3, ValueError, "'edge_weight' must have shape"),
        ([GOOD, (GOOD[0], torch.ones(2).double())], 3, ValueError, "the dtype of the first, .*32"),
        (
            [GOOD, (GOOD[0], torch.tensor([1, torch.nan]))],
            3,
            ValueError,
            "chunk 1 .* NaN at edge 1",
        ),
        (3, 3, TypeError, "'chunks' must be an iterable of pairs .*, got int"),
    ],
)
def test_bad_input_is_refused(chunks, num_nodes, error, message):
    with pytest.raises(error, match=message):
        minimum_spanning_forest_stream(chunks, num_nodes)
