import pytest
import torch

from groot_graph import Forest
from groot_graph.analysis import affinity_map, raster_forest, scan_of_layer
from groot_graph.models import GrootV
from groot_graph.nn import GridTreeSSM, TreeSSM, TreeSSMConv


@pytest.fixture
def forest():
    # 3 - 1 - 0 - 2 - 4 and 5 alone, on a grid of two rows and three columns
    return Forest(torch.tensor([0, 1, 3, 2, 4, 5]), torch.tensor([0, 0, 0, 1, 2, 5]))


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (0, [1, 0.5, 0.25, 0.25, 0.125, 0]),
        (3, [0.25, 0.5, 0.0625, 1, 0.03125, 0]),
        (5, [0, 0, 0, 0, 0, 1]),
    ],
)
def test_affinity_is_the_product_along_the_path(forest, node, expected):
    transition = torch.tensor([9.0, 0.5, 0.25, 0.5, 0.5, 9.0])
    assert affinity_map(forest, transition, node).tolist() == expected


def test_affinity_averages_channels(forest):
    transition = torch.rand(6, 2)
    each = [affinity_map(forest, transition[:, channel], 4) for channel in (0, 1)]
    torch.testing.assert_close(affinity_map(forest, transition, 4), (each[0] + each[1]) / 2)


@pytest.mark.parametrize(
    ("transition", "node", "error", "message"),
    [
        ([0.5], 0, TypeError, "'transition' must be a torch.Tensor, got list"),
        (torch.ones(6).long(), 0, TypeError, "'transition' must .*got torch.int64"),
        (torch.ones(6, 1, 1), 0, ValueError, r"'transition' .*got \[6, 1, 1\]"),
        (torch.ones(5), 0, ValueError, "'forest' must have as many nodes"),
        (torch.ones(6), 6, ValueError, r"'node' must lie in \[0, 5\], got 6"),
        (torch.ones(6), -1, ValueError, r"'node' must lie in \[0, 5\], got -1"),
        (torch.ones(6), 1.0, TypeError, "'node' must be an int, got float"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_affinity_refuses_bad_input(forest, transition, node, error, message):
    with pytest.raises(error, match=message):
        affinity_map(forest, transition, node)


class TwoConvs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = TreeSSMConv(3, 4)
        self.second = TreeSSMConv(4, 4, state_size=2)
        self.unused = TreeSSM(5)

    def forward(self, x, edge_index):
        return self.second(self.first(x, edge_index), edge_index)


EDGE_INDEX = torch.tensor([[0, 1, 2, 0], [1, 2, 3, 3]])


@pytest.mark.parametrize(
    "layer, channels", [(0, 8), ("first", 8), ("first.ssm", 8), (1, 16), ("second", 16), (-2, 16)]
)
def test_scan_of_a_layer_is_what_it_scans(layer, channels):
    model = TwoConvs()
    x = torch.randn(4, 3)
    forest, transition = scan_of_layer(model, x, EDGE_INDEX, layer=layer)
    assert transition.shape == (4, channels) and not transition.requires_grad
    assert ((transition > 0) & (transition < 1)).all()
    assert forest.num_trees == 1
    assert affinity_map(forest, transition, 2)[2] == 1
    if layer == 0:
        u = torch.nn.functional.silu(model.first._mix(model.first.in_proj(x), EDGE_INDEX))
        assert forest.parent.equal(model.first.topology(u, EDGE_INDEX).parent)
        delta = torch.nn.functional.softplus(
            model.first.ssm.dt_proj(model.first.ssm.x_proj(u)[:, : model.first.ssm.dt_rank])
        )
        expected = torch.exp(-delta * model.first.ssm.A_log.exp().flatten())
        torch.testing.assert_close(transition, expected.detach())


def test_scan_of_a_layer_with_edge_steps():
    conv, x = TreeSSMConv(3, 4, edge_steps=True), torch.randn(4, 3)
    forest, transition = scan_of_layer(conv, x, EDGE_INDEX)
    u = torch.nn.functional.silu(conv._mix(conv.in_proj(x), EDGE_INDEX))
    edge_length = conv.topology.measure(u, forest)
    torch.testing.assert_close(transition, conv.ssm.transition(u, edge_length).flatten(1).detach())


def test_scan_of_a_layer_leaves_no_hook_behind():
    model = GrootV(channels=8, depths=(1, 1, 1, 1), num_classes=2)
    with pytest.raises(ValueError, match="images"):
        scan_of_layer(model, torch.randn(1, 3, 8, 8))
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    "layer, error, message",
    [
        (
            3,
            ValueError,
            "one of the 3 scans of the model, got 3; it scans in first.ssm, sec",
        ),
        ("third", ValueError, "'third' with 0; the model scans in first.ssm"),
        ("", ValueError, "'' with 0"),
        (1.0, TypeError, "'layer' must be a str or an int, got float"),
        ("unused", ValueError, "'layer' must be one that the model runs, got 'unused'"),
    ],
)
def test_scan_of_a_layer_refuses_bad_layers(layer, error, message):
    with pytest.raises(error, match=message):
        scan_of_layer(TwoConvs(), torch.randn(4, 3), EDGE_INDEX, layer=layer)


def test_scan_of_a_layer_refuses_what_is_no_model():
    with pytest.raises(TypeError, match="'model' must be a torch.nn.Module, got int"):
        scan_of_layer(3)
    with pytest.raises(ValueError, match="of the 0 scans of the model, got 0; it scans in none"):
        scan_of_layer(torch.nn.Linear(1, 1), torch.zeros(1, 1))


def test_raster_forest_is_the_chain_of_the_rows():
    forest = raster_forest(2, 3)
    assert forest.parent.tolist() == [0, 0, 1, 2, 3, 4]
    affinity = affinity_map(forest, torch.full((6,), 0.5), node=2)
    assert affinity.tolist() == [0.25, 0.5, 1.0, 0.5, 0.25, 0.125]
    with pytest.raises(ValueError, match="'width' must be at least 1, got 0"):
        raster_forest(2, 0)


@pytest.mark.parametrize("edge_steps", [False, True], ids=["published", "edge_steps"])
def test_a_scan_of_an_offloaded_layer(edge_steps):
    accelerate = pytest.importorskip("accelerate")
    conv = TreeSSMConv(4, 4, state_size=2, edge_steps=edge_steps)
    x, edge_index = torch.randn(3, 4), torch.tensor([[0, 1], [1, 2]])
    forest, transition = scan_of_layer(conv, x, edge_index)
    accelerate.cpu_offload(conv, execution_device=torch.device("cpu"))
    assert conv.ssm.A_log.is_meta
    again, offloaded = scan_of_layer(conv, x, edge_index)
    assert again.parent.equal(forest.parent) and offloaded.equal(transition)
    u, length = torch.randn(3, conv.inner_channels), torch.rand(3) if edge_steps else None
    assert conv.ssm.transition(u, length).shape == (3, conv.inner_channels, 2)


@pytest.mark.parametrize("edge_steps", [False, True], ids=["published", "edge_steps"])
def test_layers_run_on_tensors_without_values(edge_steps):
    with torch.device("meta"):
        conv, grid = TreeSSMConv(4, 4, edge_steps=edge_steps), GridTreeSSM(4, edge_steps=edge_steps)
        out = conv(torch.randn(3, 4), torch.zeros(2, 5, dtype=torch.long))
        assert out.shape == (3, 4)
        assert grid(torch.randn(1, 2, 3, 4)).shape == (1, 2, 3, 4)
