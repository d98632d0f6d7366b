import copy

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from groot_graph import Forest
from groot_graph.errors import NotANumberError
from groot_graph.graphs import grid_edge_index
from groot_graph.nn import GridTreeSSM, TreeTopology
from groot_graph.nn.grid_tree_ssm import convolve
from groot_graph.transforms import ImageToGraph
from tests.equipment.graphs import make_forest


@pytest.fixture
def x():
    return torch.randn(2, 5, 4, 8)


@pytest.mark.parametrize("shape", [(2, 5, 4, 8), (1, 1, 1, 8), (3, 1, 6, 8), (0, 4, 4, 8)], ids=str)
def test_output_has_the_shape_of_the_input(shape):
    assert GridTreeSSM(8)(torch.randn(shape)).shape == shape


def test_inner_channels():
    layer = GridTreeSSM(6, expand=3)
    assert layer.out_norm.normalized_shape == (18,)
    assert layer(torch.randn(1, 2, 2, 6)).shape == (1, 2, 2, 6)


def test_a_grid_does_not_depend_on_its_batch(x):
    layer = GridTreeSSM(8)
    assert_close(layer(x)[1:], layer(x[1:]))


def test_every_node_hears_every_node_of_its_grid_alone(x):
    layer = GridTreeSSM(8)
    x.requires_grad_()
    layer(x)[0, 0, 0].sum().backward()
    assert x.grad[0].abs().sum(dim=-1).gt(0).all()
    assert x.grad[1].eq(0).all()


@pytest.mark.parametrize(
    "option",
    [{"metric": "euclidean"}, {"tree": "max"}, {"root": "last"}, {"direction": "down"}],
    ids=str,
)
def test_options_change_the_output(option):
    x = torch.randn(1, 6, 6, 8)
    layer, other = GridTreeSSM(8), GridTreeSSM(8, **option)
    other.load_state_dict(layer.state_dict())
    assert not torch.allclose(layer(x), other(x))


@pytest.mark.parametrize("metric", ["learned", "euclidean"])
def test_edge_steps_over_a_grid_are_those_over_a_graph(metric, x):
    layer = GridTreeSSM(8, edge_steps=True, metric=metric)
    u = torch.randn(2, 5, 4, 16, requires_grad=True)
    edge_index = grid_edge_index(5, 4, num_graphs=2)
    forest, edge_length = layer.topology.forest_and_length(u.flatten(0, 2), edge_index)
    expected, out = layer.ssm(u.flatten(0, 2), forest, edge_length), layer.propagate(u)
    assert_close(out.flatten(0, 2), expected)
    inputs, grad = [u, *layer.topology.parameters()], torch.randn_like(out)
    expected = torch.autograd.grad(expected.view_as(out), inputs, grad)
    assert_close(torch.autograd.grad(out, inputs, grad), expected)


def grown(layer: GridTreeSSM, features: torch.Tensor):
    """Over features of the same grids, with the metric of the layer."""
    batch, height, width, _ = features.shape
    edge_index = grid_edge_index(height, width, num_graphs=batch)
    return layer.topology.forest_and_length(features.flatten(0, 2), edge_index)


@pytest.mark.parametrize("edge_steps", [False, True], ids=["published", "edge_steps"])
def test_states_pass_along_a_given_forest(edge_steps, x):
    """Given what the layer grows itself, it gives what it gives without."""
    layer = GridTreeSSM(8, metric="euclidean", edge_steps=edge_steps)
    u = F.silu(convolve(layer.conv, layer.in_proj(x).chunk(2, dim=-1)[0]))
    forest, edge_length = grown(layer, u)
    assert_close(layer(x, forest), layer(x))
    given = (forest, edge_length) if edge_steps else (forest,)
    assert_close(layer(x, *given), layer(x))
    chain = Forest(torch.arange(40), (torch.arange(40) - 1).clamp(min=0))
    assert not torch.allclose(layer(x, chain), layer(x))


def test_a_tree_over_colors_is_learned(x):
    """One embedding of what no layer has blurred may serve several layers."""
    colors = torch.rand(2, 5, 4, 3)
    topology = TreeTopology("learned", channels=3)
    layers = [GridTreeSSM(8, edge_steps=True) for _ in range(2)]
    edge_index = grid_edge_index(5, 4, num_graphs=2)
    forest, edge_length = topology.forest_and_length(colors.flatten(0, 2), edge_index)
    out = layers[1](layers[0](x, forest, edge_length), forest, edge_length)
    out.square().sum().backward()
    assert topology.embedding.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "given, edge_steps, error, message",
    [
        ({"forest": 3}, True, TypeError, "'forest' must be a groot_graph.Forest, got int"),
        (
            {"forest": make_forest("chain", 39)},
            True,
            ValueError,
            "'forest' must have as many nodes as 'x' has rows, 40, got 39",
        ),
        ({"edge_length": torch.ones(40)}, True, ValueError, "'edge_length' must be None unless"),
        (
            {"forest": make_forest("chain", 40), "edge_length": torch.ones(40)},
            False,
            ValueError,
            "'edge_length' must be None unless",
        ),
        (
            {"forest": make_forest("chain", 40), "edge_length": torch.ones(39)},
            True,
            ValueError,
            r"'edge_length' must have shape \[num_nodes\]",
        ),
        (
            {"forest": make_forest("chain", 40), "edge_length": torch.full((40,), torch.nan)},
            True,
            NotANumberError,
            "'edge_length' must hold lengths, got NaN",
        ),
    ],
)
def test_a_forest_that_does_not_fit_is_refused(x, given, edge_steps, error, message):
    with pytest.raises(error, match=message):
        GridTreeSSM(8, edge_steps=edge_steps)(x, **given)


def test_random_trees_compute_no_weight(x):
    def metric(x_i, x_j):
        raise AssertionError("the weights of a random tree need no features")

    layer = GridTreeSSM(8, metric=metric, tree="random")
    torch.manual_seed(0)
    out = layer(x)
    torch.manual_seed(0)
    assert layer(x).equal(out)
    assert not layer(x).equal(out)


def test_a_metric_of_ones_own_is_that_of_the_name(x):
    layer = GridTreeSSM(8, metric="manhattan")
    other = copy.deepcopy(layer)
    other.topology.metric = lambda x_i, x_j: (x_i - x_j).abs().sum(dim=-1)
    assert other(x).equal(layer(x))


def test_hooks_run(x):
    layer = GridTreeSSM(8)
    seen = []
    for name, module in layer.named_children():
        if any(True for _ in module.parameters()):
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    layer(x)
    assert sorted(seen) == ["conv", "in_proj", "out_norm", "out_proj", "ssm"]


def test_its_edges_are_those_of_image_to_graph_and_built_once(x, monkeypatch):
    seen = []

    def noted(*args, **kwargs):
        seen.append(grid_edge_index(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr("groot_graph.nn.grid_tree_ssm.grid_edge_index", noted)
    for features in (x, torch.randn(2, 5, 4, 8), x[:1]):
        GridTreeSSM(8)(features)
    edge_index = seen[0]
    data = ImageToGraph()(x.permute(0, 3, 1, 2))
    pairs, wanted = (set(map(tuple, edges.t().tolist())) for edges in (edge_index, data.edge_index))
    assert pairs == {pair for pair in wanted if pair[0] < pair[1]}
    assert seen[1] is edge_index
    assert seen[2] is not edge_index


def test_the_edge_weights_of_slices_are_those_of_gathered_ends():
    mixer = GridTreeSSM(8)
    u = torch.randn(2, 5, 4, 16)
    edge_index = grid_edge_index(5, 4, num_graphs=2)
    gathered = torch.exp(-torch.cosine_similarity(*u.flatten(0, 2)[edge_index], dim=-1))
    weight = mixer._edge_weight(*mixer.topology.with_metric(u))
    assert_close(weight, gathered)
    nodes = u.flatten(0, 2)
    forest = mixer.topology(nodes, edge_index, weight)
    assert forest.parent.equal(mixer.topology(nodes, edge_index).parent)


def test_convolve_keeps_channels_last():
    conv = torch.nn.Conv2d(3, 5, 3, stride=2, padding=1)
    x = torch.randn(2, 7, 6, 3)
    out = convolve(conv, x)
    assert out.is_contiguous()
    assert_close(out.permute(0, 3, 1, 2), conv(x.permute(0, 3, 1, 2)))


@pytest.mark.parametrize(
    "x, error, message",
    [
        (torch.zeros(2, 4, 4, 7), ValueError, r"\[any, any, any, 8\], got \[2, 4, 4, 7\]"),
        (torch.zeros(4, 4, 8), ValueError, r"'x' must have shape \[batch, height, width, channels"),
        (torch.zeros(1, 4, 4, 8).long(), TypeError, "'x' must have a floating point dtype"),
        ([1.0], TypeError, "'x' must be a torch.Tensor, got list"),
    ],
    ids=["channels", "dimensions", "dtype", "type"],
)
def test_features_that_do_not_fit_are_refused(x, error, message):
    with pytest.raises(error, match=message):
        GridTreeSSM(8)(x)


def test_features_that_hold_nan_are_told_as_such(x):
    x[1, 2, 3] = torch.nan
    with pytest.raises(NotANumberError, match="'x' must give a dissimilarity for every edge"):
        GridTreeSSM(8)(x)


def test_a_metric_of_ones_own_must_have_a_value_per_edge(x):
    with pytest.raises(ValueError, match=r"'metric\(x_i, x_j\)' must have shape \[batch, rows"):
        GridTreeSSM(8, metric=lambda x_i, x_j: x_i - x_j)(x)
    with pytest.raises(TypeError, match=r"'metric\(x_i, x_j\)' must be a torch.Tensor, got int"):
        GridTreeSSM(8, metric=lambda x_i, x_j: 0)(x)


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({"channels": 0}, ValueError, "'channels' must be at least 1, got 0"),
        ({"expand": 1.5}, TypeError, "'expand' must be an int, got float"),
        ({"metric": "cosinus"}, ValueError, "'metric' must be one of"),
        ({"tree": "mean"}, ValueError, "'tree' must be one of"),
        ({"root": "middle"}, ValueError, "'root' must be one of"),
        ({"direction": "left"}, ValueError, "'direction' must be one of"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        GridTreeSSM(**{"channels": 8, **kwargs})
