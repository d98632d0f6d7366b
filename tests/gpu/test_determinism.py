"""The same bits on every run."""

import pytest
import torch

from groot_graph import root_forest
from tests.equipment.gpu_cases import (
    Layer,
    assert_same_bits,
    cached_forest_edges,
    chain_operands,
    moved,
    rings,
    whole_chain,
)
from tests.equipment.graphs import FOREST_KINDS
from tests.equipment.scans import FLOATS, directions

RUNS = 5


@directions
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_whole_chain(dtype, direction, device):
    operands = moved(chain_operands(30_011, 17, dtype=dtype), device)
    expected = whole_chain(operands, direction)
    for _ in range(RUNS):
        assert_same_bits(whole_chain(operands, direction), expected)


@directions
@pytest.mark.parametrize("kind", FOREST_KINDS)
def test_every_shape_of_tree(kind, direction, device):
    num_nodes = 30_011
    operands = moved(chain_operands(num_nodes), device)
    edge_index = cached_forest_edges(kind, num_nodes).to(device)
    forest = root_forest(edge_index, num_nodes=num_nodes)
    expected = whole_chain(operands, direction, forest)
    for _ in range(RUNS):
        again = root_forest(edge_index, num_nodes=num_nodes)
        assert torch.equal(again.order, forest.order)
        assert_same_bits(whole_chain(operands, direction, again), expected)


@pytest.mark.parametrize("edge_steps", [False, True])
def test_layer(edge_steps, device):
    layer = Layer(*rings(range(3, 40)), device, state_size=4, edge_steps=edge_steps)
    expected = layer.run()
    for _ in range(RUNS):
        assert_same_bits(layer.run(), expected)
