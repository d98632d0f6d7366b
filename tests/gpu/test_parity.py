"""The kernels on the GPU against the CPU: forests edge for edge, scans within rounding."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch_geometric.utils import grid

from benchmarks.harness import graphs
from groot_graph import (
    Forest,
    minimum_spanning_forest,
    root_forest,
    selective_tree_scan,
    tree_scan,
)
from groot_graph.ops.selective_tree_scan.reference import selective_tree_scan_reference
from groot_graph.ops.tree_scan.reference import tree_scan_reference
from tests.equipment.gpu_cases import (
    LARGE_FORESTS,
    SIZES,
    Layer,
    assert_same_bits,
    cached_forest_edges,
    chain_operands,
    large_forest,
    moved,
    rings,
    whole_chain,
)
from tests.equipment.graphs import FOREST_KINDS, make_forest, pairing_weights, random_graph
from tests.equipment.scans import (
    FLOATS,
    TOLERANCE,
    assert_near,
    directions,
    norms,
    scan_operands,
    selective_operands,
    with_gradients,
)

INTEGERS = (
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint32, torch.uint16, torch.uint8),
)
CHANNELS = (1, 3, 17, 64, 160)
STATES = (1, 3, 16)
NEAR = TOLERANCE["thousands of nodes"]
# The reference takes a step of PyTorch for every level of a tree.
MOST_FOR_REFERENCE = 300
NO_EDGES = torch.empty(2, 0, dtype=torch.long)
SPECIAL_WEIGHTS = [-math.inf, -1.5, -(2.0**-24), -0.0, 0.0, 2.0**-24, 1.0, math.inf]


def dtypes(choices):
    return pytest.mark.parametrize("dtype", choices, ids=str)


kinds = pytest.mark.parametrize("kind", FOREST_KINDS)
large_forests = pytest.mark.parametrize("name", LARGE_FORESTS)


# Spanning forests


def assert_same_forest(edge_index, edge_weight, num_nodes, device):
    found = minimum_spanning_forest(edge_index.to(device), edge_weight.to(device), num_nodes)
    expected = minimum_spanning_forest(edge_index, edge_weight, num_nodes)
    assert found.device.type == device.type and found.dtype == torch.bool
    assert torch.equal(found.cpu(), expected)


def near_square(num_nodes):
    """A grid, every edge in both directions."""
    height = math.isqrt(num_nodes)
    return grid(height, num_nodes // height)[0] if height else torch.empty(2, 0, dtype=torch.long)


GRAPHS = {
    "grid": near_square,
    "random": lambda n: random_graph(n, 4 * n) if n else torch.empty(2, 0, dtype=torch.long),
    "disconnected": lambda n: random_graph(n, n // 3) if n else torch.empty(2, 0, dtype=torch.long),
    "chain": lambda n: cached_forest_edges("chain", n),
    "star": lambda n: cached_forest_edges("star", n),
}


@pytest.mark.parametrize("num_nodes", [257, 1024, 10**6])
def test_spanning_forest_in_more_rounds_than_are_launched(num_nodes, device):
    chain = torch.stack([torch.arange(num_nodes - 1), torch.arange(1, num_nodes)])
    assert_same_forest(chain, pairing_weights(num_nodes - 1), num_nodes, device)


@dtypes(FLOATS + INTEGERS)
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_spanning_forest(graph, dtype, device):
    for num_nodes in SIZES:
        edge_index = graph(num_nodes)
        num_edges = edge_index.size(1)
        many_ties, few_ties = torch.randint(4, (num_edges,)), torch.randint(127, (num_edges,))
        all_equal = torch.ones(num_edges)
        for edge_weight in (many_ties, few_ties, all_equal):
            assert_same_forest(edge_index, edge_weight.to(dtype), num_nodes, device)
        if dtype.is_floating_point:
            drawn = torch.randint(len(SPECIAL_WEIGHTS), (num_edges,))
            special = torch.tensor(SPECIAL_WEIGHTS, dtype=dtype)[drawn]
            assert_same_forest(edge_index, special, num_nodes, device)
            normal = torch.randn(num_edges, dtype=torch.float64).to(dtype)
            assert_same_forest(edge_index, normal, num_nodes, device)


@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda: graphs.grids(128, 56, 56), id="128 grids of 56x56"),
        pytest.param(lambda: graphs.grids(1, 1024, 1024), id="one grid of 1024x1024"),
        pytest.param(lambda: graphs.random_graph(10**6, 4 * 10**6), id="1M nodes, 4M edges"),
    ],
)
def test_spanning_forest_of_large_graphs(draw, device):
    graph = draw()
    coarse = (graph.edge_weight * 16).floor()
    for edge_weight in (graph.edge_weight, coarse):
        assert_same_forest(graph.edge_index, edge_weight, graph.num_nodes, device)


# Rooted forests


def one_node_per_tree(forest: Forest) -> torch.Tensor:
    label = forest.parent
    for _ in range(forest.num_nodes.bit_length()):
        label = label[label]
    node = torch.randperm(forest.num_nodes)
    chosen = torch.empty_like(node).scatter_(0, label[node], node)
    return chosen[forest.roots]


def assert_same_rooting(edge_index, edge_mask, num_nodes, device):
    forest = root_forest(edge_index, edge_mask, num_nodes)
    on_device = edge_index.to(device), None if edge_mask is None else edge_mask.to(device)
    for root in ("first", "last", one_node_per_tree(forest)):
        expected = root_forest(edge_index, edge_mask, num_nodes, root)
        root = root if isinstance(root, str) else root.to(device)
        found = root_forest(*on_device, num_nodes, root)
        assert found.device.type == device.type
        assert torch.equal(found.parent.cpu(), expected.parent)
        assert torch.equal(found.order.cpu(), expected.order)


@kinds
def test_rooting(kind, device):
    for num_nodes in SIZES:
        assert_same_rooting(cached_forest_edges(kind, num_nodes), None, num_nodes, device)


def test_rooting_of_masked_edges(device):
    for num_nodes in SIZES[1:]:
        edge_index = random_graph(num_nodes, 2 * num_nodes)
        edge_weight = torch.rand(edge_index.size(1))
        edge_mask = minimum_spanning_forest(edge_index, edge_weight, num_nodes)
        assert_same_rooting(edge_index, edge_mask, num_nodes, device)


@large_forests
def test_rooting_of_large_forests(name, device):
    edge_index, num_nodes, _ = large_forest(name)
    assert_same_rooting(edge_index, None, num_nodes, device)


# Scans


def assert_scan(scan, reference, operands, edge_index, direction, device, tolerance):
    """Output and gradients, against the same input in float64 on the CPU."""
    first = next(iter(operands.values()))
    weight = torch.randn(first.shape, dtype=torch.float64).to(first.dtype)
    forest = root_forest(edge_index, num_nodes=first.size(0))
    exact_scan = reference if forest.num_nodes <= MOST_FOR_REFERENCE else scan
    exact = moved(operands, torch.float64)
    expected = with_gradients(
        exact_scan, exact, weight.double(), forest=forest, direction=direction
    )

    forest = root_forest(edge_index.to(device), num_nodes=first.size(0))
    on_device = moved(operands, device)
    found = with_gradients(scan, on_device, weight.to(device), forest=forest, direction=direction)
    for name, value in found.items():
        assert value.device.type == device.type
        assert value.dtype == (first if name == "output" else operands[name]).dtype
        case = f"{name} of {[*first.shape]}"
        assert_near(case, value.cpu(), expected[name], tolerance)


def assert_tree_scan(edge_index, num_nodes, num_channels, dtype, direction, device, tolerance):
    operands = scan_operands(num_nodes, num_channels, dtype)
    functions = tree_scan, tree_scan_reference
    assert_scan(*functions, operands, edge_index, direction, device, tolerance)


def assert_selective(edge_index, shape, dtype, direction, device, tolerance, eps=None):
    scans = selective_tree_scan, selective_tree_scan_reference
    functions = [partial(scan, state_norm_eps=eps) for scan in scans]
    operands = selective_operands(*shape, dtype)
    assert_scan(*functions, operands, edge_index, direction, device, tolerance)
    required = {name: operands[name] for name in ("u", "delta", "A", "B", "C")}
    assert_scan(*functions, required, edge_index, direction, device, tolerance)


@directions
@dtypes(FLOATS)
@kinds
def test_tree_scan(kind, dtype, direction, device):
    for num_nodes, num_channels in itertools.product(SIZES, CHANNELS):
        edge_index = cached_forest_edges(kind, num_nodes)
        sizes = num_nodes, num_channels
        assert_tree_scan(edge_index, *sizes, dtype, direction, device, NEAR[dtype])


# Every size, every pair of channels and states, and the large ones together.
SELECTIVE_SHAPES = [
    *itertools.product(SIZES, (17,), (3,)),
    *itertools.product((63,), CHANNELS, STATES),
    (257, 160, 3),
    (3001, 1, 1),
    (3001, 64, 16),
]


@directions
@dtypes(FLOATS)
@norms
@kinds
def test_selective_tree_scan(kind, eps, dtype, direction, device):
    for shape in SELECTIVE_SHAPES:
        edge_index = cached_forest_edges(kind, shape[0])
        assert_selective(edge_index, shape, dtype, direction, device, NEAR[dtype], eps)


@directions
@dtypes((torch.float64, torch.float32))
@large_forests
def test_tree_scan_on_large_forests(name, dtype, direction, device):
    tolerance = 1e-9 if dtype == torch.float64 else 2e-4
    assert_tree_scan(*large_forest(name), dtype, direction, device, tolerance)


@directions
@large_forests
def test_selective_tree_scan_on_large_forests(name, direction, device):
    edge_index, *sizes = large_forest(name)
    assert_selective(edge_index, (*sizes, 3), torch.float32, direction, device, 2e-4)


@dtypes((torch.bfloat16, torch.float16))
def test_selective_tree_scan_with_parameters_in_float32(dtype, device):
    operands = selective_operands(257, 17, 3, dtype)
    operands |= {name: operands[name].float() for name in ("A", "D")}
    functions = selective_tree_scan, selective_tree_scan_reference
    edge_index = cached_forest_edges("several", 257)
    assert_scan(*functions, operands, edge_index, "both", device, NEAR[dtype])


@directions
def test_strided_and_expanded_operands(direction, device):
    forest = root_forest(cached_forest_edges("random", 257).to(device), num_nodes=257)
    operands = moved(scan_operands(257, 5, torch.float32), device)
    expected = tree_scan(**operands, forest=forest, direction=direction)
    columns = {name: value.t().contiguous().t() for name, value in operands.items()}
    assert not columns["x"].is_contiguous()
    assert torch.equal(tree_scan(**columns, forest=forest, direction=direction), expected)
    # The gradient of a sum is an expanded tensor.
    weight = torch.ones((), device=device).expand(257, 5)
    found = with_gradients(tree_scan, columns, weight, forest=forest, direction=direction)
    assert_same_bits(
        found,
        with_gradients(
            tree_scan, operands, weight.contiguous(), forest=forest, direction=direction
        ),
    )


# Forests of other makes, and the layer


@directions
@kinds
def test_forest_of_a_user_and_forest_moved(kind, direction, device):
    operands = chain_operands(3001)
    forest = make_forest(kind, 3001)
    expected = whole_chain(operands, direction, forest)
    # Breadth first: an order that only a user gives.
    breadth_first = torch.cat(forest.levels)
    for on_device in (
        forest.to(device),
        Forest(breadth_first.to(device), forest.parent.to(device)),
    ):
        found = whole_chain(moved(operands, device), direction, on_device)
        for name, value in found.items():
            assert_near(name, value.cpu(), expected[name], NEAR[torch.float32])
        back = on_device.to("cpu")
        assert torch.equal(back.parent, forest.parent)
        for name, value in whole_chain(operands, direction, back).items():
            assert_near(name, value, expected[name], NEAR[torch.float32])


@directions
def test_whole_chain(direction, device):
    operands = chain_operands(3001)
    expected = whole_chain(operands, direction)
    found = whole_chain(moved(operands, device), direction)
    for name in ("edge_mask", "order", "parent"):
        assert torch.equal(found.pop(name).cpu(), expected[name])
    for name, value in found.items():
        assert_near(name, value.cpu(), expected[name], NEAR[torch.float32])


@pytest.mark.parametrize("edge_steps", [False, True])
@pytest.mark.parametrize("state_norm", [True, False])
@pytest.mark.parametrize("state_size", [1, 4])
def test_layer(state_size, state_norm, edge_steps, device):
    # In float64 both machines' weights are near enough to grow the same tree.
    settings = {"state_size": state_size, "state_norm": state_norm, "edge_steps": edge_steps}
    settings["dtype"] = torch.float64
    results = []
    for where in (torch.device("cpu"), device):
        torch.manual_seed(0)
        results.append(Layer(*rings(range(3, 40)), where, **settings).run())
    for name, value in results[1].items():
        assert_near(name, value.cpu(), results[0][name], 1e-9)
