import threading

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing import assert_close

from groot_graph import graphs
from groot_graph.graphs import (
    add_reverse_edges,
    grid_edge_index,
    raster_edge_index,
    repeat_graph,
    text_edge_index,
)


@pytest.fixture(autouse=True)
def nothing_remembered():
    graphs._edges.clear()
    yield
    graphs._edges.clear()


def pairs(edge_index):
    return list(zip(*edge_index.tolist(), strict=True))


def test_grid_lists_vertical_then_horizontal_pairs_then_diagonals():
    straight = [(0, 2), (1, 3), (0, 1), (2, 3)]
    assert pairs(grid_edge_index(2, 2)) == straight
    assert pairs(grid_edge_index(2, 2, connectivity=8)) == [*straight, (0, 3), (1, 2)]
    assert grid_edge_index(1, 1).shape == grid_edge_index(0, 3).shape == (2, 0)


def test_several_grids_follow_each_other():
    expected = torch.cat([grid_edge_index(2, 3), grid_edge_index(2, 3) + 6], dim=1)
    assert torch.equal(grid_edge_index(2, 3, num_graphs=2), expected)
    assert grid_edge_index(2, 3, num_graphs=0).shape == (2, 0)


def test_raster_goes_along_rows_or_columns():
    assert pairs(raster_edge_index(2, 2)) == [(0, 1), (1, 2), (2, 3)]
    assert pairs(raster_edge_index(2, 2, by_column=True)) == [(0, 2), (2, 1), (1, 3)]


def test_text_is_listed_from_its_last_token_backwards():
    assert pairs(text_edge_index(4, window=2)) == [(2, 3), (1, 3), (1, 2), (0, 2), (0, 1)]
    assert pairs(text_edge_index(4, window=3, context_length=2)) == [(2, 3), (1, 2), (0, 1)]
    assert pairs(text_edge_index(2, num_graphs=2)) == [(0, 1), (2, 3)]
    assert text_edge_index(0).shape == text_edge_index(1).shape == (2, 0)


def test_reverse_edges_stand_after_all_given_ones():
    edge_index = torch.tensor([[0, 1], [1, 2]])
    assert pairs(add_reverse_edges(edge_index)) == [(0, 1), (1, 2), (1, 0), (2, 1)]
    assert pairs(repeat_graph(edge_index, 3, 2)) == [(0, 1), (1, 2), (3, 4), (4, 5)]


@pytest.mark.parametrize("make", [grid_edge_index, text_edge_index])
def test_edges_are_made_once_for_their_sizes(make):
    assert make(5, 3) is make(5, 3)
    assert make(5, 3) is not make(5, 4)
    assert torch.equal(make(5, 3), make(5, 3).clone())


def test_what_is_remembered_is_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(graphs, "MOST_BYTES", 3 * grid_edge_index(10, 10).nbytes)
    edges = {width: grid_edge_index(10, width) for width in (8, 9, 10)}
    assert grid_edge_index(10, 8) is edges[8]
    for width in (7, 11):
        grid_edge_index(10, width)
    remembered = list(graphs._edges.values())
    assert sum(value.nbytes for value in remembered) <= graphs.MOST_BYTES
    # What was asked for last is what stays.
    assert grid_edge_index(10, 8) is edges[8]
    assert grid_edge_index(10, 9) is not edges[9]


def test_what_is_larger_than_the_bound_is_not_remembered(monkeypatch):
    monkeypatch.setattr(graphs, "MOST_BYTES", 8)
    assert torch.equal(grid_edge_index(3, 3), grid_edge_index(3, 3))
    assert not graphs._edges


def test_edges_made_under_inference_mode_serve_training():
    with torch.inference_mode():
        edge_index = grid_edge_index(3, 4)
    assert not edge_index.is_inference()
    x = torch.rand(12, 1, requires_grad=True)
    x[edge_index[0]].sum().backward()
    assert grid_edge_index(3, 4) is edge_index


def test_fake_edges_are_neither_kept_nor_mixed_with_real_ones():
    real = grid_edge_index(4, 4)
    with FakeTensorMode():
        assert isinstance(grid_edge_index(4, 4), FakeTensor)
        assert isinstance(grid_edge_index(5, 5), FakeTensor)
    assert grid_edge_index(4, 4) is real
    assert not isinstance(grid_edge_index(5, 5), FakeTensor)


def gathered(x):
    height, width = x.shape
    source, target = grid_edge_index(height, width)
    return x.flatten()[source] - x.flatten()[target]


def test_export_and_functional_modes_leave_nothing_behind():
    class Differences(torch.nn.Module):
        def forward(self, x):
            return gathered(x)

    x = torch.rand(3, 5)
    exported = torch.export.export(Differences(), (x,))
    assert not graphs._edges
    assert_close(exported.module()(x), gathered(x))
    graphs._edges.clear()
    assert_close(torch.func.functionalize(gathered)(x), gathered(x))
    assert_close(torch.func.vmap(gathered)(x[None])[0], gathered(x))
    assert all(type(value) is torch.Tensor for value in graphs._edges.values())


def test_the_default_device_is_part_of_what_is_asked_for():
    with torch.device("meta"):
        assert grid_edge_index(2, 3).is_meta
    assert not grid_edge_index(2, 3).is_meta


def test_threads_may_ask_at_once(monkeypatch):
    monkeypatch.setattr(graphs, "MOST_BYTES", 2000)
    errors = []

    def ask():
        try:
            for size in [2, 3, 4, 5, 6] * 40:
                assert grid_edge_index(size, 3).size(1) == 5 * size - 3
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
