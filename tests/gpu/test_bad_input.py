"""Invalid values lead no kernel out of bounds and into no endless loop; debug mode names them."""

import math

import pytest
import torch
import torch_geometric

from groot_graph import Forest, minimum_spanning_forest, root_forest
from tests.equipment.gpu_cases import Layer, chain_operands, moved, rings, whole_chain
from tests.equipment.graphs import make_forest, random_graph
from tests.equipment.scans import directions

NUM_NODES = 257
OUTSIDE = [-1, NUM_NODES, -(2**31), 2**31, 2**32, 2**32 + 1, -(2**63), 2**63 - 1]


@pytest.fixture(autouse=True)
def no_error_is_left(device):
    """An access out of bounds is reported by a later call."""
    yield
    torch.cuda.synchronize()
    assert torch.ones(3, device=device).sum().item() == 3


def edges_outside() -> torch.Tensor:
    outside = torch.tensor(OUTSIDE)
    inside = torch.arange(len(OUTSIDE))
    wrong = torch.cat([torch.stack([outside, inside]), torch.stack([inside, outside])], dim=1)
    return torch.cat([wrong, outside.expand(2, -1), random_graph(NUM_NODES, 600)], dim=1)


def check(call, message):
    """No crash as it is, a ValueError in debug mode."""
    call()
    torch.cuda.synchronize()
    with torch_geometric.set_debug(True), pytest.raises(ValueError, match=message):
        call()


def test_spanning_forest_with_nodes_outside(device):
    edge_index = edges_outside().to(device)
    edge_weight = torch.rand(edge_index.size(1)).to(device)
    check(lambda: minimum_spanning_forest(edge_index, edge_weight, NUM_NODES), "'edge_index' must")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_spanning_forest_with_nan(share, dtype, device):
    edge_index = random_graph(NUM_NODES, 1025)
    nan = torch.tensor([math.nan, -math.nan])[torch.randint(2, (1025,))]
    edge_weight = torch.where(torch.rand(1025) < share, nan, torch.randn(1025)).to(dtype)
    arguments = edge_index.to(device), edge_weight.to(device), NUM_NODES
    # Some spanning forest all the same: as many edges as with any other weights.
    some = minimum_spanning_forest(edge_index, torch.ones(1025), NUM_NODES)
    assert minimum_spanning_forest(*arguments).sum().item() == some.sum()
    check(lambda: minimum_spanning_forest(*arguments), "'edge_weight' must")


@pytest.mark.parametrize("root", ["first", "last"])
def test_rooting_of_nodes_outside(root, device):
    edge_index = edges_outside().to(device)
    check(lambda: root_forest(edge_index, None, NUM_NODES, root), "'edge_index' must")


@directions
def test_cyclic_mask(direction, device):
    operands = moved(chain_operands(NUM_NODES), device)
    all_edges = torch.ones(operands["edge_index"].size(1), dtype=torch.bool, device=device)

    def run():
        forest = root_forest(operands["edge_index"], all_edges, NUM_NODES)
        whole_chain(operands, direction, forest)

    check(run, "cycle")


@pytest.mark.parametrize(
    "roots, message",
    [
        (OUTSIDE, "'root' must"),
        ([], "'root' must"),
        ([0] * 300, "'root' must"),
        (list(range(NUM_NODES)), "'root' must"),
    ],
    ids=["outside", "none", "one-often", "all"],
)
def test_wrong_roots(roots, message, device):
    operands = moved(chain_operands(NUM_NODES), device)
    edge_index = random_graph(NUM_NODES, 600)
    edge_mask = minimum_spanning_forest(edge_index, torch.rand(600), NUM_NODES)
    edge_index, edge_mask = edge_index.to(device), edge_mask.to(device)
    roots = torch.tensor(roots, dtype=torch.long).to(device)

    def run():
        whole_chain(operands, forest=root_forest(edge_index, edge_mask, NUM_NODES, roots))

    check(run, message)


def one_cycle() -> torch.Tensor:
    return (torch.arange(NUM_NODES) + 1) % NUM_NODES


def cycle_beside_a_tree() -> torch.Tensor:
    parent = make_forest("several", NUM_NODES).parent.clone()
    parent[:3] = torch.tensor([1, 2, 0])
    return parent


def parent_outside() -> torch.Tensor:
    parent = make_forest("several", NUM_NODES).parent.clone()
    parent[: len(OUTSIDE)] = torch.tensor(OUTSIDE)
    return parent


@directions
@pytest.mark.parametrize("make_parent", [one_cycle, cycle_beside_a_tree, parent_outside])
def test_parents_that_are_no_forest(make_parent, direction, device):
    operands = moved(chain_operands(NUM_NODES), device)
    order, parent = torch.arange(NUM_NODES).to(device), make_parent().to(device)
    # A new one each time: its plan is made on first use.
    check(lambda: whole_chain(operands, direction, Forest(order, parent)), "'forest' must")


def test_layer_on_nan(device):
    layer = Layer(*rings(range(3, 40)), device)
    x = layer.x.detach().clone()
    x[::7] = math.nan
    check(lambda: layer.run(x), "NaN")
