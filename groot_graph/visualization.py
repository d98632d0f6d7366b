r"""Pictures and pages: a tree over its image or text, how strongly a node hears all others,
clusters.
"""

from collections.abc import Mapping, Sequence
from operator import index
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from groot_graph.checks import (
    check_edge_index,
    check_floating,
    check_forest,
    check_node,
    check_node_range,
    check_positive_int,
    check_shape,
)
from groot_graph.forest import Forest
from groot_graph.ops.tree_scan.api import trusted_tree_scan
from groot_graph.page import Scan, page_of, picture_of, points_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of the words of a text, in typographic points.
SMALLEST_FONT, LARGEST_FONT = 7, 11


def plot_image_tree(
    image: Tensor,
    forest: Forest,
    patch_size: int = 1,
    color: str = "tab:orange",
    ax: "Axes | None" = None,
) -> "Axes":
    r"""Draws the tree of one image over it. Branches are the wider, the more nodes hang on them;
    roots are marked by a ring.

    Args:
        image (Tensor): The image, of shape :obj:`[height, width]` or
            :obj:`[channels, height, width]` with one, three or four channels, :obj:`uint8` or
            floating point. Several channels are expected in :math:`[0, 1]`, one channel is
            stretched from black to white.
        forest (Forest): The forest of its pixels or patches, numbered row by row.
        patch_size (int, optional): Side of the patches, in pixels. (default: :obj:`1`)
        color (str, optional): The color of the tree. (default: :obj:`"tab:orange"`)
        ax (matplotlib.axes.Axes, optional): Where to draw. (default: the current axes)

    Returns:
        matplotlib.axes.Axes: The axes drawn on.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If an argument has the wrong type, or several channels hold integers other than
            :obj:`uint8`.
        ValueError: If the image and the forest do not fit, or a patch is larger than the image.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("agg")
        >>> import torch
        >>> from groot_graph.nn import TreeTopology
        >>> from groot_graph.transforms import ImageToGraph
        >>> from groot_graph.visualization import plot_image_tree
        >>> image = torch.rand(3, 8, 8)
        >>> data = ImageToGraph()(image)
        >>> ax = plot_image_tree(image, TreeTopology()(data.x, data.edge_index))
    """
    plt = _import_pyplot()
    from matplotlib.collections import LineCollection

    image = _to_channels_last(image)
    _check_patch_size(patch_size, image)
    height, width = image.shape[0] // patch_size, image.shape[1] // patch_size
    check_forest(forest, height * width, forest.device, "image")
    parent = forest.parent.cpu()
    node = torch.arange(height * width)
    # imshow puts pixel centers on whole numbers.
    y, x = ((place + 0.5) * patch_size - 0.5 for place in (node // width, node % width))
    points = torch.stack([x, y], dim=1)
    is_child = parent != node
    segments = torch.stack([points, points[parent]], dim=1)[is_child]
    share = _subtree_size(forest)[is_child] / (height * width)

    ax = plt.gca() if ax is None else ax
    ax.imshow(image.numpy(), cmap="gray", interpolation="nearest")
    scale = _points_per_node(ax, max(height, width))
    line_width = scale * (0.08 + 0.32 * share.sqrt())
    ax.add_collection(
        LineCollection(
            list(segments.numpy()), linewidths=line_width, colors=color, capstyle="round"
        )
    )
    roots = points[~is_child]
    ax.scatter(
        roots[:, 0], roots[:, 1], s=(0.5 * scale) ** 2, facecolors="white", edgecolors=color,
        zorder=3, linewidths=0.12 * scale,
    )  # fmt: skip
    ax.set_axis_off()
    return ax


def plot_text_tree(
    tokens: Sequence[str],
    forest: Forest,
    color: str = "tab:orange",
    ax: "Axes | None" = None,
) -> "Axes":
    r"""Draws the tree of one text over it: the tokens in a row, and an arc for every edge, the
    higher, the further apart its ends stand. Edges between neighbors, which a chain over the text
    has, too, are gray; roots are marked by a ring.

    The words stand one beside the other, as small as the width of the axes asks for, or upright
    where they could not be read otherwise.

    Args:
        tokens (list of str): The tokens as they are to be shown. Line breaks and the like are
            written as in Python.
        forest (Forest): The forest of the tokens, numbered from the first one on.
        color (str, optional): The color of the edges that are none of a chain.
            (default: :obj:`"tab:orange"`)
        ax (matplotlib.axes.Axes, optional): Where to draw. (default: the current axes)

    Returns:
        matplotlib.axes.Axes: The axes drawn on.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If `tokens` are no strings.
        ValueError: If the tokens and the forest do not fit.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("agg")
        >>> import torch
        >>> from groot_graph import Forest
        >>> from groot_graph.visualization import plot_text_tree
        >>> forest = Forest(order=torch.tensor([3, 1, 0, 2]), parent=torch.tensor([1, 3, 1, 3]))
        >>> ax = plot_text_tree(["the", "cat", "sat", "down"], forest)
    """
    plt = _import_pyplot()
    from matplotlib.collections import LineCollection

    words = _printable(tokens)
    check_forest(forest, len(words), forest.device, "tokens")
    ax = plt.gca() if ax is None else ax
    place = _place_words(words, ax)
    parent = forest.parent.cpu()
    node = torch.arange(len(words))
    is_child = parent != node
    child, above = node[is_child], parent[is_child]
    distance = (child - above).abs()
    arcs = _arcs(place[child], place[above], distance)
    is_chain = distance == 1
    for lines, line_color, width in (
        (arcs[is_chain], "0.6", 1.2),
        (arcs[~is_chain], color, 2),
    ):
        ax.add_collection(
            LineCollection(
                list(lines.numpy()), colors=line_color, linewidths=width, capstyle="round"
            )
        )
    roots = place[~is_child]
    ax.scatter(
        roots, torch.zeros_like(roots), s=40, facecolors="white", edgecolors=color, zorder=3,
        linewidths=1.5, clip_on=False,
    )  # fmt: skip
    ax.set(ylim=(0, 1.1 * int(distance.max()) if len(child) > 0 else 1), yticks=[])
    ax.spines[:].set_visible(False)
    return ax


def plot_affinity(
    affinity: Tensor,
    height: int,
    width: int,
    node: int | None = None,
    cmap: str = "magma",
    ax: "Axes | None" = None,
) -> "Axes":
    r"""Draws an affinity map as an image, dark at its least value and bright at its greatest, and
    marks the node it belongs to.

    Args:
        affinity (Tensor): The affinities of :func:`groot_graph.analysis.affinity_map`, of shape
            :obj:`[height * width]`.
        height (int): The number of nodes in a column.
        width (int): The number of nodes in a row.
        node (int, optional): The node to mark by a cross. (default: :obj:`None`)
        cmap (str, optional): The name of a colormap of matplotlib. (default: :obj:`"magma"`)
        ax (matplotlib.axes.Axes, optional): Where to draw. (default: the current axes)

    Returns:
        matplotlib.axes.Axes: The axes drawn on.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If an argument has the wrong type.
        ValueError: If the sizes do not fit, or `node` is out of range.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("agg")
        >>> import torch
        >>> from groot_graph.visualization import plot_affinity
        >>> ax = plot_affinity(torch.rand(12), height=3, width=4, node=5)
    """
    plt = _import_pyplot()
    check_floating("affinity", affinity)
    check_positive_int("height", height)
    check_positive_int("width", width)
    if affinity.shape != (height * width,):
        raise ValueError(
            f"'affinity' must have shape [height * width] = [{height * width}], "
            f"got {list(affinity.shape)}"
        )
    if node is not None:
        # A number of NumPy or PyTorch is one, too.
        node = index(node) if hasattr(node, "__index__") else node
        check_node(node, height * width)
    ax = plt.gca() if ax is None else ax
    values = affinity.detach().float().cpu().view(height, width).numpy()
    ax.imshow(values, cmap=cmap, interpolation="nearest")
    if node is not None:
        size = _points_per_node(ax, max(height, width))
        ax.scatter(
            node % width, node // width, s=(0.6 * size) ** 2, c="tab:cyan", marker="x",
            linewidths=0.18 * size,
        )  # fmt: skip
    ax.set_axis_off()
    return ax


def plot_clusters(
    pos: Tensor,
    labels: Any,
    edge_index: Tensor | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    r"""Draws points in the colors of their clusters, those without one in gray, and the edges of a
    graph or of their spanning forest below.

    Args:
        pos (Tensor or ndarray): The points, of shape :obj:`[num_points, 2]`.
        labels (Tensor or ndarray): Their clusters, -1 for none, integers of shape
            :obj:`[num_points]`.
        edge_index (LongTensor, optional): Edges, of shape :obj:`[2, num_edges]`.
            (default: :obj:`None`)
        ax (matplotlib.axes.Axes, optional): Where to draw. (default: the current axes)

    Returns:
        matplotlib.axes.Axes: The axes drawn on.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the shapes do not fit.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("agg")
        >>> import torch
        >>> from groot_graph.visualization import plot_clusters
        >>> ax = plot_clusters(torch.rand(3, 2), torch.tensor([0, 0, -1]))
    """
    plt = _import_pyplot()
    from matplotlib.collections import LineCollection

    pos, labels = torch.as_tensor(pos).detach().cpu(), torch.as_tensor(labels).cpu()
    check_shape("pos", pos, (None, 2), "[num_points, 2]")
    check_shape("labels", labels, (len(pos),), "[num_points]")
    ax = plt.gca() if ax is None else ax
    if edge_index is not None:
        check_edge_index(edge_index)
        check_node_range(edge_index, len(pos))
        lines = pos[edge_index.cpu()].transpose(0, 1).numpy()
        ax.add_collection(LineCollection(list(lines), colors="0.6", linewidths=0.7, zorder=1))
    # Ten colors, one after the other: more are not told apart.
    is_noise = labels < 0
    for points, colors, size in (
        (pos[is_noise], "0.75", 4),
        (pos[~is_noise], [f"C{int(label) % 10}" for label in labels[~is_noise]], 9),
    ):
        ax.scatter(points[:, 0], points[:, 1], c=colors, s=size, linewidths=0, zorder=2)
    ax.set_aspect("equal")
    ax.set_axis_off()
    return ax


def plot_dendrogram(
    linkage_matrix: Any,
    num_leaves: int = 30,
    threshold: float | None = None,
    color: str = "tab:orange",
    ax: "Axes | None" = None,
) -> "Axes":
    r"""Draws the upper part of a hierarchy of clusters, as SciPy's
    :func:`~scipy.cluster.hierarchy.dendrogram` does, and where it is cut.

    What merges at infinity alone, since no edge joins it, is drawn a tenth above all the others.

    Args:
        linkage_matrix (ndarray): The merges, :obj:`linkage_matrix_` of
            :class:`~groot_graph.cluster.SingleLinkage` or :class:`~groot_graph.cluster.HDBSCAN`,
            or what SciPy's :func:`~scipy.cluster.hierarchy.linkage` returns.
        num_leaves (int, optional): So many of the last clusters are its leaves. Below one stands
            the number of its points in brackets, below a single point that point's own.
            (default: :obj:`30`)
        threshold (float, optional): A distance to mark by a line. (default: :obj:`None`)
        color (str, optional): The color of the line. (default: :obj:`"tab:orange"`)
        ax (matplotlib.axes.Axes, optional): Where to draw. (default: the current axes)

    Returns:
        matplotlib.axes.Axes: The axes drawn on.

    Raises:
        ImportError: If matplotlib or SciPy is not installed.
        ValueError: If the matrix is none of merges.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("agg")
        >>> import numpy as np
        >>> from groot_graph.cluster import SingleLinkage
        >>> from groot_graph.visualization import plot_dendrogram
        >>> model = SingleLinkage().fit(np.array([[0.0], [1.0], [5.0]]))
        >>> ax = plot_dendrogram(model.linkage_matrix_, threshold=3.0)
    """
    plt = _import_pyplot()
    try:
        from scipy.cluster.hierarchy import dendrogram
    except ImportError as error:
        raise ImportError("'plot_dendrogram' needs SciPy: pip install scipy") from error

    check_positive_int("num_leaves", num_leaves, least=2)
    matrix = np.array(linkage_matrix, dtype=float)
    if matrix.ndim != 2 or matrix.shape[1] != 4 or len(matrix) == 0:
        raise ValueError(
            f"'linkage_matrix' must have shape [num_nodes - 1, 4], got {list(matrix.shape)}"
        )
    height = matrix[:, 2]
    is_infinite = np.isinf(height)
    height[is_infinite] = 1.1 * height[~is_infinite].max(initial=1e-9)
    ax = plt.gca() if ax is None else ax
    dendrogram(
        matrix, p=num_leaves, truncate_mode="lastp", ax=ax, color_threshold=0,
        above_threshold_color="0.4", leaf_rotation=90,
    )  # fmt: skip
    if threshold is not None:
        ax.axhline(threshold, color=color, linestyle="--")
    ax.set_ylabel("distance")
    ax.spines[["top", "right", "bottom"]].set_visible(False)
    return ax


def save_explorer(
    path: str | PathLike,
    image: Tensor,
    scans: Mapping[str, Sequence[Scan]],
    patch_size: int | Sequence[int] = 1,
    title: str = "How strongly every place is heard",
    note: str = "",
) -> None:
    r"""Saves a page on which one looks into the trees of an image: how strongly every place is
    heard from the one under the pointer, or the finger, as it moves, and the tree around it.

    The page is one HTML file that holds all that it needs: it works in any browser, offline and
    without Python. It computes what :func:`~groot_graph.analysis.affinity_map` computes, from
    transitions of 16 bits each, so that its values differ by less than 0.0002.

    Args:
        path (str or os.PathLike): The file to write.
        image (Tensor): The image, of shape :obj:`[height, width]` or
            :obj:`[channels, height, width]`, as :func:`plot_image_tree` takes it.
        scans (dict): What is shown side by side: for every name a list of what each block passes
            states along, a forest and transitions from 0 to 1 of shape :obj:`[num_nodes]` or
            :obj:`[num_nodes, channels]`, as :func:`~groot_graph.analysis.scan_of_layer` returns
            them. Nodes are pixels or patches, numbered row by row. A slider chooses the block.
        patch_size (int or list of int, optional): Side of the patches in pixels, in all blocks or
            in each. (default: :obj:`1`)
        title (str, optional): What stands above the page.
            (default: :obj:`"How strongly every place is heard"`)
        note (str, optional): A sentence on what is seen. (default: none)

    Raises:
        ImportError: If Pillow is not installed.
        TypeError: If an argument has the wrong type.
        ValueError: If the image and a scan do not fit, the names have different numbers of blocks,
            or a transition is not from 0 to 1.

    Example:
        >>> import tempfile, torch
        >>> from groot_graph.analysis import scan_of_layer
        >>> from groot_graph.models import GrootV
        >>> from groot_graph.visualization import save_explorer
        >>> model = GrootV(channels=8, depths=(2, 1, 1, 1), num_classes=10)
        >>> image = torch.rand(3, 32, 48)
        >>> blocks = [scan_of_layer(model, image[None], layer=layer) for layer in (0, 1)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_explorer(f"{folder}/tree.html", image, {"tree": blocks}, patch_size=4)
    """
    page = image_page(image, scans, patch_size, title, note)
    Path(path).write_text(page, encoding="utf-8")


def save_text_explorer(
    path: str | PathLike,
    tokens: Sequence[str],
    scans: Mapping[str, Sequence[Scan]],
    title: str = "How strongly every token is heard",
    note: str = "",
) -> None:
    r"""Saves a page on which one looks into the trees of a text, as :func:`save_explorer` does for
    an image.

    Args:
        path (str or os.PathLike): The file to write.
        tokens (list of str): The tokens as they are to be shown.
        scans (dict): See :func:`save_explorer`; nodes are the tokens, from the first one on.
        title (str, optional): What stands above the page.
            (default: :obj:`"How strongly every token is heard"`)
        note (str, optional): A sentence on what is seen. (default: none)

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the tokens and a scan do not fit, the names have different numbers of blocks,
            or a transition is not from 0 to 1.

    Example:
        >>> import tempfile, torch
        >>> from groot_graph import Forest
        >>> from groot_graph.visualization import save_text_explorer
        >>> forest = Forest(order=torch.tensor([3, 1, 0, 2]), parent=torch.tensor([1, 3, 1, 3]))
        >>> scans = {"tree": [(forest, torch.full((4,), 0.5))]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_text_explorer(f"{folder}/text.html", ["the", "cat", "sat", "down"], scans)
    """
    page = text_page(tokens, scans, title, note)
    Path(path).write_text(page, encoding="utf-8")


def save_graph_explorer(
    path: str | PathLike,
    pos: Tensor,
    scans: Mapping[str, Sequence[Scan]],
    title: str = "How strongly every node is heard",
    note: str = "",
) -> None:
    r"""Saves a page on which one looks into the trees of a graph whose nodes have positions, as
    :func:`save_explorer` does for an image.

    Args:
        path (str or os.PathLike): The file to write.
        pos (Tensor): The positions, of shape :obj:`[num_nodes, 2]` or more; the first two
            coordinates are shown, the second one upwards.
        scans (dict): See :func:`save_explorer`.
        title (str, optional): What stands above the page.
            (default: :obj:`"How strongly every node is heard"`)
        note (str, optional): A sentence on what is seen. (default: none)

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the positions and a scan do not fit, a position is not finite, the names have
            different numbers of blocks, or a transition is not from 0 to 1.

    Example:
        >>> import tempfile, torch
        >>> from groot_graph.nn import TreeTopology
        >>> from groot_graph.transforms import PointsToGraph
        >>> from groot_graph.visualization import save_graph_explorer
        >>> data = PointsToGraph(k=4)(torch.rand(30, 2))
        >>> forest, length = TreeTopology("euclidean").forest_and_length(data.pos, data.edge_index)
        >>> scans = {"tree": [(forest, torch.exp(-length))]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_graph_explorer(f"{folder}/graph.html", data.pos, scans)
    """
    page = graph_page(pos, scans, title, note)
    Path(path).write_text(page, encoding="utf-8")


def image_page(
    image: Tensor,
    scans: Mapping[str, Sequence[Scan]],
    patch_size: int | Sequence[int],
    title: str,
    note: str,
) -> str:
    r"""What :func:`save_explorer` saves."""
    image = _to_channels_last(image)
    num_blocks = _check_scans(scans)
    is_list = isinstance(patch_size, Sequence)
    patch_sizes: Any = patch_size if is_list else [patch_size] * num_blocks
    if len(patch_sizes) != num_blocks:
        raise ValueError(
            f"'patch_size' must be one for each of the {num_blocks} blocks, got {patch_size!r}"
        )
    for size in patch_sizes:
        _check_patch_size(size, image)
    height, width = image.shape[:2]
    sizes = [(height // size, width // size) for size in patch_sizes]
    _check_sizes(scans, [rows * columns for rows, columns in sizes], "image")
    # What is left over at the right and the bottom belongs to no patch.
    covered = image[: sizes[0][0] * patch_sizes[0], : sizes[0][1] * patch_sizes[0]]
    content = {
        "kind": "image",
        "picture": picture_of(covered),
        "height": covered.shape[0],
        "width": covered.shape[1],
        "start": [0.5, 0.5],
    }
    return page_of(content, sizes, scans, title, note)


def text_page(
    tokens: Sequence[str], scans: Mapping[str, Sequence[Scan]], title: str, note: str
) -> str:
    r"""What :func:`save_text_explorer` saves."""
    words = _printable(tokens)
    num_blocks = _check_scans(scans)
    _check_sizes(scans, [len(words)] * num_blocks, "tokens")
    content = {"kind": "text", "words": words, "start": len(words) - 1}
    return page_of(content, [(1, len(words))] * num_blocks, scans, title, note)


def graph_page(
    pos: Tensor,
    scans: Mapping[str, Sequence[Scan]],
    title: str,
    note: str,
    slider: str = "block",
) -> str:
    r"""What :func:`save_graph_explorer` saves."""
    check_floating("pos", pos)
    if pos.dim() != 2 or pos.size(1) < 2 or len(pos) == 0:
        raise ValueError(f"'pos' must have shape [num_nodes, 2 or more], got {list(pos.shape)}")
    if not bool(pos[:, :2].isfinite().all()):
        raise ValueError("'pos' must be finite, got an infinite one or NaN")
    num_blocks = _check_scans(scans)
    _check_sizes(scans, [len(pos)] * num_blocks, "pos")
    content = {"kind": "points", "start": [0.5, 0.5], "slider": slider, **points_of(pos)}
    return page_of(content, [(1, len(pos))] * num_blocks, scans, title, note)


def _check_scans(scans: Mapping[str, Sequence[Scan]]) -> int:
    r"""Returns the number of blocks."""
    if not isinstance(scans, Mapping) or not all(isinstance(name, str) for name in scans):
        raise TypeError(f"'scans' must be a dict of names, got {type(scans).__name__}")
    numbers = {name: len(of_blocks) for name, of_blocks in scans.items()}
    if len(set(numbers.values())) != 1 or 0 in numbers.values():
        raise ValueError(
            f"'scans' must hold as many blocks for every name, and at least one, got {numbers}"
        )
    return next(iter(numbers.values()))


def _check_sizes(scans: Mapping[str, Sequence[Scan]], num_nodes: list[int], argument: str) -> None:
    for name, of_blocks in scans.items():
        for number, (forest, transition) in zip(num_nodes, of_blocks, strict=True):
            check_forest(forest, number, forest.device, argument)
            check_floating("transition", transition)
            if transition.dim() not in (1, 2) or len(transition) != number:
                raise ValueError(
                    f"'scans' must hold transitions of shape [{number}] or [{number}, channels], "
                    f"got {list(transition.shape)} for {name!r}"
                )
            # Written so that NaN fails, too.
            if not bool(((transition >= 0) & (transition <= 1)).all()):
                raise ValueError(f"'scans' must hold transitions from 0 to 1, got others: {name!r}")


def _import_pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install matplotlib") from error
    return pyplot


def _points_per_node(ax: "Axes", num_nodes: int) -> float:
    """The side of one node of a square grid in typographic points, for sizes of lines and marks."""
    box = ax.get_window_extent()
    return min(box.width, box.height) * 72 / ax.figure.dpi / max(num_nodes, 1)


def _printable(tokens: Sequence[str]) -> list[str]:
    is_list = isinstance(tokens, Sequence) and not isinstance(tokens, str)
    if not is_list or not all(isinstance(token, str) for token in tokens):
        raise TypeError(f"'tokens' must be a list of str, got {tokens!r}")
    return [
        "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in token)
        for token in tokens
    ]


def _place_words(words: list[str], ax: "Axes") -> Tensor:
    r"""Writes them below the axes and returns where, in typographic points."""
    width = ax.get_window_extent().width * 72 / ax.figure.dpi
    # Of a monospaced font, whose letters are 0.6 times as wide as they are high.
    advance = torch.tensor([0.61 * (len(word) + 1) for word in words])
    is_upright = float(advance.sum()) * SMALLEST_FONT > width
    if is_upright:
        advance = torch.full_like(advance, 1.2)
    size = min(width / max(float(advance.sum()), 1), LARGEST_FONT)
    place = size * (advance.cumsum(0) - advance / 2)
    ax.set_xlim(0, width)
    ax.tick_params(length=0, pad=6)
    ax.set_xticks(
        place, words, rotation=90 if is_upright else 0, fontsize=size, family="monospace",
        parse_math=False,
    )  # fmt: skip
    return place


def _arcs(x: Tensor, y: Tensor, height: Tensor) -> Tensor:
    r"""Upper halves of ellipses as lines, of shape :obj:`[num_arcs, num_points, 2]`."""
    angle = torch.linspace(0, torch.pi, 33)
    across = (x + y)[:, None] / 2 + (x - y)[:, None] / 2 * angle.cos()
    return torch.stack([across, height[:, None] * angle.sin()], dim=-1)


def _subtree_size(forest: Forest) -> Tensor:
    ones = torch.ones(forest.num_nodes, 1, device=forest.device)
    return trusted_tree_scan(ones, ones, forest, direction="up").flatten().cpu()


def _check_patch_size(patch_size: int, image: Tensor) -> None:
    check_positive_int("patch_size", patch_size)
    height, width = image.shape[:2]
    if min(height, width) < patch_size:
        raise ValueError(
            f"'patch_size' must not exceed a side of 'image', {height} x {width}, got {patch_size}"
        )


def _to_channels_last(image: Tensor) -> Tensor:
    if not isinstance(image, Tensor):
        raise TypeError(f"'image' must be a torch.Tensor, got {type(image).__name__}")
    if image.dim() not in (2, 3) or (image.dim() == 3 and image.size(0) not in (1, 3, 4)):
        raise ValueError(
            "'image' must have shape [height, width] or [1 or 3 or 4, height, width], "
            f"got {list(image.shape)}"
        )
    image = image.detach().cpu()
    if image.is_floating_point():
        # Matplotlib knows no bfloat16.
        image = image.to(torch.promote_types(image.dtype, torch.float32))
    elif image.dim() == 3 and image.size(0) > 1 and image.dtype != torch.uint8:
        raise TypeError(
            f"'image' must be floating point or uint8 where it has several channels, got "
            f"{image.dtype}"
        )
    if image.dim() == 2 or image.size(0) == 1:
        return image.reshape(image.shape[-2:])
    return image.permute(1, 2, 0)
