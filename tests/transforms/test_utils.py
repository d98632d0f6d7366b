"""What all transforms of raw inputs do with a Data that had a graph before."""

import pytest
import torch
from torch_geometric.data import Batch, Data

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
def test_a_batch_can_be_taken_apart_again(key):
    transform, draw = TRANSFORMS[key]
    given = [Data(**{key: draw()}) for _ in range(3)]
    batch = transform(Batch.from_data_list(given))
    for part, alone in zip(batch.to_data_list(), map(transform, given), strict=True):
        assert part.edge_index.equal(alone.edge_index) and part.x.equal(alone.x)
    assert batch.num_graphs == 3 and batch.batch.bincount().tolist() == [6, 6, 6]
