r"""Points as a graph of their nearest neighbors."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import coalesce

from groot_graph.checks import check_number, check_positive_int
from groot_graph.transforms.points import to_points
from groot_graph.transforms.utils import InputToGraph


class PointsToGraph(InputToGraph):
    r"""Turns a set of points into the graph of each point's nearest neighbors, or of all pairs
    within a radius.

    .. math::
        \mathcal{E} = \{ (j, i) : j \in \mathrm{kNN}(i) \}
        \quad \text{or} \quad
        \mathcal{E} = \{ (j, i) : \| \mathbf{p}_j - \mathbf{p}_i \|_2 \leq r \}, \quad j \neq i

    Points of different graphs of a batch are never joined. Edges are sorted by their target, then
    by their source. Neighbours come from :obj:`torch-cluster` where it is installed, on the
    device of the points, and from SciPy's :class:`~scipy.spatial.cKDTree` on the CPU otherwise;
    the edges are the same, up to neighbors at equal distance.

    Args:
        k (int, optional): The number of neighbors of each point. A point that has fewer is
            joined to all of them. Exactly one of :obj:`k` and :obj:`radius` is needed.
            (default: :obj:`None`)
        radius (float, optional): The largest distance :math:`r` of two joined points, in the
            unit of the points. (default: :obj:`None`)
        key (str, optional): The attribute that holds the points where a
            :class:`~torch_geometric.data.Data` is given. All attributes are kept.
            (default: :obj:`"pos"`)

    Shapes:
        - **input:** coordinates :math:`(N, \mathrm{dim})`, a floating point tensor, an array, a
          list, a data frame whose columns are the axes, or the path of such a table as a CSV file
          (read by pandas); or a :class:`~torch_geometric.data.Data` that holds them and,
          optionally, a sorted **batch** :math:`(N)`. A list has PyTorch's default dtype; what else
          is no tensor keeps its own, integers become :obj:`float64`
        - **output:** :class:`~torch_geometric.data.Data` with **pos** :math:`(N, \mathrm{dim})`,
          **edge_index** :math:`(2, |\mathcal{E}|)`, **edge_weight** :math:`(|\mathcal{E}|)`, the
          distance of the two points, and **x**, which is **pos** unless there are features already

    Raises:
        ImportError: If neither torch-cluster nor SciPy is installed, or a file is to be read
            and pandas is not.
        TypeError: If the points are of another type, or no numbers.
        ValueError: If a shape does not fit, a coordinate is not finite, or a file is no table.

    Example:
        >>> import torch
        >>> from groot_graph.transforms import PointsToGraph
        >>> pos = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
        >>> PointsToGraph(k=1)(pos).edge_index
        tensor([[1, 0, 1],
                [0, 1, 2]])
        >>> PointsToGraph(radius=1.0)(pos).edge_index
        tensor([[1, 0],
                [0, 1]])
        >>> PointsToGraph(k=1)(pos).edge_weight
        tensor([1., 1., 2.])
    """

    makes_nodes = False

    def __init__(self, k: int | None = None, radius: float | None = None, key: str = "pos") -> None:
        if (k is None) == (radius is None):
            raise ValueError(
                f"exactly one of 'k' and 'radius' must be given, got k={k} and radius={radius}"
            )
        if k is not None:
            check_positive_int("k", k)
        if radius is not None:
            _check_radius(radius)
        self.k = k
        self.radius = radius
        self.key = key

    def forward(self, data: Any) -> Data:
        pos, data = self.take_input(data)
        pos = to_points(pos, self.key)
        _check_points(pos, self.key)
        batch = data.batch if data.batch is not None else pos.new_zeros(len(pos), dtype=torch.long)
        _check_batch(batch, pos)

        data[self.key] = pos
        if data.x is None:
            data.x = pos
        edge_index = self._neighbors(pos.detach(), batch)
        data.edge_index = coalesce(edge_index, num_nodes=len(pos), sort_by_row=False)
        source, target = data.edge_index
        data.edge_weight = torch.linalg.vector_norm(pos[source] - pos[target], dim=1)
        return data

    def _neighbors(self, pos: Tensor, batch: Tensor) -> Tensor:
        if len(pos) == 0:
            return batch.new_empty(2, 0)
        search = _search_by_torch_cluster if _has_torch_cluster() else _search_by_scipy
        if self.radius is None:
            return search(pos, batch, k=self.k)
        # The two libraries disagree about points exactly at the radius: search wider, then cut.
        edge_index = search(pos, batch, radius=self.radius * (1 + 1e-5))
        distance = (pos[edge_index[0]] - pos[edge_index[1]]).norm(dim=1)
        return edge_index[:, distance <= self.radius]

    def __repr__(self) -> str:
        option = f"k={self.k}" if self.radius is None else f"radius={self.radius}"
        return f"{self.__class__.__name__}({option})"


def _has_torch_cluster() -> bool:
    try:
        import torch_cluster  # noqa: F401
    except ImportError:
        return False
    return True


def _search_by_torch_cluster(
    pos: Tensor, batch: Tensor, k: int | None = None, radius: float = 0.0
) -> Tensor:
    import torch_cluster

    if k is not None:
        return _first_of_each_target(torch_cluster.knn_graph(pos, k, batch), k)
    largest_graph = int(batch.bincount().max())
    return torch_cluster.radius_graph(pos, radius, batch, max_num_neighbors=largest_graph)


def _first_of_each_target(edge_index: Tensor, k: int) -> Tensor:
    # Among more than k coincident points, knn_graph gives k + 1 neighbors to some.
    num_edges = edge_index[1].bincount()
    start = num_edges.cumsum(0) - num_edges
    rank = torch.arange(edge_index.size(1), device=edge_index.device) - start[edge_index[1]]
    return edge_index[:, rank < k]


def _search_by_scipy(
    pos: Tensor, batch: Tensor, k: int | None = None, radius: float = 0.0
) -> Tensor:
    try:
        from scipy.spatial import cKDTree
    except ImportError as error:
        raise ImportError(
            "PointsToGraph needs torch-cluster or SciPy: pip install scipy"
        ) from error

    points = pos.double().cpu().numpy()
    starts = np.flatnonzero(np.diff(batch.cpu().numpy(), prepend=-1))
    edges = []
    for start, graph in zip(starts, np.split(points, starts[1:]), strict=True):
        tree = cKDTree(graph)
        pairs = _within(tree, radius) if k is None else _nearest(tree, k)
        edges.append(pairs + start)
    return torch.from_numpy(np.concatenate(edges, axis=1)).to(pos.device)


def _nearest(tree: Any, k: int) -> np.ndarray:
    neighbor = tree.query(tree.data, k=np.arange(1, min(k + 1, tree.n) + 1))[1]
    center = np.arange(tree.n)[:, None]
    is_self = neighbor == center
    # Among more than k coincident points a point may not find itself: drop the farthest then.
    is_self[:, -1] |= ~is_self.any(axis=1)
    return np.stack([neighbor, np.broadcast_to(center, neighbor.shape)])[:, ~is_self]


def _within(tree: Any, radius: float) -> np.ndarray:
    pairs = tree.query_pairs(radius, output_type="ndarray").T
    return np.concatenate([pairs, pairs[::-1]], axis=1)


def _check_radius(radius: Any) -> None:
    check_number("radius", radius)
    if not 0 < radius < float("inf"):
        raise ValueError(f"'radius' must be positive and finite, got {radius}")


def _check_points(pos: Tensor, key: str) -> None:
    if not pos.is_floating_point():
        raise TypeError(f"'{key}' must be floating point, got {pos.dtype}")
    if pos.dim() != 2 or pos.size(1) == 0:
        raise ValueError(f"'{key}' must have shape [num_points, dim], got {list(pos.shape)}")
    num_bad = int((~pos.isfinite()).any(dim=1).sum())
    if num_bad:
        raise ValueError(f"'{key}' must be finite, got NaN or infinity in {num_bad} points")


def _check_batch(batch: Tensor, pos: Tensor) -> None:
    if batch.shape != pos.shape[:1]:
        raise ValueError(f"'batch' must have shape [{len(pos)}], got {list(batch.shape)}")
    if bool((batch.diff() < 0).any()) or bool((batch[:1] < 0).any()):
        raise ValueError("'batch' must be sorted and not negative, got graphs out of order")
