"""Thousands of random calls of every public function: tensors of any memory layout, dtype, size and
mix of gradients give what the reference gives for plain ones, and stay as they were."""

from contextlib import contextmanager

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data

from groot_graph import (
    Forest,
    minimum_spanning_forest,
    minimum_spanning_forest_stream,
    root_forest,
    selective_tree_scan,
    tree_scan,
)
from groot_graph.nn import TreeSSM, TreeSSMConv, TreeTopology
from groot_graph.ops.minimum_spanning_forest.reference import minimum_spanning_forest_reference
from groot_graph.ops.root_forest.reference import root_forest_reference
from groot_graph.ops.selective_tree_scan.reference import selective_tree_scan_reference
from groot_graph.ops.tree_scan.reference import tree_scan_reference
from groot_graph.transforms import ImageToGraph, PointsToGraph, TextToGraph, ToSpanningForest
from tests.graphs import forests, multigraphs, to_edge_index
from tests.scans import DIRECTIONS, assert_near

fuzz = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
dtypes = st.sampled_from(list(TOLERANCE))
weight_dtypes = st.sampled_from([*TOLERANCE, torch.int64, torch.int32, torch.uint8])
seeds = st.integers(0, 2**31)
sizes = st.integers(0, 5)
directions = st.sampled_from(DIRECTIONS)


def plain(tensor):
    return tensor


def transposed(tensor):
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor


def strided(tensor):
    """Every second element of a larger tensor."""
    spread = tensor.new_zeros(*(2 * size for size in tensor.shape))
    view = spread[tuple(slice(None, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


def offset(tensor):
    """Not at the start of its memory."""
    return torch.cat([tensor.new_zeros(3), tensor.flatten()])[3:].view(tensor.shape)


def broadcast(tensor):
    """One row for all."""
    return tensor[:1].expand(tensor.shape) if tensor.size(0) > 0 else tensor


layouts = st.sampled_from([plain, transposed, strided, offset, broadcast])
# Edges that broadcast would be self-loops alone.
edge_layouts = st.sampled_from([plain, transposed, strided, offset])


@contextmanager
def unchanged(*tensors):
    before = [(tensor.detach().clone(), tensor._version) for tensor in tensors]
    yield
    for tensor, (value, version) in zip(tensors, before, strict=True):
        assert tensor.detach().equal(value) and tensor._version == version


def draw_tensor(data, shape, dtype, generator, low=-1.0):
    tensor = low + (1 - low) * torch.rand(shape, dtype=torch.float64, generator=generator)
    return data.draw(layouts)(tensor.to(dtype)).requires_grad_(data.draw(st.booleans()))


def draw_forest(data) -> Forest:
    edge_index, num_nodes = data.draw(forests())
    root = data.draw(st.sampled_from(["first", "last"]))
    return root_forest(edge_index, num_nodes=num_nodes, root=root)


def draw_graph(data):
    edges, num_nodes = data.draw(multigraphs())
    return data.draw(edge_layouts)(to_edge_index(edges)), num_nodes


def draw_weights(data, num_edges):
    """Few values, so that many tie; infinite ones too."""
    values = torch.tensor([0.0, 1.0, 2.0, 3.0])
    chosen = torch.tensor(
        data.draw(st.lists(st.integers(0, 3), min_size=num_edges, max_size=num_edges))
    )
    weight = values[chosen.long()].to(data.draw(weight_dtypes))
    if weight.is_floating_point() and data.draw(st.booleans()):
        weight = torch.where(weight == 3, torch.inf, weight)
        weight = weight.requires_grad_(data.draw(st.booleans()))
    return data.draw(layouts)(weight)


def check_like_reference(found, operands: dict, reference, dtype):
    """Values and every gradient against the reference in doubles."""
    doubles = {
        name: operand.detach().double().contiguous().requires_grad_(operand.requires_grad)
        for name, operand in operands.items()
    }
    expected = reference(**doubles)
    assert found.dtype == dtype and found.shape == expected.shape
    assert_near("output", found, expected, TOLERANCE[dtype])
    wanted = [name for name, operand in operands.items() if operand.requires_grad]
    assert found.requires_grad == bool(wanted)
    if not wanted:
        return
    # A reference without a node has nothing to differentiate.
    expected = expected + sum(0 * doubles[name].sum() for name in wanted)
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    grads = torch.autograd.grad(found, [operands[name] for name in wanted], grad)
    expected_grads = torch.autograd.grad(
        expected, [doubles[name] for name in wanted], grad.double()
    )
    for name, actual, other in zip(wanted, grads, expected_grads, strict=True):
        assert_near(f"gradient of {name}", actual, other, 4 * TOLERANCE[dtype])


@fuzz
@given(st.data())
def test_minimum_spanning_forest(data):
    edge_index, num_nodes = draw_graph(data)
    edge_weight = draw_weights(data, edge_index.size(1))
    with unchanged(edge_index, edge_weight):
        found = minimum_spanning_forest(edge_index, edge_weight, num_nodes)
    expected = minimum_spanning_forest_reference(
        edge_index.contiguous(), edge_weight.detach().contiguous(), num_nodes
    )
    assert found.equal(expected)


@fuzz
@given(st.data())
def test_minimum_spanning_forest_stream(data):
    edge_index, num_nodes = draw_graph(data)
    edge_weight = draw_weights(data, edge_index.size(1))
    cut = data.draw(st.integers(0, edge_index.size(1)))
    chunks = [(edge_index[:, :cut], edge_weight[:cut]), (edge_index[:, cut:], edge_weight[cut:])]
    with unchanged(edge_index, edge_weight):
        kept_index, kept_weight, number = minimum_spanning_forest_stream(chunks, num_nodes)
    mask = minimum_spanning_forest_reference(
        edge_index.contiguous(), edge_weight.detach().contiguous(), num_nodes
    )
    assert number.equal(mask.nonzero().flatten())
    assert kept_index.equal(edge_index[:, mask]) and kept_weight.equal(edge_weight.detach()[mask])


@fuzz
@given(st.data())
def test_root_forest(data):
    edge_index, num_nodes = data.draw(forests())
    edge_index = data.draw(edge_layouts)(edge_index)
    root = data.draw(st.sampled_from(["first", "last"]))
    with unchanged(edge_index):
        found = root_forest(edge_index, num_nodes=num_nodes, root=root)
    mask = torch.ones(edge_index.size(1), dtype=torch.bool)
    order, parent = root_forest_reference(edge_index.contiguous(), mask, num_nodes, root)
    assert found.order.equal(order) and found.parent.equal(parent)


@fuzz
@given(st.data(), dtypes, sizes, directions, seeds)
def test_tree_scan(data, dtype, channels, direction, seed):
    forest, generator = draw_forest(data), torch.Generator().manual_seed(seed)
    shape = forest.order.numel(), channels
    operands = {name: draw_tensor(data, shape, dtype, generator) for name in ("x", "transition")}
    with unchanged(*operands.values(), forest.order, forest.parent):
        found = tree_scan(**operands, forest=forest, direction=direction)
        check_like_reference(
            found,
            operands,
            lambda x, transition: tree_scan_reference(x, transition, forest, direction),
            dtype,
        )


@fuzz
@given(st.data(), dtypes, sizes, st.integers(1, 3), directions, seeds)
def test_selective_tree_scan(data, dtype, channels, state_size, direction, seed):
    forest, generator = draw_forest(data), torch.Generator().manual_seed(seed)
    N, D, S = forest.order.numel(), channels, state_size
    shapes = {"u": (N, D), "delta": (N, D), "A": (D, S), "B": (N, S), "C": (N, S), "D": (D,)}
    operands = {name: draw_tensor(data, shape, dtype, generator) for name, shape in shapes.items()}

    def reference(u, delta, A, B, C, D):
        return selective_tree_scan_reference(u, delta, A, B, C, forest, D, direction, None)

    with unchanged(*operands.values(), forest.order, forest.parent):
        found = selective_tree_scan(**operands, forest=forest, direction=direction)
        check_like_reference(found, operands, reference, dtype)


@fuzz
@given(st.data(), directions, seeds, st.booleans())
def test_layers(data, direction, seed, is_double):
    """Any memory layout gives what the plain one gives, and gradients reach x and all weights."""
    edge_index, num_nodes = draw_graph(data)
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if is_double else torch.float32
    x = draw_tensor(data, (num_nodes, 4), dtype, generator)
    torch.manual_seed(seed)
    layer = TreeSSMConv(4, 3, state_size=2, direction=direction).to(dtype)
    ssm = TreeSSM(4, direction=direction).to(dtype)
    with unchanged(x, edge_index):
        forest = TreeTopology()(x, edge_index)
        found = layer(x, edge_index)
        along_forest = layer(x, edge_index, forest=forest)
        states = ssm(x, forest)
    assert forest.order.sort().values.equal(torch.arange(num_nodes))
    assert found.shape == (num_nodes, 3) and states.shape == (num_nodes, 4)
    plain_x, plain_edges = x.detach().contiguous(), edge_index.contiguous()
    same = layer(plain_x, plain_edges, forest=forest)
    assert_near("layer", along_forest, same, TOLERANCE[dtype])
    assert_near("states", states, ssm(plain_x, forest), TOLERANCE[dtype])

    (found.sum() + states.sum()).backward()
    assert (x.grad is not None) == x.requires_grad
    parameters = [*layer.parameters(), *ssm.parameters()]
    assert all(parameter.grad.isfinite().all() for parameter in parameters)


@fuzz
@given(st.data(), seeds)
def test_transforms(data, seed):
    """Every node stands in the forest once, and neither transform changes its input."""
    generator = torch.Generator().manual_seed(seed)
    sides = st.integers(1, 5)
    image = draw_tensor(data, (3, data.draw(sides), data.draw(sides)), torch.float32, generator)
    points = draw_tensor(data, (data.draw(st.integers(2, 9)), 3), torch.float32, generator)
    features = draw_tensor(data, (data.draw(st.integers(1, 9)), 4), torch.float32, generator)
    made = [
        (ImageToGraph(), image),
        (PointsToGraph(k=2), points),
        (TextToGraph(data.draw(st.integers(1, 4))), features),
    ]
    for transform, tensor in made:
        with unchanged(tensor):
            graph = transform(tensor.detach())
        keys = set(graph.keys())
        with unchanged(graph.x, graph.edge_index):
            rooted = ToSpanningForest()(graph)
        assert set(graph.keys()) == keys and isinstance(rooted, Data)


@pytest.mark.parametrize("layout", [plain, transposed, strided, offset, broadcast])
def test_layouts_are_what_they_are_called(layout):
    tensor = torch.rand(4, 3)
    made = layout(tensor)
    assert made.shape == tensor.shape
    if layout is not broadcast:
        assert made.equal(tensor)
    assert made.is_contiguous() == (layout in (plain, offset))
    assert (made.storage_offset() > 0) == (layout is offset)
