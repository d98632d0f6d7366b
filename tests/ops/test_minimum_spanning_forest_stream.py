import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from groot_graph import minimum_spanning_forest, minimum_spanning_forest_stream
from tests.graphs import multigraphs, to_edge_index


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


@settings(max_examples=200)
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
    whole = stream.minimum_spanning_forest
    monkeypatch.setattr(
        stream,
        "minimum_spanning_forest",
        lambda index, *args: sizes.append(index.size(1)) or whole(index, *args),
    )
    edges = random_edges(num_nodes, 3000)
    minimum_spanning_forest_stream(chunks_of(*edges, [chunk] * 100), num_nodes)
    assert max(sizes) <= 2 * num_nodes + chunk
    # Not one for every chunk.
    assert len(sizes) <= 3000 / num_nodes + 1


def test_chunks_are_read_one_after_the_other():
    read = []

    def chunks():
        for number in range(4):
            read.append(number)
            yield random_edges(5, 10, seed=number)

    minimum_spanning_forest_stream(chunks(), 5)
    assert read == [0, 1, 2, 3]


def test_of_nothing():
    edge_index, edge_weight, edge_number = minimum_spanning_forest_stream([], 5)
    assert edge_index.shape == (2, 0) and edge_weight.shape == edge_number.shape == (0,)


def _in_process(rank, num_processes, port, folder):
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", address, rank=rank, world_size=num_processes)
    try:
        for case, (num_nodes, num_edges) in enumerate([(60, 500), (40, 3), (5, 0)]):
            edges = random_edges(num_nodes, num_edges)
            bounds = [num_edges * part // num_processes for part in range(num_processes + 1)]
            first, last = bounds[rank : rank + 2]
            part = edges[0][:, first:last], edges[1][first:last]
            half = (last - first) // 2
            chunks = [] if first == last else chunks_of(*part, [half, last - first - half])
            found = minimum_spanning_forest_stream(chunks, num_nodes, dist.group.WORLD)
            torch.save(found, f"{folder}/{case}-{rank}.pt")
        # Gloo of torch 2.6 hangs where a group is destroyed that has just sent something.
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_processes_give_the_forest_of_all_their_edges(tmp_path, num_processes):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_in_process, (num_processes, port, tmp_path), nprocs=num_processes)
    for case, (num_nodes, num_edges) in enumerate([(60, 500), (40, 3), (5, 0)]):
        expected = expected_of(*random_edges(num_nodes, num_edges), num_nodes)
        for rank in range(num_processes):
            assert_same(torch.load(tmp_path / f"{case}-{rank}.pt"), expected)


GOOD = torch.tensor([[0, 1], [1, 2]]), torch.ones(2)


@pytest.mark.parametrize(
    ("chunks", "num_nodes", "error", "message"),
    [
        ([GOOD], None, TypeError, "'num_nodes' must be an int, got None"),
        ([GOOD], -1, ValueError, "'num_nodes' must not be negative, got -1"),
        ([GOOD], 2, ValueError, "node numbers from 0 to num_nodes - 1 = 1, got 2"),
        ([GOOD[0]], 3, TypeError, r"pairs \(edge_index, edge_weight\), got Tensor"),
        ([(*GOOD, 1)], 3, TypeError, r"pairs \(edge_index, edge_weight\), got tuple"),
        ([(GOOD[0], GOOD[1][:1])], 3, ValueError, "'edge_weight' must have shape"),
        ([GOOD, (GOOD[0], torch.ones(2).double())], 3, ValueError, "the dtype of the first, .*32"),
        ([(GOOD[0], torch.tensor([1.0, torch.nan]))], 3, ValueError, "must not hold NaN"),
        (3, 3, TypeError, "not iterable"),
    ],
)
def test_bad_input_is_refused(chunks, num_nodes, error, message):
    with pytest.raises(error, match=message):
        minimum_spanning_forest_stream(chunks, num_nodes)
