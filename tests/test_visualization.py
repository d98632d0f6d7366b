import sys

import matplotlib
import pytest
import torch

matplotlib.use("agg")
from matplotlib import pyplot as plt  # noqa: E402

from groot_graph import Forest  # noqa: E402
from groot_graph.models import GrootV  # noqa: E402
from groot_graph.nn import TreeSSM, TreeSSMConv  # noqa: E402
from groot_graph.visualization import (  # noqa: E402
    affinity_map,
    plot_affinity,
    plot_image_tree,
    plot_text_tree,
    raster_forest,
    scan_of_layer,
)


@pytest.fixture
def forest():
    # 3 - 1 - 0 - 2 - 4 and 5 alone, on a grid of two rows and three columns
    return Forest(torch.tensor([0, 1, 3, 2, 4, 5]), torch.tensor([0, 0, 0, 1, 2, 5]))


@pytest.fixture
def ax():
    figure, ax = plt.subplots(figsize=(3, 2))
    yield ax
    plt.close(figure)


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


@pytest.mark.parametrize(
    "image",
    [
        torch.rand(2, 3),
        torch.rand(1, 2, 3),
        torch.rand(3, 2, 3),
        torch.randint(255, (4, 2, 3)).byte(),
    ],
    ids=lambda image: str(list(image.shape)),
)
def test_image_tree_draws_every_edge(forest, ax, image):
    assert plot_image_tree(image, forest, ax=ax) is ax
    ax.figure.canvas.draw()
    lines, roots = ax.collections
    drawn = {tuple(map(tuple, segment.tolist())) for segment in lines.get_segments()}
    point = {node: (float(node % 3), float(node // 3)) for node in range(6)}
    assert drawn == {(point[i], point[p]) for i, p in [(1, 0), (2, 0), (3, 1), (4, 2)]}
    assert roots.get_offsets().tolist() == [[0, 0], [2, 1]]
    # The branch at node 1 carries two nodes, the one at node 3 only itself.
    assert lines.get_linewidths()[0] > lines.get_linewidths()[2]


def test_image_tree_of_patches(forest, ax):
    plot_image_tree(torch.rand(3, 8, 12), forest, patch_size=4, ax=ax)
    assert ax.collections[1].get_offsets().tolist() == [[1.5, 1.5], [9.5, 5.5]]


def test_affinity_plot(ax):
    affinity = torch.arange(6.0) / 6
    assert plot_affinity(affinity, 2, 3, node=4, ax=ax) is ax
    ax.figure.canvas.draw()
    torch.testing.assert_close(torch.tensor(ax.images[0].get_array().data), affinity.view(2, 3))
    assert ax.collections[0].get_offsets().tolist() == [[1, 1]]


def test_current_axes_are_the_default(forest, ax):
    plt.sca(ax)
    assert plot_image_tree(torch.rand(2, 3), forest) is ax
    assert plot_affinity(torch.rand(6), 2, 3) is ax
    assert plot_text_tree(list("abcdef"), forest) is ax


def words_below(ax):
    ax.figure.canvas.draw()
    return ax.get_xticklabels()


def test_text_tree_draws_every_edge(forest, ax):
    assert plot_text_tree(["a", "bcd", "e", "f", "gh", "i"], forest, ax=ax) is ax
    words = words_below(ax)
    assert [word.get_text() for word in words] == ["a", "bcd", "e", "f", "gh", "i"]
    place = torch.tensor([word.get_position()[0] for word in words])

    def node_at(point):
        """The token whose word stands below the point."""
        (node,) = (place - point[0]).abs().lt(1e-3).nonzero().flatten().tolist()
        assert point[1] == pytest.approx(0, abs=1e-6)
        return node

    chain, others, roots = ax.collections
    edges = [
        {(node_at(arc[0]), node_at(arc[-1])): arc[:, 1].max() for arc in arcs.get_segments()}
        for arcs in (chain, others)
    ]
    # The height tells how far apart the ends of an arc stand.
    assert edges == [{(1, 0): 1}, dict.fromkeys([(2, 0), (3, 1), (4, 2)], 2)]
    assert [node_at(point) for point in roots.get_offsets()] == [0, 5]
    assert not (chain.get_colors() == others.get_colors()).all()


@pytest.mark.parametrize(("num_tokens", "rotation"), [(1, 0), (9, 0), (30, 0), (36, 90), (90, 90)])
def test_words_are_legible(num_tokens, rotation):
    """They neither overlap nor leave the figure, and turn where they would be too small."""
    figure, ax = plt.subplots(figsize=(10, 3), layout="constrained")
    tokens = [letter * (1 + number % 5) for number, letter in enumerate("xWi$g" * 18)][:num_tokens]
    plot_text_tree(tokens, raster_forest(1, num_tokens), ax=ax)
    words = words_below(ax)
    assert {word.get_rotation() for word in words} == {rotation}
    assert all(4.5 < word.get_fontsize() <= 11 for word in words)
    boxes = [word.get_window_extent() for word in words]
    for left, right in zip(boxes, boxes[1:], strict=False):
        assert left.x1 < right.x0
    whole = figure.bbox
    assert all(whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 for box in boxes)
    plt.close(figure)


def test_words_are_drawn_as_they_are(ax):
    plot_text_tree(["$x$", "\n\t", "é_1", "\\", ""], raster_forest(1, 5), ax=ax)
    words = words_below(ax)
    assert [word.get_text() for word in words] == ["$x$", "\\n\\t", "é_1", "\\", ""]
    assert not any(word.get_parse_math() for word in words)


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        ("abcdef", TypeError, "'tokens' must be a list of str, got 'abcdef'"),
        (list(range(6)), TypeError, r"'tokens' must be a list of str, got \[0, 1"),
        (6, TypeError, "'tokens' must be a list of str, got 6"),
        (list("abcde"), ValueError, "'forest' must have as many nodes"),
    ],
    ids=["one str", "numbers", "a number", "too few"],
)
def test_text_tree_refuses_bad_input(forest, ax, tokens, error, message):
    with pytest.raises(error, match=message):
        plot_text_tree(tokens, forest, ax=ax)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (None, TypeError, "'image' must be a torch.Tensor, got NoneType"),
        (torch.rand(2, 2, 3), ValueError, r"'image' must have shape .*got \[2, 2, 3\]"),
        (torch.rand(6), ValueError, r"got \[6\]"),
        (torch.rand(3, 3), ValueError, "'forest' must have as many nodes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_image_tree_refuses_bad_input(forest, ax, image, error, message):
    with pytest.raises(error, match=message):
        plot_image_tree(image, forest, ax=ax)


def test_affinity_plot_refuses_bad_input(ax):
    with pytest.raises(ValueError, match=r"\[height \* width\] = \[6\], got \[5\]"):
        plot_affinity(torch.rand(5), 2, 3, ax=ax)


def test_matplotlib_is_asked_for_only_where_needed(forest, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert affinity_map(forest, torch.ones(6), 0).tolist() == [1, 1, 1, 1, 1, 0]
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plot_image_tree(torch.rand(2, 3), forest)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plot_text_tree(list("abcdef"), forest)


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


def test_scan_of_a_layer_leaves_no_hook_behind():
    model = GrootV(channels=8, depths=(1, 1, 1, 1), num_classes=2)
    with pytest.raises(ValueError, match="images"):
        scan_of_layer(model, torch.randn(1, 3, 8, 8))
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    "layer, error, message",
    [
        (3, ValueError, "one of the 3 TreeSSM of the model, got 3; it holds first.ssm, second.ssm"),
        ("third", ValueError, "'third' with 0; the model holds first.ssm"),
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
    with pytest.raises(ValueError, match="one of the 0 TreeSSM of the model, got 0; it holds none"):
        scan_of_layer(torch.nn.Linear(1, 1), torch.zeros(1, 1))


def test_raster_forest_is_the_chain_of_the_rows():
    forest = raster_forest(2, 3)
    assert forest.parent.tolist() == [0, 0, 1, 2, 3, 4]
    affinity = affinity_map(forest, torch.full((6,), 0.5), node=2)
    assert affinity.tolist() == [0.25, 0.5, 1.0, 0.5, 0.25, 0.125]
    with pytest.raises(ValueError, match="'width' must be at least 1, got 0"):
        raster_forest(2, 0)
