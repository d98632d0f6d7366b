"""From edge weights to gradients nothing waits for the GPU, and a CUDA graph can capture it all."""

from contextlib import contextmanager, nullcontext

import pytest
import torch

from benchmarks.harness.gpu import captured
from benchmarks.harness.graphs import grids
from groot_graph import Forest, minimum_spanning_forest, root_forest
from tests.equipment.gpu_cases import Layer, chain_operands, moved, rings, whole_chain
from tests.equipment.graphs import make_forest
from tests.equipment.scans import assert_near, directions

NUM_NODES = 3001


@contextmanager
def no_synchronization():
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def test_the_guard_sees_synchronization(device):
    value = torch.ones(1, device=device)
    with no_synchronization(), pytest.raises(RuntimeError, match="synchroniz"):
        value.item()
    assert value.item() == 1


@directions
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operations_and_gradients(dtype, direction, device):
    operands = moved(chain_operands(NUM_NODES, dtype=dtype), device)
    whole_chain(operands, direction)
    with no_synchronization():
        whole_chain(operands, direction)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.uint8], ids=str)
def test_spanning_forest_of_other_weights(dtype, device):
    graph = grids(2, 17, 19)
    edge_index = graph.edge_index.to(device)
    edge_weight = (graph.edge_weight * 100).to(dtype).to(device)
    for guard in (nullcontext, no_synchronization):
        with guard():
            minimum_spanning_forest(edge_index, edge_weight, graph.num_nodes)


def test_rooting_at_given_nodes(device):
    graph = grids(2, 17, 19)
    edge_index = graph.edge_index.to(device)
    edge_mask = minimum_spanning_forest(edge_index, graph.edge_weight.to(device), graph.num_nodes)
    roots = torch.tensor([5, 17 * 19 + 3]).to(device)
    for guard in (nullcontext, no_synchronization):
        with guard():
            root_forest(edge_index, edge_mask, graph.num_nodes, roots)


def test_forest_of_a_user(device):
    operands = moved(chain_operands(NUM_NODES), device)
    forest = make_forest("several", NUM_NODES).to(device)
    for guard in (nullcontext, no_synchronization):
        # A new one each time: its plan is made on first use.
        fresh = Forest(forest.order, forest.parent)
        with guard():
            whole_chain(operands, forest=fresh)


def test_which_tree_a_node_and_an_edge_belong_to(device):
    graph = grids(3, 5, 7)
    forest = make_forest("several", graph.num_nodes)
    edge_index = graph.edge_index.to(device)
    on_device = forest.to(device)
    for guard in (nullcontext, no_synchronization):
        with guard():
            labels, mask = on_device.labels, on_device.edge_mask(edge_index)
    assert labels.cpu().equal(forest.labels)
    assert mask.cpu().equal(forest.edge_mask(graph.edge_index))


@pytest.mark.parametrize("state_norm", [True, False])
def test_layer(state_norm, device):
    graph = grids(4, 14, 14)
    layer = Layer(graph.edge_index, graph.num_nodes, device, state_size=2, state_norm=state_norm)
    layer.run()
    with no_synchronization():
        layer.run()


@directions
def test_captured_operations_follow_their_inputs(direction, device):
    operands = moved(chain_operands(NUM_NODES), device)
    replay = captured(lambda: whole_chain(operands, direction))
    for _ in range(3):
        fresh = moved(chain_operands(NUM_NODES), device)
        for name, tensor in operands.items():
            tensor.copy_(fresh[name])
        found = {name: value.clone() for name, value in replay().items()}
        expected = whole_chain(fresh, direction)
        for name, value in found.items():
            assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("state_norm", [True, False])
@pytest.mark.parametrize("tree", ["grown from features", "grown over given weights"])
def test_captured_layer_follows_its_inputs(tree, state_norm, device):
    is_weighted = "given" in tree
    if is_weighted:
        graph = grids(4, 14, 14)
        edge_index, num_nodes = graph.edge_index, graph.num_nodes
    else:
        edge_index, num_nodes = rings(range(3, 40))
    layer = Layer(edge_index, num_nodes, device, state_norm=state_norm)
    num_edges = edge_index.size(1)
    edge_weight = torch.rand(num_edges).to(device) if is_weighted else None
    replay = captured(lambda: layer.run(edge_weight=edge_weight))
    for _ in range(3):
        with torch.no_grad():
            layer.x.copy_(torch.randn(num_nodes, 6))
            if is_weighted:
                edge_weight.copy_(torch.rand(num_edges))
        found = {name: value.clone() for name, value in replay().items()}
        expected = layer.run(layer.x.clone(), edge_weight)
        for name, value in found.items():
            assert_near(name, value, expected[name], 1e-4)
