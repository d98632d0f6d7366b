import sys

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("agg")
from matplotlib import pyplot as plt  # noqa: E402

from groot_graph import Forest  # noqa: E402
from groot_graph.analysis import affinity_map, raster_forest  # noqa: E402
from groot_graph.visualization import (  # noqa: E402
    plot_affinity,
    plot_clusters,
    plot_dendrogram,
    plot_image_tree,
    plot_text_tree,
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.uint8])
def test_images_of_every_precision_are_drawn(forest, ax, dtype):
    image = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.25, 0.0]]).expand(3, 2, 3)
    image = (image * 255).to(dtype) if dtype == torch.uint8 else image.to(dtype)
    plot_image_tree(image.clone().requires_grad_(dtype != torch.uint8), forest, ax=ax)
    drawn = ax.images[0].get_array()
    assert drawn[:, :, 0].tolist() == image[0].float().tolist()
    ax.figure.canvas.draw()


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int64, torch.bool])
def test_colors_of_unknown_range_are_refused(forest, ax, dtype):
    with pytest.raises(TypeError, match="'image' must be floating point or uint8 .* got torch"):
        plot_image_tree(torch.zeros(3, 2, 3).to(dtype), forest, ax=ax)


@pytest.mark.parametrize(
    ("patch_size", "error", "message"),
    [
        (0, ValueError, "'patch_size' must be at least 1, got 0"),
        (-2, ValueError, "'patch_size' must be at least 1, got -2"),
        (3, ValueError, "'patch_size' must not exceed a side of 'image', 2 x 3, got 3"),
        (1.0, TypeError, "'patch_size' must be an int, got float"),
    ],
)
def test_impossible_patches_are_refused(forest, ax, patch_size, error, message):
    with pytest.raises(error, match=message):
        plot_image_tree(torch.rand(2, 3), forest, patch_size, ax=ax)
    assert not ax.images


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((2, 3, 6), ValueError, r"'node' must lie in \[0, 5\], got 6"),
        ((2, 3, -1), ValueError, r"'node' must lie in \[0, 5\], got -1"),
        ((2, 3, 1.5), TypeError, "'node' must be an int, got float"),
        ((-2, -3), ValueError, "'height' must be at least 1, got -2"),
        ((2.0, 3), TypeError, "'height' must be an int, got float"),
    ],
)
def test_impossible_nodes_and_sizes_are_refused(ax, arguments, error, message):
    with pytest.raises(error, match=message):
        plot_affinity(torch.rand(6), *arguments, ax=ax)
    assert not ax.images


@pytest.mark.parametrize("node", [4, np.int64(4), torch.tensor(4)], ids=["int", "NumPy", "Tensor"])
def test_a_node_may_be_any_whole_number(ax, node):
    plot_affinity(torch.rand(6), 2, 3, node, ax=ax)
    assert ax.collections[0].get_offsets().tolist() == [[1, 1]]


@pytest.mark.parametrize("as_type", [torch.Tensor.numpy, torch.Tensor.clone])
def test_clusters_have_colors_and_noise_is_gray(ax, as_type):
    pos, labels = torch.rand(5, 2), torch.tensor([0, 1, -1, 1, 10])
    edge_index = torch.tensor([[0, 1], [1, 3]])
    assert plot_clusters(as_type(pos), as_type(labels), edge_index, ax=ax) is ax
    lines, noise, members = ax.collections
    assert np.allclose(noise.get_offsets(), pos[[2]]) and len(members.get_offsets()) == 4
    colors = members.get_facecolors()
    assert (colors[1] == colors[2]).all() and (colors[0] == colors[3]).all()
    assert not (colors[0] == colors[1]).all()
    assert np.allclose(lines.get_segments(), pos[edge_index.t()])


def test_clusters_of_other_shapes_are_refused(ax):
    with pytest.raises(ValueError, match=r"'pos' must have shape .*got \[4, 3\]"):
        plot_clusters(torch.rand(4, 3), torch.zeros(4), ax=ax)
    with pytest.raises(ValueError, match=r"'labels' must have shape .*got \[3\]"):
        plot_clusters(torch.rand(4, 2), torch.zeros(3), ax=ax)
    with pytest.raises(ValueError, match="'edge_index' must hold node numbers"):
        plot_clusters(torch.rand(1, 2), torch.zeros(1), torch.tensor([[0], [1]]), ax=ax)


MERGES = [[0, 1, 1.0, 2], [2, 3, 2.0, 2], [4, 5, np.inf, 4]]


def test_dendrogram_draws_every_merge_and_the_cut(ax):
    assert plot_dendrogram(MERGES, threshold=1.5, ax=ax) is ax
    heights = sorted(path.vertices[:, 1].max() for path in ax.collections[0].get_paths())
    assert heights == pytest.approx([1.0, 2.0, 2.2])
    assert list(ax.lines[0].get_ydata()) == [1.5, 1.5]
    assert MERGES[2][2] == np.inf


def test_dendrogram_of_few_leaves(ax):
    plot_dendrogram(MERGES, num_leaves=2, ax=ax)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["(2)", "(2)"]


@pytest.mark.parametrize("matrix", [[], [[0, 1, 1.0]], [0, 1, 1.0, 2]], ids=str)
def test_what_is_no_linkage_matrix_is_refused(ax, matrix):
    with pytest.raises(ValueError, match="'linkage_matrix' must have shape"):
        plot_dendrogram(matrix, ax=ax)
