r"""Any graph as the spanning forest that grows over it."""

from collections.abc import Callable

from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.transforms import BaseTransform

from groot_graph.checks import check_choice
from groot_graph.nn import TreeTopology
from groot_graph.nn.tree_topology import PLAIN_METRICS
from groot_graph.transforms.utils import forget_structures, is_supervision, one_by_one


class ToSpanningForest(BaseTransform):
    r"""Reduces a graph to its minimum spanning forest and roots it.

    An edge stays if it joins a node with its parent, in whichever direction it stands: an
    undirected graph, which holds both directions, stays one. All attributes of edges are reduced
    with them, :obj:`edge_weight` is taken as the dissimilarity where the graph has one.

    The parent of every node is attached as :obj:`parent_index`, and the number of edges between a
    node and its root as :obj:`tree_depth`. With the latter

    .. code-block:: python

        forest = Forest.from_data(data)

    is the forest again, also that of a batch, a subgraph or what a loader has sampled: it need not
    be grown anew for each step of a training. PyG numbers the nodes of a subgraph anew in
    :obj:`edge_index` alone, so :obj:`parent_index` is that of the whole graph and of batches.

    Args:
        metric (str or Callable, optional): The dissimilarity of the features of two neighbors,
            see :class:`~groot_graph.nn.TreeTopology`. (default: :obj:`"cosine"`)
        tree (str, optional): :obj:`"min"`, :obj:`"max"` or :obj:`"random"`.
            (default: :obj:`"min"`)
        root (str, optional): :obj:`"first"` or :obj:`"last"` node of each tree.
            (default: :obj:`"first"`)

    Shapes:
        - **input:** :class:`~torch_geometric.data.Data` with **x** :math:`(N, C)`,
          **edge_index** :math:`(2, |\mathcal{E}|)` and, optionally, **edge_weight**
          :math:`(|\mathcal{E}|)`
        - **output:** the same with fewer edges, and **parent_index** :math:`(N)`,
          **tree_depth** :math:`(N)`

    Raises:
        TypeError: If the input is no :class:`~torch_geometric.data.Data`.
        ValueError: If it lacks :obj:`x` or :obj:`edge_index`.

    Example:
        >>> import torch
        >>> from torch_geometric.transforms import Compose
        >>> from groot_graph import Forest
        >>> from groot_graph.transforms import ImageToGraph, ToSpanningForest
        >>> image = torch.tensor([[[0.1, 0.2], [0.9, 0.8]]])
        >>> transform = Compose([ImageToGraph(), ToSpanningForest(metric="euclidean")])
        >>> data = transform(image)
        >>> data.edge_index
        tensor([[1, 0, 2, 3, 1, 3],
                [3, 1, 3, 1, 0, 2]])
        >>> data.parent_index
        tensor([0, 0, 3, 1])
        >>> data.tree_depth
        tensor([0, 1, 3, 2])
        >>> Forest.from_data(data)
        Forest(num_nodes=4, num_trees=1)
    """

    def __init__(
        self,
        metric: str | Callable[[Tensor, Tensor], Tensor] = "cosine",
        tree: str = "min",
        root: str = "first",
    ) -> None:
        if not callable(metric):
            check_choice("metric", metric, PLAIN_METRICS)
        self.topology = TreeTopology(metric=metric, tree=tree, root=root)

    def forward(self, data: Data) -> Data:
        _check_data(data)
        if isinstance(data, Batch):
            return one_by_one(self, data)
        forest = self.topology(data.x, data.edge_index, data.edge_weight)
        is_kept = forest.edge_mask(data.edge_index)
        supervision = {key: value for key, value in data if is_supervision(key)}
        data = data.edge_subgraph(is_kept).update(supervision)
        forget_structures(data)
        data.parent_index = forest.parent
        data.tree_depth = forest.depth
        return data

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.topology})"


def _check_data(data: Data) -> None:
    if not isinstance(data, Data):
        raise TypeError(f"'data' must be a Data, got {type(data).__name__}")
    for key in ("x", "edge_index"):
        if key not in data:
            raise ValueError(f"'data' must carry '{key}', got {data.keys()}")
