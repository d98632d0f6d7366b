"""The ways that states can go over a grid, each in the place of a GridTreeSSM."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from groot_graph import Forest, root_forest, tree_scan
from groot_graph.graphs import grid_edge_index, raster_edge_index, repeat_graph
from groot_graph.nn import GridTreeSSM, TreeTopology


class RasterSSM(GridTreeSSM):
    """Passes the states along the rows, read as one chain."""

    def propagate(self, u: Tensor) -> Tensor:
        return self.pass_along(u, raster_chains(u))


class CrossSSM(GridTreeSSM):
    """Passes the states along the rows and along the columns, each both ways: four scans."""

    def propagate(self, u: Tensor) -> Tensor:
        rows, columns = (raster_chains(u, by_column) for by_column in (False, True))
        return (self.pass_along(u, rows) + self.pass_along(u, columns)) / 2


class LocalSSM(GridTreeSSM):
    """Passes nothing: every node hears itself alone."""

    def propagate(self, u: Tensor) -> Tensor:
        node = torch.arange(u.shape[:3].numel(), device=u.device)
        return self.pass_along(u, Forest(node, node))


class GuidedSSM(GridTreeSSM):
    """Grows its trees over features that the network sets beforehand, such as the colors: over
    these themselves, or, with their number of channels, over an embedding of them that is learned.
    """

    guide: Tensor

    def __init__(self, channels: int, guide_channels: int | None = None):
        super().__init__(channels, metric="euclidean", edge_steps=True)
        if guide_channels is not None:
            self.topology = TreeTopology("learned", channels=guide_channels)

    def propagate(self, u: Tensor) -> Tensor:
        grown = grow(self, u, *self.topology.with_metric(self.guide))
        return self.ssm(u.flatten(0, 2), *grown).view(u.shape)


class TreeFilter(GridTreeSSM):
    """The learnable tree filter (arXiv 1909.12513): the mean over the tree, weighed by how near a
    node is along it; edges alone, no selective state.
    """

    def __init__(self, channels: int, **kwargs):
        super().__init__(channels, edge_steps=True, **kwargs)
        del self.ssm

    def propagate(self, u: Tensor) -> Tensor:
        forest, edge_length = grow(self, u, *self.topology.with_metric(u))
        similarity = torch.exp(-(edge_length**2)).unsqueeze(1)
        nodes = u.flatten(0, 2)
        total = tree_scan(nodes, similarity.expand_as(nodes), forest)
        weight = tree_scan(torch.ones_like(similarity), similarity, forest)
        return (total / weight).view(u.shape)


def grow(
    mixer: GridTreeSSM, u: Tensor, compared: Tensor, metric: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Forest, Tensor]:
    """The trees over features that a metric compares, and the lengths of their edges."""
    batch_size, height, width, _ = u.shape
    edge_index = grid_edge_index(height, width, num_graphs=batch_size, device=u.device)
    edge_weight = mixer._edge_weight(compared, metric)
    return mixer.topology.grow_and_measure(u.flatten(0, 2), edge_index, edge_weight)


TREE = "published tree"
EDGE_STEPS = "edge steps"
# What stands in for a GridTreeSSM in a network that is told colors, by the number of its channels.
MIXERS: dict[str, Callable[[int], nn.Module]] = {
    TREE: GridTreeSSM,
    EDGE_STEPS: partial(GridTreeSSM, edge_steps=True),
    "edge steps over the colors": GuidedSSM,
    "edge steps over learned colors": partial(GuidedSSM, guide_channels=3),
    "random tree, edge steps": partial(GridTreeSSM, tree="random", edge_steps=True),
    "raster": RasterSSM,
    "raster, edge steps": partial(RasterSSM, edge_steps=True),
    "cross scan": CrossSSM,
    "cross scan, edge steps": partial(CrossSSM, edge_steps=True),
    "no propagation": LocalSSM,
    "tree filter": TreeFilter,
}


def centered(colors: Tensor) -> Tensor:
    """Colors from 0 to 1, moved and scaled to what a network likes best."""
    return 4 * (colors - 0.45)


def raster_chains(u: Tensor, by_column: bool = False) -> Forest:
    """Of every image of a batch one, rooted at its last pixel."""
    batch, height, width, _ = u.shape
    edges = raster_edge_index(height, width, by_column, u.device)
    return root_forest(
        repeat_graph(edges, height * width, batch), None, u.shape[:3].numel(), "last"
    )
