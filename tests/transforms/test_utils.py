"""What all transforms of raw inputs do with a Data that had a graph before."""

import pytest
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.transforms import ToSparseTensor

from groot_graph import Forest
from groot_graph.transforms import ImageToGraph, PointsToGraph, TextToGraph, ToSpanningForest

TRANSFORMS = {
    "pos": (PointsToGraph(k=2), lambda: torch.randn(6, 2)),
    "image": (ImageToGraph(), lambda: torch.rand(1, 2, 3)),
    "input_ids": (TextToGraph(), lambda: torch.arange(6)),
}
transforms = pytest.mark.parametrize("key", TRANSFORMS)


@transforms
def test_nothing_of_the_old_edges_is_left(key):
    transform, draw = TRANSFORMS[key]
    data = transform(Data(**{key: draw()}, name="kept", x=torch.rand(6, 1)))
    data = ToSpanningForest(tree="random")(data)
    data.edge_weight, data.edge_attr = torch.rand(data.num_edges), torch.rand(data.num_edges, 2)
    data.forest = Forest.from_data(data)
    data[key] = draw()
    again = transform(data)
    if key == "pos":
        distances = (again.pos[again.edge_index[0]] - again.pos[again.edge_index[1]]).norm(dim=1)
        assert torch.allclose(again.edge_weight, distances)
        del again.edge_weight
    assert not {"edge_weight", "edge_attr", "parent_index", "tree_depth", "forest"} & {
        *again.keys()
    }
    assert again.name == "kept" and "edge_weight" in data  # what was given stays as it was


@transforms
def test_a_matrix_of_the_old_edges_is_not_left(key):
    transform, draw = TRANSFORMS[key]
    data = ToSparseTensor(remove_edge_index=False)(transform(Data(**{key: draw()})))
    data.x = torch.rand(6, 1)
    assert "adj_t" in data
    data[key] = draw()
    assert "adj_t" not in transform(data)
    assert "adj_t" not in ToSpanningForest()(data)


def test_a_new_forest_takes_the_place_of_an_older_one():
    data = ToSpanningForest(tree="random")(TRANSFORMS["image"][0](torch.rand(1, 2, 3)))
    data.forest = Forest.from_data(data)
    assert "forest" not in ToSpanningForest()(data)


def test_pairs_that_a_link_prediction_asks_for_are_kept():
    data = Data(x=torch.rand(4, 2), edge_index=torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]))
    data.edge_label_index, data.edge_label = data.edge_index.flip(1), torch.tensor([1, 0, 1, 0])
    data.pos = torch.rand(4, 2)
    for transform in (ToSpanningForest(), PointsToGraph(k=1)):
        out = transform(data)
        assert out.edge_label_index.equal(data.edge_label_index)
        assert out.edge_label.equal(data.edge_label)


@pytest.mark.parametrize("key", ["image", "input_ids"])
def test_nodes_made_anew_are_of_no_older_batch(key):
    transform, draw = TRANSFORMS[key]
    batch = Batch.from_data_list([transform(Data(**{key: draw()})) for _ in range(2)])
    data = Data(**{key: draw()}, batch=batch.batch, ptr=batch.ptr)
    assert not {"batch", "ptr"} & {*transform(data).keys()}


@transforms
def test_a_batch_can_be_taken_apart_again(key):
    transform, draw = TRANSFORMS[key]
    given = [Data(**{key: draw()}) for _ in range(3)]
    batch = transform(Batch.from_data_list(given))
    for part, alone in zip(batch.to_data_list(), map(transform, given), strict=True):
        assert part.edge_index.equal(alone.edge_index) and part.x.equal(alone.x)
    assert batch.num_graphs == 3 and batch.batch.bincount().tolist() == [6, 6, 6]
