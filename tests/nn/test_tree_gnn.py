import copy

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.data import Batch, Data
from torch_geometric.datasets import KarateClub
from torch_geometric.explain import Explainer, GNNExplainer
from torch_geometric.nn import SAGEConv, summary

from groot_graph.nn import TreeGNN, TreeSSMConv

SETTINGS = [
    {},
    {"out_channels": None},
    {"jk": "cat"},
    {"jk": "cat", "out_channels": None},
    {"jk": "max"},
    {"jk": "lstm"},
    {"jk": "last", "dropout": 0.5},
    {"norm": None},
    {"norm": "batch_norm"},
    {"norm": "graph_norm"},
    {"norm": "layer_norm", "norm_kwargs": {"mode": "graph"}},
    {"residual": False},
    {"local": False, "state_size": 3},
    {"edge_steps": True, "num_layers": 1},
]


def make(**settings) -> TreeGNN:
    torch.manual_seed(0)
    return TreeGNN(5, 8, **{"num_layers": 2, "out_channels": 3, **settings})


def graph(num_nodes: int = 7, seed: int = 0) -> Data:
    generator = torch.Generator().manual_seed(seed)
    path = torch.arange(num_nodes)
    edges = torch.stack([path[:-1], path[1:]])
    more = torch.randint(num_nodes, (2, 4), generator=generator)
    edge_index = torch.cat([edges, edges.flip(0), more, more.flip(0)], dim=1)
    return Data(x=torch.randn(num_nodes, 5, generator=generator), edge_index=edge_index)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_setting_has_its_shape_and_all_gradients(settings):
    model, data = make(**settings), graph()
    out = model(data.x, data.edge_index, batch=torch.zeros(7, dtype=torch.long))
    wanted = 8 if "out_channels" in settings and "jk" not in settings else 3
    if settings == {"jk": "cat", "out_channels": None}:
        wanted = 8
    assert out.shape == (7, wanted) and model.out_channels == wanted
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_layers_follow_the_formula():
    model, data = make(), graph()
    x = model.lin_in(data.x)
    for conv, norm in zip(model.convs, model.norms, strict=False):
        given = F.layer_norm(x, (8,))
        assert torch.allclose(given, norm(x, None, None), atol=1e-5)
        x = x + conv.local(given, data.edge_index) + conv.tree(given, data.edge_index)
    torch.testing.assert_close(
        model(data.x, data.edge_index), model.lin_out(F.layer_norm(x, (8,))), atol=1e-4, rtol=1e-4
    )


def test_a_batch_is_its_graphs():
    model, graphs = make().eval(), [graph(7), graph(4, seed=1)]
    batch = Batch.from_data_list(graphs)
    apart = torch.cat([model(data.x, data.edge_index) for data in graphs])
    torch.testing.assert_close(model(batch.x, batch.edge_index), apart)


def test_every_node_of_a_component_is_heard_with_one_layer():
    model, data = make(num_layers=1).eval(), graph()
    x = data.x.requires_grad_()
    model(x, data.edge_index)[0].sum().backward()
    assert (x.grad.abs().sum(dim=1) > 0).all()


def test_weights_are_dissimilarities():
    model, data = make().eval(), graph()
    weight = torch.arange(data.num_edges, dtype=torch.float)
    out = model(data.x, data.edge_index, weight)
    assert not torch.allclose(out, model(data.x, data.edge_index))
    assert not torch.allclose(out, model(data.x, data.edge_index, -weight))


def test_without_local_layers_are_ours_alone():
    kinds = {type(module) for module in make(local=False).modules()}
    assert TreeSSMConv in kinds and SAGEConv not in kinds
    assert {type(module) for module in make().modules()} >= {TreeSSMConv, SAGEConv}


def test_reset_draws_all_anew():
    model = make(jk="lstm")
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    model.reset_parameters()
    assert not any((value == 7).all() for value in model.state_dict().values())
    assert before.keys() == model.state_dict().keys()


def test_the_size_may_come_from_the_first_input():
    model, data = TreeGNN(-1, 8, num_layers=2, out_channels=3), graph()
    assert model(data.x, data.edge_index).shape == (7, 3)


def test_learns_the_karate_club_at_the_usual_rates():
    data = KarateClub()[0]
    for learning_rate in (1e-2, 1e-3):
        torch.manual_seed(0)
        model = TreeGNN(data.num_features, 16, num_layers=2, out_channels=4)
        optimizer = torch.optim.Adam(model.parameters(), learning_rate)
        for _ in range(60):
            out = model(data.x, data.edge_index)
            loss = F.cross_entropy(out[data.train_mask], data.y[data.train_mask])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss < 0.2


def test_is_summarized_and_explained_as_models_of_pyg_are():
    model, data = make().eval(), graph()
    assert "TreeSSMConv" in summary(model, data.x, data.edge_index)
    explainer = Explainer(
        model,
        GNNExplainer(epochs=2),
        explanation_type="model",
        edge_mask_type="object",
        model_config={
            "mode": "multiclass_classification",
            "task_level": "node",
            "return_type": "raw",
        },
    )
    assert explainer(data.x, data.edge_index, index=0).edge_mask.shape == (data.num_edges,)


@pytest.mark.full
def test_compiles():
    model, data = make().eval(), graph()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(data.x, data.edge_index), model(data.x, data.edge_index))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"hidden_channels": 0}, ValueError, "'hidden_channels' must be at least 1, got 0"),
        ({"num_layers": 0}, ValueError, "'num_layers' must be at least 1, got 0"),
        ({"out_channels": 2.5}, TypeError, "'out_channels' must be an int"),
        ({"jk": "sum"}, ValueError, "'jk' must be one of"),
        ({"residual": 1}, TypeError, "'residual' must be a bool"),
        ({"local": "sage"}, TypeError, "'local' must be a bool"),
        ({"norm": "no_norm"}, ValueError, "no_norm"),
    ],
)
def test_refuses_what_makes_no_sense(settings, error, message):
    with pytest.raises(error, match=message):
        TreeGNN(**{"in_channels": 5, "hidden_channels": 8, "num_layers": 2, **settings})
