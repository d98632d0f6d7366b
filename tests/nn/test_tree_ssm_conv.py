import copy
import io
import math
import shutil
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from torch_geometric.data import Batch, Data
from torch_geometric.explain import (
    CaptumExplainer,
    Explainer,
    GNNExplainer,
    GraphMaskExplainer,
    PGExplainer,
)
from torch_geometric.explain.algorithm.utils import set_masks
from torch_geometric.nn import GPSConv, MessagePassing, Sequential, SoftmaxAggregation, to_hetero
from torch_geometric.utils import add_remaining_self_loops, scatter, to_undirected

import groot_graph
from groot_graph import root_forest
from groot_graph.nn import GridTreeSSM, TreeSSM, TreeSSMConv, TreeTopology
from tests.equipment.adjacencies import FORMS, adjacency_forms
from tests.equipment.graphs import make_forest, random_graph
from tests.equipment.modules import perturbed, pickled
from tests.equipment.processes import leave_group

EDGE_INDEX = torch.tensor([[0, 1, 2, 0], [1, 2, 3, 3]])
NO_EDGES = torch.empty(2, 0, dtype=torch.long)
DIRECTIONS = ("both", "up", "down")
AGGRS = (None, "mean", "sum", "max", ["mean", "max"], SoftmaxAggregation(learn=True))


def test_repr():
    assert str(TreeSSMConv(16, 32)) == "TreeSSMConv(16, 32)"
    assert str(TreeSSMConv(-1, 32, state_size=4)) == "TreeSSMConv(-1, 32, state_size=4)"


@pytest.mark.parametrize(
    "options",
    [
        "expand=1.5",
        "dt_rank=5",
        "metric='euclidean', tree='random', root='last', direction='up'",
        "aggr=None",
        "aggr='sum', state_norm=False, bias=True",
        "aggr=['mean', 'max']",
        "edge_steps=True",
        "metric='cosine', edge_steps=True",
    ],
)
def test_repr_tells_every_option_that_is_not_the_default(options):
    conv = eval(f"TreeSSMConv(16, 32, {options})")
    assert str(conv) == f"TreeSSMConv(16, 32, {options})"


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"heads": 4}, "'state_size'"),
        ({"dropout": 0.1}, "TreeGNN"),
        ({"edge_dim": 3}, "'edge_weight' of the call"),
        ({"statesize": 3}, "those of its description"),
    ],
)
def test_arguments_of_other_layers_are_told_what_stands_in_their_place(options, hint):
    with pytest.raises(TypeError, match=f"has no argument '{next(iter(options))}': .*{hint}"):
        TreeSSMConv(4, 8, **options)


def test_arguments_of_message_passing_are_taken():
    conv = TreeSSMConv(4, 8, flow="target_to_source", aggr="softmax", aggr_kwargs={"learn": True})
    assert conv.flow == "target_to_source" and conv.aggr_module.learn


def test_a_batch_vector_is_told_that_it_is_not_needed():
    edge_index = torch.tensor([[0, 1], [1, 2]])
    with pytest.raises(ValueError, match="a batch vector is not needed"):
        TreeSSMConv(4, 8)(torch.randn(4, 4), edge_index, torch.tensor([0, 0, 0, 1]))


def test_repr_names_a_metric_and_an_aggregation():
    def far(x_i, x_j):
        return (x_i - x_j).abs().sum(dim=-1)

    conv = TreeSSMConv(16, 32, metric=far, aggr=SoftmaxAggregation(learn=True))
    assert str(conv) == "TreeSSMConv(16, 32, metric=far, aggr=SoftmaxAggregation(learn=True))"


@pytest.mark.parametrize("form", FORMS)
def test_every_adjacency_form_gives_the_same_output(form):
    conv, x = perturbed(TreeSSMConv(5, 7)).double(), torch.randn(17, 5, dtype=torch.float64)
    edge_index = random_graph(17, 60).unique(dim=1)
    adjacency = adjacency_forms(edge_index, 17)[form]
    assert_close(conv(x, adjacency), conv(x, edge_index))


def test_same_as_its_parts():
    conv, x = perturbed(TreeSSMConv(5, 7, bias=True, expand=1.5)), torch.randn(17, 5)
    edge_index = random_graph(17, 60)
    u = x @ conv.in_proj.weight.t() + conv.in_proj.bias
    z = x @ conv.gate_proj.weight.t() + conv.gate_proj.bias
    neighbors = scatter(u[edge_index[0]], edge_index[1], dim_size=17, reduce="mean")
    u = F.silu(conv.weight_self * u + conv.weight_neighbor[0] * neighbors + conv.bias_mix)
    y = conv.ssm(u, TreeTopology()(u, edge_index))
    y = F.layer_norm(y, (10,), conv.out_norm.weight, conv.out_norm.bias) * F.silu(z)
    assert_close(conv(x, edge_index), y @ conv.out_proj.weight.t() + conv.out_proj.bias)


def test_edge_steps_are_those_of_its_parts():
    conv, x = perturbed(TreeSSMConv(5, 7, edge_steps=True)), torch.randn(17, 5)
    edge_index = random_graph(17, 60)
    u = conv._activate(conv.in_proj(x), edge_index)
    forest, edge_length = conv.topology.forest_and_length(u, edge_index)
    expected = conv._gate(conv.ssm(u, forest, edge_length), conv.gate_proj(x))
    assert_close(conv(x, edge_index), expected)
    assert_close(conv(x, edge_index, forest=forest), expected)
    assert_close(conv(x, edge_index, forest=forest, edge_length=edge_length), expected)
    assert not torch.allclose(
        conv(x, edge_index, forest=forest, edge_length=2 * edge_length), expected
    )


def test_given_weights_are_the_lengths():
    conv, x = perturbed(TreeSSMConv(5, 7, edge_steps=True)), torch.randn(17, 5)
    edge_index, edge_weight = random_graph(17, 60), torch.rand(60)
    forest, edge_length = conv.topology.forest_and_length(
        torch.ones(17, conv.inner_channels), edge_index, edge_weight
    )
    expected = conv(x, edge_index, forest=forest, edge_length=edge_length)
    assert_close(conv(x, edge_index, edge_weight), expected)
    published = TreeSSMConv(5, 7)
    published.load_state_dict(conv.state_dict(), strict=False)
    assert_close(conv(x, edge_index, 0 * edge_weight), published(x, edge_index, 0 * edge_weight))


@pytest.mark.parametrize(
    "metric", ["euclidean", "cosine", lambda x_i, x_j: (x_i - x_j).norm(dim=1)]
)
def test_edge_steps_over_any_metric(metric):
    conv, x = TreeSSMConv(5, 7, edge_steps=True, metric=metric), torch.randn(17, 5)
    edge_index = random_graph(17, 60)
    forest, edge_length = conv.topology.forest_and_length(
        conv._activate(conv.in_proj(x), edge_index), edge_index
    )
    expected = conv(x, edge_index, forest=forest, edge_length=edge_length)
    assert_close(conv(x, edge_index), expected)


@pytest.mark.parametrize("state_size,state_norm", [(1, True), (3, False), (3, True)])
def test_gradients_reach_the_embedding(state_size, state_norm):
    conv = TreeSSMConv(5, 7, state_size, state_norm=state_norm, edge_steps=True)
    conv(torch.randn(17, 5), random_graph(17, 60)).square().sum().backward()
    for parameter in (conv.topology.embedding.weight, conv.ssm.sigma):
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "edge_steps, arguments, message",
    [
        (False, {"edge_length": True, "forest": True}, "'edge_length' must be None unless"),
        (True, {"edge_length": True}, "'edge_length' must be None unless"),
        (True, {"edge_weight": -1.0}, "'edge_weight' must hold finite lengths .* got -1"),
        (True, {"edge_weight": math.inf}, "'edge_weight' must hold finite lengths .* got inf"),
        (True, {"edge_weight": math.nan}, "'edge_weight' must hold lengths, got NaN"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(edge_steps, arguments, message):
    conv, edge_index = TreeSSMConv(5, 7, edge_steps=edge_steps), random_graph(17, 60)
    values = {
        "edge_length": torch.ones(17),
        "forest": root_forest(torch.arange(17).unfold(0, 2, 1).t()),
        "edge_weight": torch.full((60,), arguments.get("edge_weight", 0.0)),
    }
    with pytest.raises(ValueError, match=message):
        conv(torch.randn(17, 5), edge_index, **{name: values[name] for name in arguments})


@pytest.mark.parametrize("layer", [TreeSSMConv, GridTreeSSM])
def test_a_learned_metric_needs_edge_steps(layer):
    sizes = (5, 7) if layer is TreeSSMConv else (8,)
    with pytest.raises(ValueError, match="'metric' must not be 'learned' where 'edge_steps' is"):
        layer(*sizes, metric="learned")
    with pytest.raises(TypeError, match="'edge_steps' must be a bool, got str"):
        layer(*sizes, edge_steps="yes")


@pytest.mark.parametrize("elements", [1, 30, 169])
def test_parts_of_a_large_graph_give_what_it_gives_as_a_whole(elements, monkeypatch):
    conv, x = perturbed(TreeSSMConv(5, 7, expand=1.5)), torch.randn(17, 5, requires_grad=True)
    edge_index, inputs = random_graph(17, 60), [x, *conv.parameters()]
    whole = conv(x, edge_index)
    monkeypatch.setattr(groot_graph.nn.tree_ssm_conv, "ELEMENTS_IN_PART", elements)
    parts = conv(x, edge_index)
    assert_close(parts, whole)
    grad = torch.randn_like(whole)
    assert_close(torch.autograd.grad(parts, inputs, grad), torch.autograd.grad(whole, inputs, grad))


@pytest.mark.parametrize("aggr", AGGRS, ids=str)
@pytest.mark.parametrize("state_size,state_norm", [(1, True), (3, False), (3, True)])
def test_gradients_reach_every_parameter(aggr, state_size, state_norm):
    aggr = copy.deepcopy(aggr)
    conv = perturbed(TreeSSMConv(5, 7, state_size, aggr=aggr, state_norm=state_norm, bias=True))
    x = torch.randn(17, 5, requires_grad=True)
    conv(x, random_graph(17, 60)).square().sum().backward()
    for name, parameter in [("x", x), *conv.named_parameters()]:
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("aggr", [None, "mean", ["mean", "max"]], ids=str)
def test_reset_parameters_follows_the_seed(aggr):
    conv = TreeSSMConv(5, 7, aggr=aggr, bias=True)
    torch.manual_seed(5)
    conv.reset_parameters()
    first = copy.deepcopy(conv.state_dict())
    perturbed(conv)
    torch.manual_seed(5)
    conv.reset_parameters()
    for name, value in conv.state_dict().items():
        assert value.equal(first[name]), name


@pytest.mark.parametrize("aggr", ["mean", "max", ["mean", "max"]], ids=str)
def test_mix_of_several_states_begins_as_the_node_alone(aggr):
    conv = TreeSSMConv(5, 7, 3, aggr=aggr)
    u, edge_index = torch.randn(17, 14), random_graph(17, 60)
    assert_close(conv._mix(u, edge_index), u / 6**0.5)


@pytest.mark.parametrize("aggr", ["mean", "max", ["mean", "max"]], ids=str)
def test_mix_of_one_state_begins_as_a_node_and_its_neighbors(aggr):
    conv = TreeSSMConv(5, 7, aggr=aggr)
    u, edge_index = torch.randn(17, 14), random_graph(17, 60)
    names = [aggr] if isinstance(aggr, str) else aggr
    rows = u[edge_index[0]]
    neighbors = [scatter(rows, edge_index[1], dim_size=17, reduce=name) for name in names]
    assert_close(conv._mix(u, edge_index), u + sum(neighbors) / len(neighbors))


@pytest.mark.parametrize("in_channels", [5, -1])
def test_gate_begins_open(in_channels):
    conv, x = TreeSSMConv(in_channels, 7), torch.randn(4, 5)
    for _ in range(2):
        conv(x, EDGE_INDEX).square().sum().backward()
        assert_close(F.silu(conv.gate_proj(x)), torch.ones(4, 14))
        assert conv.gate_proj.weight.grad.abs().min() > 0
        perturbed(conv).reset_parameters()


@pytest.mark.parametrize("state_size", [1, 4])
def test_a_node_first_hears_most_of_those_like_it(state_size):
    ssm = TreeSSMConv(5, 8, state_size, dt_rank=3).ssm
    _, B, C = ssm.x_proj.weight.split([3, state_size, state_size])
    assert torch.equal(B, C)
    # Values, not a shared tensor.
    u = torch.randn(6, 16)
    ssm(u, make_forest("random", 6)).square().sum().backward()
    _, B, C = ssm.x_proj.weight.grad.split([3, state_size, state_size])
    assert not torch.equal(B, C)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("state_size", [2, 16, 19])
def test_states_begin_as_orthonormal_directions(state_size, dtype):
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        ssm = TreeSSMConv(5, 8, state_size).ssm
    finally:
        torch.set_default_dtype(default)
    B = ssm.x_proj.weight[ssm.dt_rank : ssm.dt_rank + state_size].double()
    # Of 16 inner channels: of all of them where there are states enough.
    product = B @ B.t() if state_size <= 16 else B.t() @ B
    tolerance = 1e-5 if dtype != torch.bfloat16 else 0.02
    expected = torch.eye(min(state_size, 16), dtype=torch.float64)
    assert_close(product, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("in_channels", [6, -1])
def test_in_projection_of_several_states_begins_larger_by_what_the_mix_takes_back(in_channels):
    for state_size, expected in ((1, 6**-0.5), (2, 1.0)):
        conv = TreeSSMConv(in_channels, 70, state_size)
        conv(torch.randn(4, 6), EDGE_INDEX)
        for _ in range(2):
            bound = conv.in_proj.weight.abs().max().item()
            assert bound == pytest.approx(expected, rel=0.02)
            assert bound * conv.weight_self[0].item() == pytest.approx(6**-0.5, rel=0.02)
            perturbed(conv).reset_parameters()


def test_training_follows_the_seed():
    def train():
        torch.manual_seed(3)
        conv, x, edge_index = TreeSSMConv(5, 7), torch.randn(33, 5), random_graph(33, 99)
        optimizer = torch.optim.AdamW(conv.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            conv(x, edge_index).square().sum().backward()
            optimizer.step()
        return conv(x, edge_index)

    assert train().equal(train())


def test_lazy_in_channels():
    conv = TreeSSMConv(-1, 7)
    unused = pickled(copy.deepcopy(conv))
    assert unused(torch.randn(4, 3), EDGE_INDEX).shape == (4, 7)
    assert conv(torch.randn(4, 5), EDGE_INDEX).shape == (4, 7)
    assert conv.in_proj.weight.shape == conv.gate_proj.weight.shape == (14, 5)
    with pytest.raises(ValueError, match=r"'x' must have shape .* = \[any, 5\], got \[4, 3\]"):
        conv(torch.randn(4, 3), EDGE_INDEX)


def test_dt_rank_follows_the_outer_width():
    assert TreeSSMConv(5, 33).ssm.dt_rank == 3
    assert TreeSSMConv(5, 33, dt_rank=7).ssm.dt_rank == 7


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("num_nodes,num_edges", [(17, 60), (33, 20)], ids=["dense", "sparse"])
def test_permuted_nodes_give_permuted_output(num_nodes, num_edges, direction):
    conv = perturbed(TreeSSMConv(5, 7, 3, direction=direction)).double()
    x = torch.randn(num_nodes, 5, dtype=torch.float64)
    edge_index = random_graph(num_nodes, num_edges)
    root = TreeTopology()(x, edge_index, root="last").roots
    permutation = torch.randperm(num_nodes)
    number = permutation.argsort()
    edges = torch.randperm(num_edges)
    permuted = conv(x[permutation], number[edge_index[:, edges]], root=number[root])
    assert_close(permuted, conv(x, edge_index, root=root)[permutation])


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("root", ["first", "last"])
@pytest.mark.parametrize("edge_steps", [False, True], ids=["published", "edge_steps"])
def test_batch_gives_what_each_graph_gives(edge_steps, direction, root):
    settings = {"direction": direction, "root": root, "edge_steps": edge_steps}
    conv = perturbed(TreeSSMConv(5, 7, **settings)).double()
    sizes = [(7, 19), (1, 0), (12, 8), (5, 5)]
    graphs = [
        Data(x=torch.randn(num_nodes, 5).double(), edge_index=random_graph(num_nodes, num_edges))
        for num_nodes, num_edges in sizes
    ]
    batch = Batch.from_data_list(graphs)
    alone = torch.cat([conv(data.x, data.edge_index) for data in graphs])
    assert_close(conv(batch.x, batch.edge_index), alone)


def test_edge_weight_and_forest():
    conv, x = perturbed(TreeSSMConv(5, 7)), torch.randn(4, 5)
    edge_weight = torch.tensor([4.0, 1.0, 2.0, 3.0])
    forest = TreeTopology()(x, EDGE_INDEX, edge_weight)
    out = conv(x, EDGE_INDEX, edge_weight)
    assert_close(conv(x, EDGE_INDEX, forest=forest), out)
    assert not torch.allclose(conv(x, EDGE_INDEX, -edge_weight), out)


def test_edge_index_is_not_needed_without_mix_and_with_a_forest():
    conv, x = TreeSSMConv(5, 7, aggr=None), torch.randn(9, 5)
    forest = make_forest("random", 9)
    assert not hasattr(conv, "weight_self")
    assert_close(conv(x, forest=forest), conv(x, random_graph(9, 3), forest=forest))


@pytest.mark.parametrize("aggr", AGGRS, ids=str)
@pytest.mark.parametrize("num_nodes", [0, 1, 3])
def test_no_edges(num_nodes, aggr):
    conv = TreeSSMConv(5, 7, aggr=copy.deepcopy(aggr))
    x = torch.randn(num_nodes, 5, requires_grad=True)
    out = conv(x, NO_EDGES)
    out.sum().backward()
    assert out.shape == (num_nodes, 7)
    assert x.grad.shape == x.shape


def test_isolated_nodes_hear_themselves():
    conv, x = perturbed(TreeSSMConv(5, 7)), torch.randn(6, 5)
    edge_index = torch.tensor([[0, 2], [2, 4]])
    alone = conv(x[[1, 3, 5]], NO_EDGES)
    assert_close(conv(x, edge_index)[[1, 3, 5]], alone)


def test_flow():
    conv = perturbed(TreeSSMConv(5, 7))
    reverse = TreeSSMConv(5, 7, flow="target_to_source")
    reverse.load_state_dict(conv.state_dict())
    x, edge_index = torch.randn(17, 5), random_graph(17, 60)
    assert_close(reverse(x, edge_index), conv(x, edge_index.flip(0)))


def test_sequential():
    x, edge_index = torch.randn(17, 5), random_graph(17, 60)
    layers = [(TreeSSMConv(5, 7), "x, edge_index -> x"), torch.nn.ReLU()]
    model = Sequential("x, edge_index", [*layers, (TreeSSMConv(7, 3), "x, edge_index -> x")])
    expected = model[2](model[0](x, edge_index).relu(), edge_index)
    assert_close(model(x, edge_index), expected)


def test_gps_conv():
    gps = GPSConv(8, conv=TreeSSMConv(8, 8), heads=2)
    gps.reset_parameters()
    batch = torch.tensor([0] * 10 + [1] * 7)
    x = torch.randn(17, 8)
    edge_index = torch.cat([random_graph(10, 30), random_graph(7, 9) + 10], dim=1)
    out = gps(x, edge_index, batch)
    out.square().sum().backward()
    assert out.shape == (17, 8)
    assert all(parameter.grad is not None for parameter in gps.conv.parameters())


class Homogeneous(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = TreeSSMConv(-1, 7)

    def forward(self, x, edge_index):
        return self.conv(x, edge_index)


def test_to_hetero_within_one_node_type():
    relations = [("atom", "bond", "atom"), ("atom", "near", "atom")]
    model = to_hetero(Homogeneous(), (["atom"], relations))
    x = torch.randn(17, 5)
    edges = {relation: random_graph(17, 30, seed) for seed, relation in enumerate(relations)}
    out = model({"atom": x}, edges)["atom"]
    convs = [model.conv["__".join(relation)] for relation in relations]
    alone = [conv(x, edge_index) for conv, edge_index in zip(convs, edges.values(), strict=True)]
    assert_close(out, sum(alone))


def test_to_hetero_between_node_types_is_refused():
    relation = ("user", "buys", "item")
    model = to_hetero(Homogeneous(), (["user", "item"], [relation, ("item", "by", "user")]))
    x = {"user": torch.randn(4, 5), "item": torch.randn(4, 5)}
    edges = {relation: EDGE_INDEX, ("item", "by", "user"): EDGE_INDEX}
    with pytest.raises(
        ValueError, match="'TreeSSMConv' does not support bipartite message passing"
    ):
        model(x, edges)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("state_norm", [False, True], ids=["plain", "state_norm"])
@pytest.mark.parametrize("edge_steps", [False, True], ids=["published", "edge_steps"])
def test_autocast(edge_steps, dtype, state_norm):
    settings = {"state_norm": state_norm, "edge_steps": edge_steps}
    conv, x = TreeSSMConv(5, 7, 3, **settings), torch.randn(17, 5)
    edge_index, forest = random_graph(17, 60), make_forest("random", 17)
    with torch.autocast("cpu", dtype=dtype):
        out, grown = conv(x, edge_index, forest=forest), conv(x, edge_index)
    assert out.dtype == grown.dtype == dtype
    assert_close(out.float(), conv(x, edge_index, forest=forest), atol=0.05, rtol=0.05)
    grown.float().square().sum().backward()
    for name, parameter in conv.named_parameters():
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype):
    conv, x = TreeSSMConv(5, 7).to(dtype), torch.randn(17, 5).to(dtype)
    edge_index, forest = random_graph(17, 60), make_forest("random", 17)
    out = conv(x, edge_index, forest=forest)
    assert conv(x, edge_index).dtype == out.dtype == dtype
    conv, x = conv.float(), x.float()
    assert_close(out.float(), conv(x, edge_index, forest=forest), atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"state_size": 3, "state_norm": False, "aggr": ["mean", "max"]},
        pytest.param({"edge_steps": True}, marks=pytest.mark.full),
    ],
    ids=["default", "many_states", "edge_steps"],
)
def test_compile(settings):
    conv = perturbed(TreeSSMConv(5, 7, **settings)).double()
    compiled = torch.compile(conv, backend="aot_eager", fullgraph=True)
    for num_nodes, num_edges in [(17, 60), (12, 31)]:
        x = torch.randn(num_nodes, 5, dtype=torch.float64)
        edge_index = random_graph(num_nodes, num_edges)
        out, expected = compiled(x, edge_index), conv(x, edge_index)
        assert_close(out, expected)
        grads = torch.autograd.grad(out.square().sum(), conv.parameters())
        expected = torch.autograd.grad(expected.square().sum(), conv.parameters())
        assert_close(grads, expected)


@pytest.mark.parametrize("edge_steps", [False, pytest.param(True, marks=pytest.mark.full)])
def test_export_for_any_number_of_nodes(edge_steps):
    conv = perturbed(TreeSSMConv(5, 7, edge_steps=edge_steps)).eval()
    nodes, edges = torch.export.Dim("nodes", min=2), torch.export.Dim("edges", min=2)
    program = torch.export.export(
        conv,
        (torch.randn(17, 5), random_graph(17, 60)),
        dynamic_shapes={"x": {0: nodes}, "edge_index": {1: edges}},
        strict=False,
    )
    x, edge_index = torch.randn(12, 5), random_graph(12, 31)
    assert_close(program.module()(x, edge_index), conv(x, edge_index))


@pytest.mark.parametrize("settings", [{}, {"tree": "random"}, {"edge_steps": True}], ids=str)
def test_an_exported_layer_is_read_back(settings):
    """With gradients too, under which a tree is grown without."""
    conv, x, edge_index = (
        TreeSSMConv(5, 7, **settings).eval(),
        torch.randn(17, 5),
        random_graph(17, 60),
    )
    program, file = torch.export.export(conv, (x, edge_index), strict=False), io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    if settings.get("tree") != "random":
        assert_close(loaded(x, edge_index), conv(x, edge_index))


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_compile_with_inductor():
    conv, x = TreeSSMConv(5, 7, aggr=None), torch.randn(17, 5)
    edge_index = random_graph(17, 60)
    with torch.no_grad():
        assert_close(torch.compile(conv, fullgraph=True)(x, edge_index), conv(x, edge_index))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
@pytest.mark.parametrize("aggr", AGGRS, ids=str)
def test_copies(duplicate, aggr):
    conv, x, edge_index = TreeSSMConv(5, 7, aggr=aggr), torch.randn(17, 5), random_graph(17, 60)
    copied = duplicate(conv)
    assert copied(x, edge_index).equal(conv(x, edge_index))
    perturbed(copied)
    assert not copied(x, edge_index).equal(conv(x, edge_index))


def seeded_conv_and_graph(rank: int):
    torch.manual_seed(0)
    conv = TreeSSMConv(5, 7, 3, edge_steps=True).double()
    x = torch.randn(17, 5, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    return conv, x, random_graph(17, 40 + rank, seed=rank)


def train_on_one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    conv, x, edge_index = seeded_conv_and_graph(rank)
    model = DistributedDataParallel(conv)
    model(x, edge_index).square().mean().backward()
    grads = {name: parameter.grad for name, parameter in conv.named_parameters()}
    torch.save(grads, f"{folder}/{rank}.pt")
    # A model that outlives its group may wait for the thread of the group forever.
    del model
    leave_group()


@pytest.mark.full
def test_distributed_data_parallel(tmp_path):
    torch.multiprocessing.spawn(train_on_one_rank, (str(tmp_path),), nprocs=2, daemon=True)
    (conv, *graph), (_, *other_graph) = seeded_conv_and_graph(0), seeded_conv_and_graph(1)
    loss = conv(*graph).square().mean() + conv(*other_graph).square().mean()
    (loss / 2).backward()
    for rank in range(2):
        grads = torch.load(tmp_path / f"{rank}.pt")
        for name, parameter in conv.named_parameters():
            assert_close(grads[name], parameter.grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    "argument,value,error,message",
    [
        ("in_channels", 0, ValueError, "'in_channels' must be at least 1, got 0"),
        ("in_channels", -2, ValueError, "'in_channels' must be at least 1, got -2"),
        ("in_channels", 5.0, TypeError, "'in_channels' must be an int, got float"),
        ("in_channels", (5, 5), ValueError, r"'TreeSSMConv' .* bipartite .*, got \(5, 5\)"),
        ("out_channels", 0, ValueError, "'out_channels' must be at least 1, got 0"),
        ("out_channels", -1, ValueError, "'out_channels' must be at least 1, got -1"),
        ("out_channels", None, TypeError, "'out_channels' must be an int, got NoneType"),
        ("state_size", 0, ValueError, "'state_size' must be at least 1, got 0"),
        ("expand", 0.1, ValueError, "'expand' must make at least one inner channel .*, got 0.1"),
        ("expand", float("nan"), ValueError, "'expand' must make at least one .*, got nan"),
        ("expand", "2", TypeError, "'expand' must be a number, got str"),
        ("dt_rank", 0, ValueError, "'dt_rank' must be at least 1, got 0"),
        ("dt_rank", "full", ValueError, "'dt_rank' must be one of .*'auto'.*, got 'full'"),
        ("metric", "hamming", ValueError, "'metric' must be one of .*, got 'hamming'"),
        ("tree", "maximum", ValueError, "'tree' must be one of .*, got 'maximum'"),
        ("root", "middle", ValueError, "'root' must be one of .*, got 'middle'"),
        ("direction", "left", ValueError, "'direction' must be one of .*, got 'left'"),
        ("aggr", "average", ValueError, "'average'"),
        ("aggr", 1, TypeError, "'aggr' must be a str, a list, .*, got int"),
        ("state_norm", "layer", TypeError, "'state_norm' must be a bool, got str"),
        ("bias", 0, TypeError, "'bias' must be a bool, got int"),
        ("flow", "sideways", ValueError, "'flow' .*'sideways'"),
        ("heads", 2, TypeError, "'heads'"),
    ],
)
def test_bad_constructor_argument(argument, value, error, message):
    with pytest.raises(error, match=message):
        TreeSSMConv(**{"in_channels": 5, "out_channels": 7, argument: value})


x = torch.randn(4, 5)
FOREST = make_forest("chain", 4)


@pytest.mark.parametrize(
    "arguments,error,message",
    [
        ({"x": (x, x)}, ValueError, "'TreeSSMConv' does not support bipartite .* got a tuple of 2"),
        ({"x": x.numpy()}, TypeError, "'x' must be a torch.Tensor, got ndarray"),
        ({"x": x.long()}, TypeError, "'x' must have a floating point dtype, got torch.int64"),
        ({"x": x[0]}, ValueError, r"'x' must have shape .* = \[any, 5\], got \[5\]"),
        ({"x": x[:, :3]}, ValueError, r"'x' must have shape .* = \[any, 5\], got \[4, 3\]"),
        ({"x": x[:3]}, ValueError, "'edge_index' must hold node numbers from 0 .*= 2, got 3"),
        ({"x": x * torch.nan}, ValueError, "'x' must give a dissimilarity .* NaN at edge 0"),
        ({"edge_index": None}, ValueError, "'edge_index' must be given, got None"),
        ({"edge_index": None, "forest": FOREST}, ValueError, "'edge_index' must be given, got"),
        ({"edge_index": EDGE_INDEX.float()}, TypeError, "'edge_index' must have dtype"),
        ({"edge_index": EDGE_INDEX[0]}, ValueError, r"'edge_index' must have shape \[2, num_edges"),
        ({"edge_index": EDGE_INDEX - 1}, ValueError, "'edge_index' must hold .*, got -1"),
        ({"edge_weight": 1.0}, TypeError, "'edge_weight' must be a torch.Tensor, got float"),
        ({"edge_weight": torch.rand(3)}, ValueError, r"'edge_weight' must have shape .* = \[4\]"),
        ({"edge_weight": x[:, 0] * torch.nan}, ValueError, "'edge_weight' .* NaN"),
        ({"forest": EDGE_INDEX}, TypeError, "'forest' must be .*Forest, got Tensor"),
        ({"forest": make_forest("chain", 5)}, ValueError, "'forest' .* 'x' has rows, 4, got 5"),
        (
            {"forest": FOREST, "edge_weight": torch.rand(4)},
            ValueError,
            "'edge_weight' must be None where a 'forest' is given",
        ),
        (
            {"forest": FOREST, "root": "last"},
            ValueError,
            "'root' must be None where a 'forest' is given, got last",
        ),
        ({"root": "middle"}, ValueError, "'root' must be .*, got 'middle'"),
        ({"root": torch.tensor([7])}, ValueError, "'root' .*, got 7"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        TreeSSMConv(5, 7)(**{"x": x, "edge_index": EDGE_INDEX, **arguments})


def test_aggregation_of_another_width_is_refused():
    class Widening(SoftmaxAggregation):
        def forward(self, x, *args, **kwargs):
            return super().forward(torch.cat([x, x], dim=1), *args, **kwargs)

    with pytest.raises(
        ValueError, match=r"'aggr\(x\)' must have shape .* = \[4, 14\], got \[4, 28\]"
    ):
        TreeSSMConv(5, 7, aggr=Widening())(x, EDGE_INDEX)


def test_the_layer_alone_passes_messages():
    conv = TreeSSMConv(4, 4)
    assert [module for module in conv.modules() if isinstance(module, MessagePassing)] == [conv]


def test_no_value_is_read_that_is_not_there():
    conv = TreeSSMConv(4, 4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert conv(torch.randn(3, 4), torch.tensor([[0, 1], [1, 2]])).shape == (3, 4)


@pytest.mark.parametrize("settings", [{}, {"state_size": 2}, {"edge_steps": True}], ids=str)
def test_transforms_of_torch_func(settings):
    conv, x = TreeSSMConv(3, 4, **settings).double(), torch.rand(6, 3, dtype=torch.float64)
    edge_index, parameters = random_graph(6, 12), dict(conv.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(conv, parameters, (x, edge_index)).square().sum()

    grads = torch.autograd.grad(loss(parameters, x), parameters.values())
    assert_close(tuple(torch.func.grad(loss)(parameters, x).values()), grads)
    tangent = torch.rand_like(x)
    _, slope = torch.func.jvp(lambda x: loss(parameters, x), (x,), (tangent,))
    grad = torch.func.grad(loss, 1)(parameters, x)
    assert_close(slope, (grad * tangent).sum())
    traced = make_fx(lambda x: conv(x, edge_index))(x)
    assert_close(traced(x), conv(x, edge_index))
    functional = torch.func.functionalize(lambda x: conv(x, edge_index))
    assert_close(functional(x), conv(x, edge_index))


def test_one_forest_for_a_batch_of_layers():
    """An ensemble, as torch.func makes one, along a forest that is given."""
    conv, x, forest = TreeSSMConv(3, 4, aggr=None), torch.rand(6, 3), make_forest("random", 6)
    parameters = {name: torch.stack([p, 2 * p]) for name, p in conv.named_parameters()}

    def call(parameters):
        settings = {"forest": forest}
        return torch.func.functional_call(conv, parameters, (x,), settings)

    found = torch.func.vmap(call)(parameters)
    alone = [call({name: p[number] for name, p in parameters.items()}) for number in range(2)]
    assert_close(found, torch.stack(alone))
    edge_index = random_graph(6, 12)
    with pytest.raises(ValueError, match="'forest' must be the same for the whole batch"):
        torch.func.vmap(lambda x: conv(x, edge_index))(torch.rand(2, 6, 3))


@pytest.mark.parametrize("edge_steps", [False, True], ids=["published", "edge_steps"])
@pytest.mark.parametrize("state_size, state_norm", [(1, True), (2, True), (2, False)])
def test_parameters_are_read_by_the_module_that_holds_them(state_size, state_norm, edge_steps):
    """So that whoever keeps them elsewhere can bring them in time."""
    settings = {"state_norm": state_norm, "edge_steps": edge_steps}
    conv, x = perturbed(TreeSSMConv(5, 7, state_size, **settings)), torch.randn(17, 5)
    edge_index = random_graph(17, 60)
    expected = conv(x, edge_index)
    assert_close(kept_elsewhere(conv)(x, edge_index), expected)


def kept_elsewhere(model: torch.nn.Module) -> torch.nn.Module:
    """Every module's own parameters are there while it runs, and meaningless before and after."""
    for module in model.modules():
        values = {name: p.detach().clone() for name, p in module.named_parameters(recurse=False)}
        if not values:
            continue

        def bring(module, arguments, values=values):
            for name, value in values.items():
                getattr(module, name).data.copy_(value)

        def take_away(module, arguments, output, values=values):
            for name in values:
                getattr(module, name).data.fill_(math.nan)

        module.register_forward_pre_hook(bring)
        module.register_forward_hook(take_away)
        take_away(module, None, None)
    return model


def masked(conv: TreeSSMConv, edge_index: torch.Tensor, mask: torch.Tensor) -> TreeSSMConv:
    """As explainers mask the edges of a model."""
    conv = copy.deepcopy(conv)
    set_masks(conv, mask, edge_index, apply_sigmoid=False)
    return conv


@pytest.mark.parametrize("edge_steps", [False, True], ids=["published", "edge_steps"])
@pytest.mark.parametrize("state_size", [1, 3])
def test_an_edge_mask_reaches_the_tree(state_size, edge_steps):
    settings = {"aggr": None, "edge_steps": edge_steps}
    conv = perturbed(TreeSSMConv(4, 3, state_size, **settings)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    edge_index = torch.tensor([[0, 1, 2, 2, 1, 4], [1, 2, 3, 1, 0, 3]])
    forest = root_forest(edge_index[:, [0, 1, 2, 5]])
    everything = torch.ones(6, dtype=torch.float64)
    whole = masked(conv, edge_index, everything)(x, edge_index, forest=forest)
    assert_close(whole, conv(x, edge_index, forest=forest))
    # Without the edge between 1 and 2, in both directions.
    cut = everything.clone()
    cut[[1, 3]] = 0
    length = conv.topology.measure(conv._activate(conv.in_proj(x), None), forest)
    parts = root_forest(edge_index[:, [0, 2, 5]], root=torch.tensor([0, 2]), num_nodes=5)
    given = {"edge_length": length} if edge_steps else {}
    expected = conv(x, edge_index, forest=parts, **given)
    assert_close(masked(conv, edge_index, cut)(x, edge_index, forest=forest), expected)


def explain(model, algorithm, *inputs, mode="regression", kind="model", epochs=0, **kwargs):
    """The mask of the edges; PGExplainer is trained before."""
    model_config = {"mode": mode, "task_level": "node", "return_type": "raw"}
    explainer = Explainer(model, algorithm, kind, model_config, edge_mask_type="object")
    losses = [algorithm.train(epoch, model, *inputs, **kwargs) for epoch in range(epochs)]
    assert sum(losses[-5:]) <= sum(losses[:5])
    return explainer(*inputs, **kwargs).edge_mask


ONE_END = torch.tensor([[0, 1, 3], [1, 2, 4]])


@pytest.mark.parametrize("settings", [{}, {"aggr": None}, {"edge_steps": True}], ids=str)
def test_an_explainer_finds_the_edges_that_matter(settings):
    """On a path, an edge matters to the node at one end if taking it away changes the output."""
    conv, x = TreeSSMConv(4, 4, 4, **settings).eval(), torch.randn(5, 4)
    found = explain(conv, GNNExplainer(epochs=50), x, ONE_END, index=0)
    assert (found[:2] > 0).all() and found[2] == 0


@pytest.mark.parametrize("attribution", ["IntegratedGradients", "ShapleyValueSampling"])
def test_captum_finds_the_edges_that_matter(attribution):
    pytest.importorskip("captum")
    conv, x = TreeSSMConv(4, 4, 4).eval(), torch.randn(5, 4)
    algorithm = CaptumExplainer(attribution)
    found = explain(conv, algorithm, x, ONE_END, index=0, mode="multiclass_classification")
    assert (found[:2] != 0).all() and found[2] == 0


def test_an_explainer_learns_of_the_edges_that_matter():
    """PGExplainer's network sees the nodes' embeddings, and learns by the edge mask alone. It asks
    for the edges within as many hops of a node as there are layers.
    """
    conv, x = TreeSSMConv(4, 4, 4).eval(), torch.randn(5, 4)
    edge_index = to_undirected(ONE_END)
    algorithm = PGExplainer(epochs=30, lr=0.01, edge_size=0, edge_ent=0)
    settings = {"mode": "multiclass_classification", "kind": "phenomenon", "epochs": 30}
    target = conv(x, edge_index).argmax(1)
    found = explain(conv, algorithm, x, edge_index, target=target, index=0, **settings)
    assert (found > 0).equal((edge_index <= 1).all(dim=0))


def test_self_loops_that_a_model_adds_are_there_for_an_explainer():
    class WithLoops(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = TreeSSMConv(4, 4, 4)

        def forward(self, x, edge_index):
            return self.conv(x, add_remaining_self_loops(edge_index)[0])

    model, x = WithLoops().eval(), torch.randn(5, 4)
    loop = torch.tensor([[1], [1]])
    edge_index = torch.cat([loop, ONE_END], dim=1)
    found = explain(model, GNNExplainer(epochs=50), x, edge_index, index=0)
    assert (found[1:3] > 0).all() and found[3] == 0


def test_what_cannot_be_explained_is_refused():
    conv, x = TreeSSMConv(4, 4, aggr=None), torch.randn(5, 4)
    with pytest.raises(ValueError, match="explained by a mask of its edges, got none"):
        explain(conv, GraphMaskExplainer(1, epochs=1, log=False), x, ONE_END, index=0)
    forest = root_forest(ONE_END, num_nodes=5)
    conv = masked(TreeSSMConv(4, 4, aggr=None), ONE_END, torch.ones(3))
    with pytest.raises(ValueError, match="'edge_index' must be given where a model is explained"):
        conv(x, forest=forest)
    with pytest.raises(ValueError, match="got 2 edges and a mask of 3"):
        conv(x, ONE_END[:, :2])


@pytest.mark.parametrize(
    "edge_mask, error, message",
    [
        (torch.ones(3).long(), TypeError, "'edge_mask' must have a floating point dtype"),
        (torch.ones(4), ValueError, r"'edge_mask' must have shape \[num_nodes\]"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(edge_mask, error, message):
    ssm, u, forest = TreeSSM(4), torch.randn(3, 4), make_forest("chain", 3)
    for call in (partial(ssm, u, forest), partial(ssm.transition, u)):
        with pytest.raises(error, match=message):
            call(edge_mask=edge_mask)


def test_a_step_of_adam_turns_what_nodes_pass_on_by_little():
    """With weights as small as a projection begins with, a few steps at the rate that people use
    make other states of all nodes.
    """
    torch.manual_seed(0)
    conv = TreeSSMConv(16, 32)
    x, edge_index = torch.randn(40, 16), random_graph(40, 100)
    u = torch.randn(40, 64)
    before = conv.ssm.x_proj(u)
    optimizer = torch.optim.Adam(conv.parameters(), 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (conv(x, edge_index) - x.sum()).square().sum().backward()
        optimizer.step()
    change = (conv.ssm.x_proj(u) - before).norm() / before.norm()
    assert 0 < change < 0.1


def test_the_projection_of_the_states_begins_as_any_other():
    torch.manual_seed(0)
    ours = TreeSSMConv(16, 32).ssm.x_proj
    u = torch.randn(500, 64)
    wanted = torch.nn.Linear(64, 3, bias=False)(u)
    assert ours(u).std().item() == pytest.approx(wanted.std().item(), rel=0.5)
