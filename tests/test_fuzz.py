"""Thousands of random calls of every public function: tensors of any memory layout, dtype, size and
mix of gradients give what the reference gives for plain ones, and stay as they were."""

from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import lru_cache, partial
from unittest.mock import patch

import networkx as nx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch_geometric.utils import to_networkx

import groot_graph
from groot_graph import (
    Forest,
    datasets,
    minimum_spanning_forest,
    minimum_spanning_forest_stream,
    models,
    nn,
    root_forest,
    selective_tree_scan,
    transforms,
    tree_scan,
)
from groot_graph.analysis import affinity_map, raster_forest, scan_of_layer
from groot_graph.datasets import CliquePath, CrossedRing, RingTransfer, TreeNeighborsMatch
from groot_graph.models import (
    ClickSegmenter,
    GrootV,
    click_segmenter,
    convert_grootv_checkpoint,
    load_grootv,
)
from groot_graph.nn import GridTreeSSM, TreeGNN, TreeSSM, TreeSSMConv, TreeTopology
from groot_graph.nn.tree_topology import METRICS, PLAIN_METRICS
from groot_graph.ops.minimum_spanning_forest.reference import minimum_spanning_forest_reference
from groot_graph.ops.root_forest.reference import root_forest_reference
from groot_graph.ops.selective_tree_scan.reference import selective_tree_scan_reference
from groot_graph.ops.tree_scan.reference import tree_scan_reference
from groot_graph.transforms import (
    ImageToGraph,
    PointsToGraph,
    SuperpixelsToGraph,
    TextToGraph,
    ToSpanningForest,
)
from groot_graph.visualization import plot_affinity, plot_image_tree, plot_text_tree
from tests.equipment.graphs import to_edge_index
from tests.equipment.scans import DIRECTIONS, EPS, FLOATS, TOLERANCE, assert_near
from tests.equipment.strategies import forests, multigraphs
from tests.equipment.tree_ssm import line_to_root, plain_loop

few = settings(max_examples=settings.default.max_examples // 10)
NEAR = TOLERANCE["any layout"]
dtypes = st.sampled_from(FLOATS)
weight_dtypes = st.sampled_from([*FLOATS, torch.int64, torch.int32, torch.uint8])
seeds = st.integers(0, 2**31)
sizes = st.integers(0, 5)
directions = st.sampled_from(DIRECTIONS)


MODULES = [groot_graph, datasets, models, nn, transforms]
FUZZED = {}  # the public names that a test fuzzes, by the name of the test


def fuzzes(*names):
    """The test calls what is public under each of these names."""

    def note(test):
        FUZZED[test.__name__] = names
        return test

    return note


@pytest.fixture(autouse=True)
def what_is_fuzzed_is_called(request):
    with ExitStack() as stack:
        names = FUZZED.get(request.function.__name__, ())
        calls = {name: stack.enter_context(recorded(name)) for name in names}
        yield
    assert [name for name, call in calls.items() if not call.called] == []


def recorded(name):
    """Notes the calls of a function of this file, or of a class's forward or constructor."""
    if name == "GrootLForCausalLM":
        pytest.importorskip("transformers", minversion="5.5")
    public = next(getattr(module, name) for module in MODULES if name in module.__all__)
    if not isinstance(public, type):
        return patch(f"{__name__}.{name}", wraps=public)
    method = "forward" if hasattr(public, "forward") else "__init__"
    original = getattr(public, method)
    return patch.object(public, method, autospec=True, side_effect=original)


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


def broadcast_columns(tensor):
    """One column for all."""
    return tensor[..., :1].expand(tensor.shape) if tensor.size(-1) > 0 else tensor


ALL_LAYOUTS = [plain, transposed, strided, offset, broadcast, broadcast_columns]
layouts = st.sampled_from(ALL_LAYOUTS)
# Equal in all channels of a normalized state, gradients would add up to zero but for rounding.
gradient_layouts = st.sampled_from([plain, transposed, strided, offset, broadcast])
# Edges that broadcast would be self-loops alone.
edge_layouts = st.sampled_from([plain, transposed, strided, offset])


@contextmanager
def unchanged(*tensors):
    before = [(tensor.detach().clone(), tensor._version) for tensor in tensors]
    yield
    for tensor, (value, version) in zip(tensors, before, strict=True):
        assert tensor.detach().equal(value) and tensor._version == version


def draw_tensor(data, shape, dtype, generator):
    tensor = 2 * torch.rand(shape, dtype=torch.float64, generator=generator) - 1
    return data.draw(layouts)(tensor.to(dtype)).requires_grad_(data.draw(st.booleans()))


def draw_forest(data) -> Forest:
    edge_index, num_nodes = data.draw(forests())
    root = data.draw(st.sampled_from(["first", "last"]))
    return root_forest(edge_index, num_nodes=num_nodes, root=root)


def draw_graph(data):
    edges, num_nodes = data.draw(multigraphs())
    return data.draw(edge_layouts)(to_edge_index(edges)), num_nodes


def draw_weights(data, num_edges):
    """Few values, so that many tie; negative and infinite ones too, where the dtype has them."""
    drawn = data.draw(st.lists(st.integers(0, 3), min_size=num_edges, max_size=num_edges))
    weight = torch.tensor(drawn, dtype=torch.long).to(data.draw(weight_dtypes))
    if weight.dtype != torch.uint8 and data.draw(st.booleans()):
        weight = weight - 2
    if not weight.is_floating_point():
        return data.draw(layouts)(weight)
    if data.draw(st.booleans()):
        weight = torch.where(weight.abs() > 1, weight * torch.inf, weight)
    return data.draw(layouts)(weight).requires_grad_(data.draw(st.booleans()))


def check_like_reference(data, found, operands: dict, reference, dtype):
    """Values and every gradient, for an upstream one of any layout, against the reference in
    doubles.
    """
    doubles = {
        name: operand.detach().double().contiguous().requires_grad_(operand.requires_grad)
        for name, operand in operands.items()
    }
    expected = reference(**doubles)
    assert found.dtype == dtype and found.shape == expected.shape
    assert_near("output", found, expected, NEAR[dtype])
    wanted = [name for name, operand in operands.items() if operand.requires_grad]
    assert found.requires_grad == bool(wanted)
    if not wanted:
        return
    # A reference without a node has nothing to differentiate.
    expected = expected + sum(0 * doubles[name].sum() for name in wanted)
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    grad = data.draw(gradient_layouts)(grad)
    with unchanged(grad):
        grads = torch.autograd.grad(found, [operands[name] for name in wanted], grad)
    expected_grads = torch.autograd.grad(
        expected, [doubles[name] for name in wanted], grad.double().contiguous()
    )
    for name, actual, other in zip(wanted, grads, expected_grads, strict=True):
        assert_near(f"gradient of {name}", actual, other, 4 * NEAR[dtype])


@fuzzes("minimum_spanning_forest")
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


@fuzzes("minimum_spanning_forest_stream")
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


@fuzzes("root_forest")
@given(st.data())
def test_root_forest(data):
    edge_index, num_nodes = draw_graph(data)
    mask = minimum_spanning_forest_reference(
        edge_index.contiguous(), draw_weights(data, edge_index.size(1)).detach(), num_nodes
    )
    mask = data.draw(st.sampled_from([plain, strided, offset]))(mask)
    root = data.draw(st.sampled_from(["first", "last", "given"]))
    if root == "given":
        root = draw_roots(data, edge_index[:, mask], num_nodes)
    with unchanged(edge_index, mask):
        found = root_forest(edge_index, mask, num_nodes, root)
    order, parent = root_forest_reference(
        edge_index.contiguous(), mask.contiguous(), num_nodes, root
    )
    assert found.order.equal(order) and found.parent.equal(parent)


def draw_roots(data, edge_index, num_nodes):
    """A node of every tree, in any sequence."""
    graph = nx.Graph()
    graph.add_nodes_from(range(num_nodes))
    graph.add_edges_from(edge_index.t().tolist())
    roots = [data.draw(st.sampled_from(sorted(tree))) for tree in nx.connected_components(graph)]
    return torch.tensor(data.draw(st.permutations(roots)), dtype=torch.long)


@fuzzes("Forest")
@given(st.data())
def test_forest(data):
    drawn = draw_forest(data)
    forest = Forest(drawn.order, drawn.parent)
    parent = forest.parent.tolist()
    lines = [line_to_root(parent, node) for node in range(forest.num_nodes)]
    with unchanged(forest.order, forest.parent):
        assert forest.depth.tolist() == [len(line) - 1 for line in lines]
        assert sorted(forest.roots.tolist()) == sorted({line[-1] for line in lines})
        assert forest.num_trees == len({line[-1] for line in lines})
        levels = [level.tolist() for level in forest.levels]
    place = {node: index for index, node in enumerate(forest.order.tolist())}
    for depth, level in enumerate(levels):
        assert set(level) == {node for node, line in enumerate(lines) if len(line) == depth + 1}
        assert level == sorted(level, key=place.get)
    assert forest.to("cpu").parent.equal(forest.parent)


@fuzzes("tree_scan")
@given(st.data(), dtypes, sizes, directions, seeds)
def test_tree_scan(data, dtype, channels, direction, seed):
    forest, generator = draw_forest(data), torch.Generator().manual_seed(seed)
    shape = forest.order.numel(), channels
    operands = {name: draw_tensor(data, shape, dtype, generator) for name in ("x", "transition")}
    with unchanged(*operands.values(), forest.order, forest.parent):
        found = tree_scan(**operands, forest=forest, direction=direction)
        check_like_reference(
            data,
            found,
            operands,
            lambda x, transition: tree_scan_reference(x, transition, forest, direction),
            dtype,
        )


@fuzzes("selective_tree_scan")
@given(st.data(), dtypes, sizes, st.integers(1, 3), directions, seeds)
def test_selective_tree_scan(data, dtype, channels, state_size, direction, seed):
    forest, generator = draw_forest(data), torch.Generator().manual_seed(seed)
    N, D, S = forest.order.numel(), channels, state_size
    shapes = {"u": (N, D), "delta": (N, D), "A": (D, S), "B": (N, S), "C": (N, S), "D": (D,)}
    shapes["transition_delta"] = (N, D)
    for name in ("D", "transition_delta"):
        if data.draw(st.booleans()):
            del shapes[name]
    operands = {name: draw_tensor(data, shape, dtype, generator) for name, shape in shapes.items()}
    eps = data.draw(st.sampled_from([None, EPS]))
    others = {"forest": forest, "direction": direction, "state_norm_eps": eps}

    def reference(**operands):
        return selective_tree_scan_reference(**operands, **others)

    with unchanged(*operands.values(), forest.order, forest.parent):
        found = selective_tree_scan(**operands, **others)
        check_like_reference(data, found, operands, reference, dtype)


def draw_settings(data) -> dict:
    """Of a TreeSSMConv."""
    edge_steps = data.draw(st.booleans())
    return {
        "edge_steps": edge_steps,
        "state_size": data.draw(st.integers(1, 3)),
        "expand": data.draw(st.sampled_from([1, 1.4, 2])),
        "metric": data.draw(st.sampled_from([*METRICS] if edge_steps else PLAIN_METRICS)),
        "tree": data.draw(st.sampled_from(["min", "max", "random"])),
        "root": data.draw(st.sampled_from(["first", "last"])),
        "direction": data.draw(directions),
        "aggr": data.draw(st.sampled_from([None, "mean", "sum", ["max", "mean"]])),
        "state_norm": data.draw(st.booleans()),
        "bias": data.draw(st.booleans()),
    }


@fuzzes("TreeSSMConv")
@given(st.data(), seeds, st.booleans())
def test_tree_ssm_conv(data, seed, is_double):
    """Along the tree that it grew, any memory layout gives what the plain one gives; gradients
    reach x and all weights.
    """
    edge_index, num_nodes = draw_graph(data)
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if is_double else torch.float32
    x = draw_tensor(data, (num_nodes, 4), dtype, generator)
    weight = draw_weights(data, edge_index.size(1)) if data.draw(st.booleans()) else None
    torch.manual_seed(seed)
    settings = draw_settings(data)
    layer = TreeSSMConv(4, 3, **settings).to(dtype)
    if weight is not None and settings["edge_steps"]:
        weight = weight.detach().abs().clamp(max=9)  # lengths
    with unchanged(x, edge_index, *([] if weight is None else [weight])):
        torch.manual_seed(seed)
        forest, transition = scan_of_layer(layer, x, edge_index, weight)
        torch.manual_seed(seed)
        found = layer(x, edge_index, weight)
    check_spans(forest, edge_index)
    if weight is not None and settings["tree"] != "random":
        check_is_best(forest, edge_index, weight.detach().contiguous(), settings)
    assert found.shape == (num_nodes, 3) and found.dtype == dtype
    assert found.isfinite().all()
    assert transition.shape == (num_nodes, layer.inner_channels * settings["state_size"])
    length = {}
    if weight is not None and settings["edge_steps"]:
        torch.manual_seed(seed)
        features = torch.zeros(num_nodes, layer.inner_channels)
        grown, length["edge_length"] = layer.topology.forest_and_length(
            features, edge_index, weight
        )
        assert grown.parent.equal(forest.parent)
    same = layer(x.detach().contiguous(), edge_index.contiguous(), forest=forest, **length)
    assert_near("layer", found, same, NEAR[dtype])

    found.sum().backward()
    assert (x.grad is not None) == x.requires_grad
    # Given lengths need no embedding.
    unused = [layer.topology.embedding.weight] if length and settings["metric"] == "learned" else []
    for parameter in layer.parameters():
        assert any(parameter is other for other in unused) or parameter.grad.isfinite().all()


@fuzzes("TreeGNN")
@few
@given(st.data(), st.integers(1, 3), st.booleans(), st.booleans(), seeds)
def test_tree_gnn(data, num_layers, local, edge_steps, seed):
    edge_index, num_nodes = draw_graph(data)
    torch.manual_seed(seed)
    model = TreeGNN(3, 4, num_layers, 2, local=local, edge_steps=edge_steps)
    x = draw_tensor(data, (num_nodes, 3), torch.float32, torch.Generator().manual_seed(seed))
    with unchanged(x, edge_index):
        out = model(x, edge_index)
    assert out.shape == (num_nodes, 2)
    assert_near("out", out, model(x.detach().clone(), edge_index), NEAR[x.dtype])


@fuzzes("TreeTopology")
@given(st.data(), seeds, st.booleans())
def test_tree_topology(data, seed, is_double):
    """Any memory layout gives the forest that the reference finds over the same dissimilarities."""
    edge_index, num_nodes = draw_graph(data)
    generator = torch.Generator().manual_seed(seed)
    x = draw_tensor(data, (num_nodes, 4), torch.float64 if is_double else torch.float32, generator)
    settings = {name: draw_settings(data)[name] for name in ("metric", "tree", "root")}
    topology = TreeTopology(**settings, channels=4).to(x.dtype)
    with unchanged(x, edge_index):
        torch.manual_seed(seed)
        found = topology(x, edge_index)
    torch.manual_seed(seed)
    again = topology(x, edge_index)
    check_spans(found, edge_index)
    assert again.order.equal(found.order) and again.parent.equal(found.parent)
    if settings["tree"] != "random":
        x, metric = topology.with_metric(x.detach().contiguous())
        check_is_best(found, edge_index, metric(*x[edge_index]).detach(), settings)


def check_is_best(found, edge_index, weight, settings):
    """The forest of the reference, rooted by the reference."""
    edge_index, num_nodes = edge_index.contiguous(), found.num_nodes
    weight = weight if settings["tree"] == "min" else -weight.to(torch.float64)
    mask = minimum_spanning_forest_reference(edge_index, weight, num_nodes)
    order, parent = root_forest_reference(edge_index, mask, num_nodes, settings["root"])
    assert found.order.equal(order) and found.parent.equal(parent)


@fuzzes("TreeSSM")
@given(st.data(), directions, seeds, st.booleans(), st.integers(1, 3))
def test_tree_ssm(data, direction, seed, state_norm, state_size):
    """As pair by pair, in doubles."""
    forest, generator = draw_forest(data), torch.Generator().manual_seed(seed)
    u = draw_tensor(data, (forest.num_nodes, 4), torch.float64, generator)
    torch.manual_seed(seed)
    ssm = TreeSSM(4, state_size, direction=direction, state_norm=state_norm).double()
    with unchanged(u, forest.order, forest.parent):
        found = ssm(u, forest)
        transition = ssm.transition(u)
    assert transition.shape == (*u.shape, state_size)
    assert ((transition > 0) & (transition < 1)).all()
    if forest.num_nodes > 0:
        expected = plain_loop(ssm, u.detach(), forest)
        assert_near("states", found, expected, NEAR[torch.float64])


@fuzzes("ImageToGraph", "PointsToGraph", "TextToGraph", "ToSpanningForest")
@given(st.data(), seeds)
def test_transforms(data, seed):
    """Every node stands in the forest once, below its parent; no transform changes its input."""
    generator = torch.Generator().manual_seed(seed)
    patch, few = data.draw(st.integers(1, 2)), st.integers(1, 5)
    shape = (3, patch * data.draw(few), patch * data.draw(few))
    shape = data.draw(st.sampled_from([shape, *((batch_size, *shape) for batch_size in range(3))]))
    image = draw_tensor(data, shape, torch.float32, generator)
    if data.draw(st.booleans()):
        image = data.draw(layouts)((image.detach().abs() * 255).to(torch.uint8))
    points = draw_tensor(data, (data.draw(st.integers(0, 9)), 3), torch.float32, generator)
    features = draw_tensor(data, (data.draw(st.integers(0, 9)), 4), torch.float32, generator)
    near = data.draw(st.sampled_from([{"k": 1}, {"k": 2}, {"radius": 0.5}]))
    made = [
        (ImageToGraph(data.draw(st.sampled_from([4, 8])), patch), image),
        (PointsToGraph(**near), points),
        (TextToGraph(data.draw(st.integers(1, 4))), features),
    ]
    to_forest = ToSpanningForest(data.draw(st.sampled_from(PLAIN_METRICS)))
    for transform, tensor in made:
        with unchanged(tensor):
            graph = transform(tensor)
        graph.validate()
        keys = set(graph.keys())
        with unchanged(graph.x, graph.edge_index):
            rooted = to_forest(graph)
        assert set(graph.keys()) == keys
        check_spans(Forest.from_data(rooted), graph.edge_index)


@fuzzes("SuperpixelsToGraph")
@few
@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 9), seeds)
def test_superpixels(height, width, num_superpixels, seed):
    pytest.importorskip("skimage")
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
    with unchanged(image):
        graph = SuperpixelsToGraph(num_superpixels)(image)
    graph.validate()
    assert graph.segment_index.unique().tolist() == list(range(graph.num_nodes))


def check_spans(forest, edge_index):
    """Every node stands in the order once, below its parent, and there are as many edges of the
    graph as join its components.
    """
    order, parent = forest.order.tolist(), forest.parent.tolist()
    assert sorted(order) == list(range(forest.num_nodes))
    place = {node: index for index, node in enumerate(order)}
    assert all(place[parent[node]] <= place[node] for node in order)
    edges = set(map(tuple, edge_index.t().tolist()))
    branches = [(node, above) for node, above in enumerate(parent) if node != above]
    assert all({(node, above), (above, node)} & edges for node, above in branches)
    components = nx.Graph(list(edges))
    components.add_nodes_from(range(forest.num_nodes))
    assert len(branches) == forest.num_nodes - nx.number_connected_components(components)


@fuzzes("CliquePath", "CrossedRing", "RingTransfer", "TreeNeighborsMatch")
@given(st.data(), st.integers(3, 12), st.integers(1, 4), st.integers(2, 6), seeds)
def test_datasets(data, distance, num_graphs, num_classes, seed):
    make = partial(
        data.draw(st.sampled_from([RingTransfer, CrossedRing, CliquePath])),
        distance, num_graphs, num_classes,
    )  # fmt: skip
    if data.draw(st.booleans()):
        make = partial(TreeNeighborsMatch, data.draw(st.integers(1, 4)), num_graphs)
    dataset, again = make(seed=seed), make(seed=seed)
    assert len(dataset) == num_graphs
    for graph, same in zip(dataset, again, strict=True):
        graph.validate()
        assert 0 <= int(graph.y) < dataset.num_classes
        assert graph.x.equal(same.x) and graph.y.equal(same.y)
        assert nx.is_connected(to_networkx(graph, to_undirected=True))


@given(st.data(), dtypes, st.integers(0, 3), seeds)
def test_affinity_map(data, dtype, channels, seed):
    """The product of the transitions on the way, which are those of the lower ends."""
    forest = draw_forest(data)
    assume(forest.num_nodes > 0)
    generator, node = torch.Generator().manual_seed(seed), data.draw(st.integers(0, 20))
    node = node % forest.num_nodes
    shape = (forest.num_nodes, channels) if channels else (forest.num_nodes,)
    transition = draw_tensor(data, shape, dtype, generator)
    with unchanged(transition, forest.order, forest.parent):
        found = affinity_map(forest, transition, node)
    doubles = transition.detach().double().view(forest.num_nodes, -1)
    parent = forest.parent.tolist()
    own, expected = line_to_root(parent, node), torch.zeros(forest.num_nodes, dtype=torch.float64)
    for other in range(forest.num_nodes):
        line = line_to_root(parent, other)
        if line[-1] == own[-1]:
            way = sorted(set(line) ^ set(own))
            expected[other] = doubles[way].prod(dim=0).mean()
    assert_near("affinity", found, expected, NEAR[dtype])


@pytest.mark.filterwarnings("ignore:Glyph")
@few
@given(st.data(), st.integers(1, 6), st.integers(1, 6), seeds)
def test_plots(data, height, width, seed):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    generator = torch.Generator().manual_seed(seed)
    image = draw_tensor(data, (3, height, width), torch.float32, generator)
    image = image.detach().abs()
    forest = raster_forest(height, width)
    assert forest.order.equal(torch.arange(height * width))
    rooted = ToSpanningForest()(ImageToGraph()(image))
    grown = Forest.from_data(rooted)
    words = data.draw(st.lists(st.text(max_size=3), min_size=grown.num_nodes, max_size=40))
    affinity = affinity_map(grown, torch.rand(grown.num_nodes, generator=generator), 0)
    with unchanged(image, grown.order, grown.parent, affinity):
        for draw in (
            lambda: plot_image_tree(image, grown),
            lambda: plot_text_tree(words[: grown.num_nodes], grown),
            lambda: plot_affinity(affinity, height, width, node=0),
        ):
            plt.figure(figsize=(2, 2))
            draw().figure.canvas.draw()
            plt.close()


@fuzzes("GridTreeSSM")
@few
@given(st.data(), st.integers(0, 2), st.integers(1, 9), st.integers(1, 9), seeds)
def test_grid_tree_ssm(data, batch_size, height, width, seed):
    torch.manual_seed(0)
    layer = GridTreeSSM(4)
    generator = torch.Generator().manual_seed(seed)
    x = draw_tensor(data, (batch_size, height, width, 4), torch.float32, generator)
    with unchanged(x):
        found = layer(x)
    assert found.shape == x.shape
    assert_near("output", found, layer(x.detach().contiguous()), 2e-4)
    found.sum().backward()
    assert (x.grad is not None) == x.requires_grad


@fuzzes("GrootV")
@few
@given(st.data(), st.integers(0, 2), st.integers(32, 70), st.integers(32, 70), seeds)
def test_grootv(data, batch_size, height, width, seed):
    torch.manual_seed(0)
    model = GrootV(channels=4, depths=(1, 1, 1, 1), num_classes=3).eval()
    generator = torch.Generator().manual_seed(seed)
    images = draw_tensor(data, (batch_size, 3, height, width), torch.float32, generator)
    with unchanged(images):
        found = model(images)
    assert found.shape == (batch_size, 3)
    assert_near("logits", found, model(images.detach().contiguous()), 2e-4)
    found.sum().backward()
    assert (images.grad is not None) == images.requires_grad


@fuzzes("ClickSegmenter", "click_segmenter")
@few
@given(st.data(), st.integers(0, 2), st.integers(1, 5), st.integers(1, 5), seeds)
def test_click_segmenter(data, batch_size, height, width, seed):
    torch.manual_seed(seed)
    model = deepcopy(small_segmenter())
    generator = torch.Generator().manual_seed(seed)
    images, clicks = (
        draw_tensor(data, (batch_size, channels, height, width), torch.float32, generator)
        for channels in (3, 2)
    )
    with unchanged(images, clicks):
        out = model(images, clicks)
    assert out.shape == (batch_size, height, width)
    plain_ones = images.detach().clone(), clicks.detach().clone()
    assert_near("out", out, model(*plain_ones), NEAR[images.dtype])
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    photograph = torch.rand(3, height, width, generator=generator)
    found = click_segmenter().segment(photograph, [(x, y)])
    assert found.shape == (height, width) and ((found >= 0) & (found <= 1)).all()


@lru_cache(maxsize=1)
def small_segmenter():
    return ClickSegmenter(4, 1, 8)


@fuzzes("convert_grootv_checkpoint", "load_grootv")
@few
@given(st.data(), st.sampled_from([4, 8]), st.integers(0, 3), seeds)
def test_load_grootv(tmp_path_factory, data, channels, num_classes, seed):
    """Whatever has happened to a file, it is read or refused, and a model is filled or left."""
    torch.manual_seed(seed)
    depths = data.draw(st.tuples(*4 * [st.integers(1, 2)]))
    model, filled = (GrootV(channels, depths, num_classes=num_classes) for _ in range(2))
    layout = data.draw(edge_layouts)
    weights = {
        name: layout(value) if value.dim() > 0 else value
        for name, value in model.state_dict().items()
    }
    with unchanged(*weights.values()):
        converted = convert_grootv_checkpoint({f"module.{name}": weights[name] for name in weights})
    assert all(converted[name].equal(value) for name, value in model.state_dict().items())

    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(converted, path)
    assert_same_weights(load_grootv(path), model)
    path.write_bytes(damaged(data, path.read_bytes()))
    before = {name: value.clone() for name, value in filled.state_dict().items()}
    try:
        load_grootv(path, model=filled)
    except ValueError as error:
        assert "'path'" in str(error) or "'state_dict'" in str(error)
        assert all(before[name].equal(value) for name, value in filled.state_dict().items())


def assert_same_weights(found, model):
    weights = model.state_dict()
    assert found.state_dict().keys() == weights.keys()
    assert all(weights[name].equal(value) for name, value in found.state_dict().items())


def damaged(data, content: bytes) -> bytes:
    """Cut off, or with other bytes in some places: most often in the lists at its two ends."""
    if data.draw(st.booleans()):
        return content[: data.draw(st.integers(0, len(content) - 1))]
    content, last = bytearray(content), len(content) - 1
    places = st.one_of(
        st.integers(0, last), st.integers(0, 5000), st.integers(last - 5000, last)
    ).map(lambda place: min(place, last))
    for place in data.draw(st.lists(places, min_size=1, max_size=20)):
        content[place] = data.draw(st.integers(0, 255))
    return bytes(content)


@lru_cache
def untrained_grootl(tree_mode="context"):
    transformers = pytest.importorskip("transformers", minversion="5.5")
    from groot_graph.models import GrootLForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 8, "state_size": 2, "num_hidden_layers": 2}
    mamba = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes))
    return GrootLForCausalLM.from_mamba(mamba, tree_mode=tree_mode).eval()


@fuzzes("GrootLForCausalLM")
@few
@given(st.data(), st.integers(1, 3), st.integers(1, 12), seeds)
def test_grootl(data, batch_size, length, seed):
    """A prompt that is padded on the left, in a batch of others, is read as alone."""
    model, generator = untrained_grootl(), torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 20, (batch_size, length), generator=generator)
    start = torch.tensor([data.draw(st.integers(0, length - 1)) for _ in range(batch_size)])
    mask = (torch.arange(length) >= start[:, None]).long()
    tokens, mask = (data.draw(edge_layouts)(tensor) for tensor in (tokens * mask, mask))
    with unchanged(tokens, mask), torch.no_grad():
        found = model(tokens, attention_mask=mask).logits
        alone = [
            model(row[None, first:]).logits[0] for row, first in zip(tokens, start, strict=True)
        ]
    for row, first, expected in zip(found, start, alone, strict=True):
        assert_near("logits", row[first:], expected, 2e-4)


@few
@given(st.data(), st.integers(1, 12), seeds)
def test_causal_grootl(data, length, seed):
    """What comes later changes nothing of what came before."""
    model, generator = untrained_grootl("causal"), torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 20, (2, length), generator=generator)
    tokens, first = data.draw(layouts)(tokens), data.draw(st.integers(1, length))
    with unchanged(tokens), torch.no_grad():
        found, alone = model(tokens).logits, model(tokens[:, :first]).logits
    assert_near("logits", found[:, :first], alone, 2e-4)


@few
@given(st.data(), st.sampled_from(["context", "causal"]), st.integers(1, 9), seeds)
def test_grootl_generates(data, tree_mode, length, seed):
    """The same with its cache as without, for prompts that are padded on the left."""
    # Doubles, so that rounding does not decide between tokens of equal scores.
    model = deepcopy(untrained_grootl(tree_mode)).double()
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(1, 20, (2, length), generator=generator)
    start = torch.tensor([data.draw(st.integers(0, length - 1)) for _ in range(2)])
    mask = (torch.arange(length) >= start[:, None]).long()
    prompt, mask = (data.draw(edge_layouts)(tensor) for tensor in (prompt * mask, mask))
    with unchanged(prompt, mask):
        cached, whole = (
            model.generate(
                prompt, attention_mask=mask, max_new_tokens=4, use_cache=use_cache, pad_token_id=0
            )
            for use_cache in (True, False)
        )
    assert cached.equal(whole) and cached[:, :length].equal(prompt)


def test_every_public_name_is_fuzzed():
    of_fixed_size = {"grootv_micro", "grootv_tiny", "grootv_small", "grootv_base"}  # of a GrootV
    public = {name: getattr(module, name) for module in MODULES for name in module.__all__}
    errors = {name for name, value in public.items() if value is groot_graph.NotANumberError}
    fuzzed = {name for names in FUZZED.values() for name in names}
    assert public.keys() - errors - {"datasets", "nn", "transforms"} - of_fixed_size == fuzzed


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_layouts_are_what_they_are_called(layout):
    tensor = torch.rand(4, 3)
    made = layout(tensor)
    assert made.shape == tensor.shape
    if layout not in (broadcast, broadcast_columns):
        assert made.equal(tensor)
    assert made.is_contiguous() == (layout in (plain, offset))
    assert (made.storage_offset() > 0) == (layout is offset)
