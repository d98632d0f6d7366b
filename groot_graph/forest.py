r"""The noun at the centre: a rooted spanning forest as tensors."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from groot_graph.graphs import add_reverse_edges

if TYPE_CHECKING:
    from networkx import DiGraph


class Forest:
    r"""A rooted spanning forest of a graph, held as two tensors.

    Every node :math:`i` but the roots has one parent :math:`p(i)`, and the edge between them
    belongs to the child. :func:`groot_graph.root_forest` builds a forest from edges; this
    constructor takes one that is already known.

    What follows from these two is a property, and computed when it is asked for: keep it where it
    is needed twice.

    Args:
        order (LongTensor): All nodes, each once, parents before their children, of shape
            :obj:`[num_nodes]`.
        parent (LongTensor): The parent of every node, and the node itself at a root, of shape
            :obj:`[num_nodes]`.

    Raises:
        TypeError: If an argument is not a tensor of dtype :obj:`torch.int64`.
        ValueError: If the shapes or the devices do not fit. That parents stand before their
            children is checked by the operations that scan the forest.

    Example:
        >>> import torch
        >>> from groot_graph import Forest
        >>> forest = Forest(order=torch.tensor([0, 1, 2, 3]), parent=torch.tensor([0, 0, 0, 3]))
        >>> forest
        Forest(num_nodes=4, num_trees=2)
        >>> forest.roots
        tensor([0, 3])
        >>> forest.labels
        tensor([0, 0, 0, 1])
        >>> forest.edge_index
        tensor([[0, 0],
                [1, 2]])
    """

    # What the device prepares for the scans, which groot_graph.ops.plan alone makes and reads.
    _plan: Any = None

    def __init__(self, order: Tensor, parent: Tensor):
        for name, value in (("order", order), ("parent", parent)):
            if not isinstance(value, Tensor):
                raise TypeError(f"'{name}' must be a torch.Tensor, got {type(value).__name__}")
            if value.dtype != torch.int64:
                raise TypeError(f"'{name}' must have dtype torch.int64, got {value.dtype}")
            if value.dim() != 1:
                raise ValueError(f"'{name}' must have shape [num_nodes], got {list(value.shape)}")
        if order.shape != parent.shape:
            raise ValueError(
                f"'parent' must have the length of 'order', {order.size(0)}, got {parent.size(0)}"
            )
        if order.device != parent.device:
            raise ValueError(
                f"'parent' must be on the device of 'order', {order.device}, got {parent.device}"
            )
        self.order = order
        self.parent = parent

    @classmethod
    def _of(cls, order: Tensor, parent: Tensor) -> "Forest":
        r"""The forest of tensors that are known to fit."""
        forest = cls.__new__(cls)
        forest.order, forest.parent = order, parent
        return forest

    @classmethod
    def from_data(cls, data: Data) -> "Forest":
        r"""The forest that a :class:`~torch_geometric.data.Data` carries as its edges and as
        :obj:`tree_depth`, the way :class:`~groot_graph.transforms.ToSpanningForest` leaves it.

        Of the two ends of an edge, the less deep one is the parent:

        .. math::

            p(i) = j \text{ where } \{i, j\} \in \mathcal{E}, \; depth_j < depth_i.

        That holds of what is left of a forest as well: a batch, a subgraph, a part that a loader
        samples, some edges dropped. A node whose edge to its parent is gone is a root. Asks the
        device whether every node has one parent, so it waits for a GPU.

        Args:
            data (torch_geometric.data.Data): A graph with **edge_index**
                :math:`(2, |\mathcal{E}|)`, the edges of the forest in one direction or both, and
                **tree_depth** :math:`(N)`.

        Raises:
            TypeError: If :obj:`data` is no :class:`~torch_geometric.data.Data`.
            ValueError: If it lacks one of them, or has edges that are not of the forest.

        Example:
            >>> import torch
            >>> from torch_geometric.data import Data
            >>> from groot_graph import Forest
            >>> chain = Data(edge_index=torch.tensor([[0, 1, 2], [1, 2, 3]]), num_nodes=4)
            >>> chain.tree_depth = torch.tensor([0, 1, 2, 3])
            >>> Forest.from_data(chain)
            Forest(num_nodes=4, num_trees=1)
            >>> Forest.from_data(chain.subgraph(torch.tensor([0, 1, 3])))
            Forest(num_nodes=3, num_trees=2)
        """
        _check_carries_a_forest(data)
        parent = _parent_by_depth(data.edge_index, data.tree_depth)
        return cls._of(data.tree_depth.argsort(stable=True), parent)

    @property
    def num_nodes(self) -> int:
        r"""The number of nodes."""
        return self.order.size(0)

    @property
    def num_trees(self) -> int:
        r"""The number of trees. Asks the device, so it waits for a GPU."""
        return self.roots.size(0)

    @property
    def roots(self) -> Tensor:
        r"""The roots, in the sequence of `order`, a LongTensor of shape :obj:`[num_trees]`. Their
        number is asked of the device, so it waits for a GPU.
        """
        return self.order[self.parent[self.order] == self.order]

    @property
    def labels(self) -> Tensor:
        r"""The number of the tree of every node, a LongTensor of shape :obj:`[num_nodes]`: the
        connected components. Trees are numbered by their lowest node.

        Found by pointer jumping, in a number of steps logarithmic in the depth.
        """
        node = torch.arange(self.num_nodes, device=self.device)
        root = self.parent
        for _ in range(self.num_nodes.bit_length()):
            root = root[root]
        lowest = node.scatter_reduce(0, root, node, "amin")[root]
        return ((lowest == node).long().cumsum(0) - 1)[lowest]

    @property
    def depth(self) -> Tensor:
        r"""The number of edges between every node and its root, a LongTensor of shape
        :obj:`[num_nodes]`.

        Found by pointer jumping, in a number of steps logarithmic in the depth. Raises a
        :class:`ValueError` if `parent` holds a cycle, for which it waits for a GPU.
        """
        ancestor = self.parent
        depth = (ancestor != torch.arange(self.num_nodes, device=self.device)).long()
        for _ in range(self.num_nodes.bit_length()):
            depth = depth + depth[ancestor]
            ancestor = ancestor[ancestor]
        if not torch.equal(self.parent[ancestor], ancestor):
            raise ValueError("'parent' must lead every node to a root, got a cycle")
        return depth

    @property
    def levels(self) -> list[Tensor]:
        r"""The nodes of every depth, roots first, as LongTensors in the sequence of `order`. Waits
        for a GPU.
        """
        if self.num_nodes == 0:
            return []
        depth, by_depth = self.depth[self.order].sort(stable=True)
        return list(self.order[by_depth].split(depth.bincount().tolist()))

    @property
    def edge_index(self) -> Tensor:
        r"""The edges, each from the parent to the child, in the sequence of the children in
        `order`, a LongTensor of shape :obj:`[2, num_nodes - num_trees]`. Their number is asked of
        the device, so it waits for a GPU.
        """
        above = self.parent[self.order]
        is_child = above != self.order
        return torch.stack([above[is_child], self.order[is_child]])

    @property
    def device(self) -> torch.device:
        r"""The device that holds the tensors."""
        return self.order.device

    def to(self, device: "torch.device | str", non_blocking: bool = False) -> "Forest":
        r"""The same forest on another device. A forest that is an attribute of a
        :class:`torch_geometric.data.Data` goes wherever that goes.
        """
        order = self.order.to(device, non_blocking=non_blocking)
        forest = Forest._of(order, self.parent.to(device, non_blocking=non_blocking))
        # Serves as long as the tensors are the same.
        forest._plan = self._plan
        return forest

    def cpu(self) -> "Forest":
        r"""The same forest in the memory of the CPU."""
        return self.to("cpu")

    def cuda(
        self, device: "torch.device | str | int | None" = None, non_blocking: bool = False
    ) -> "Forest":
        r"""The same forest on a GPU."""
        device = torch.device("cuda" if device is None else device)
        return self.to(device, non_blocking=non_blocking)

    def pin_memory(self) -> "Forest":
        r"""The same forest in pinned memory, from where a GPU reads without waiting."""
        return Forest._of(self.order.pin_memory(), self.parent.pin_memory())

    def clone(self) -> "Forest":
        r"""The same forest with tensors of its own."""
        return Forest._of(self.order.clone(), self.parent.clone())

    def contiguous(self) -> "Forest":
        r"""The same forest, its tensors contiguous."""
        return Forest._of(self.order.contiguous(), self.parent.contiguous())

    def share_memory_(self) -> "Forest":
        r"""Moves the tensors to memory that processes share."""
        self.order.share_memory_()
        self.parent.share_memory_()
        return self

    def is_shared(self) -> bool:
        r"""Whether processes share the tensors."""
        return self.order.is_shared() and self.parent.is_shared()

    def is_pinned(self) -> bool:
        r"""Whether the tensors lie in pinned memory."""
        return self.order.is_pinned() and self.parent.is_pinned()

    def edge_mask(self, edge_index: Tensor) -> Tensor:
        r"""Which edges of a graph join a node and its parent, in either direction.

        A forest is made of nodes and knows no numbers of edges: of an edge that stands in both
        directions, or several times, all are marked, where
        :func:`groot_graph.minimum_spanning_forest` marks the one that it has kept.

        Args:
            edge_index (LongTensor): Edges of the same nodes, of shape :obj:`[2, num_edges]`.

        Returns:
            BoolTensor: True at the edges of the forest, of shape :obj:`[num_edges]`.

        Raises:
            TypeError: If :obj:`edge_index` is no LongTensor.
            ValueError: If it has another shape, or a node number is out of range.

        Example:
            >>> import torch
            >>> from groot_graph import Forest
            >>> forest = Forest(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]))
            >>> forest.edge_mask(torch.tensor([[0, 1, 2, 0], [1, 0, 1, 2]]))
            tensor([ True,  True,  True, False])
        """
        # Checks know what a forest is.
        from groot_graph import checks

        checks.check_edge_index(edge_index)
        if checks.values_are_checked(edge_index):
            checks.check_node_range(edge_index, self.num_nodes)
        source, target = edge_index
        is_kept = (self.parent[source] == target) | (self.parent[target] == source)
        return is_kept & (source != target)

    def to_data(self) -> Data:
        r"""The forest as a graph, which :meth:`from_data` reads again.

        Waits for a GPU.

        Returns:
            torch_geometric.data.Data: A graph with **edge_index**
            :math:`(2, 2 (N - \mathrm{num\_trees}))`, every edge from the parent to the child and
            then every one back, and **tree_depth** :math:`(N)`.

        Example:
            >>> import torch
            >>> from groot_graph import Forest
            >>> forest = Forest(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]))
            >>> forest.to_data()
            Data(edge_index=[2, 4], tree_depth=[3], num_nodes=3)
        """
        edge_index = add_reverse_edges(self.edge_index)
        return Data(edge_index=edge_index, tree_depth=self.depth, num_nodes=self.num_nodes)

    def to_networkx(self) -> "DiGraph":
        r"""The forest as a graph of NetworkX, whose edges lead from parents to children.

        Returns:
            networkx.DiGraph: A branching: a rooted tree for every tree.

        Raises:
            ImportError: If NetworkX is not installed.

        Example:
            >>> import networkx
            >>> import torch
            >>> from groot_graph import Forest
            >>> forest = Forest(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]))
            >>> sorted(networkx.descendants(forest.to_networkx(), 1))
            [2]
        """
        try:
            from networkx import DiGraph
        except ImportError as error:
            raise ImportError("'to_networkx' needs NetworkX: pip install networkx") from error
        graph = DiGraph()
        graph.add_nodes_from(range(self.num_nodes))
        graph.add_edges_from(self.edge_index.t().tolist())
        return graph

    def __repr__(self) -> str:
        name = self.__class__.__name__
        if self.device.type == "meta":
            return f"{name}(num_nodes={self.num_nodes}, device='meta')"
        return f"{name}(num_nodes={self.num_nodes}, num_trees={self.num_trees})"


def _check_carries_a_forest(data: Data) -> None:
    if not isinstance(data, Data):
        raise TypeError(f"'data' must be a Data, got {type(data).__name__}")
    for key in ("edge_index", "tree_depth"):
        if key not in data:
            raise ValueError(
                f"'data' must carry '{key}', as ToSpanningForest leaves it, got {data.keys()}"
            )
    depth = data.tree_depth
    if not isinstance(depth, Tensor) or depth.dim() != 1:
        found = list(depth.shape) if isinstance(depth, Tensor) else type(depth).__name__
        raise ValueError(f"'tree_depth' must be a tensor of shape [num_nodes], got {found}")
    edge_index, num_nodes = data.edge_index, depth.size(0)
    if edge_index.numel() and not 0 <= edge_index.min() <= edge_index.max() < num_nodes:
        raise ValueError(
            "'edge_index' must hold numbers of nodes that have a 'tree_depth', from 0 to "
            f"{num_nodes - 1}, got {int(edge_index.min())} to {int(edge_index.max())}"
        )


def _parent_by_depth(edge_index: Tensor, depth: Tensor) -> Tensor:
    source, target = edge_index[:, edge_index[0] != edge_index[1]]
    is_up = depth[source] > depth[target]
    child, above = torch.where(is_up, source, target), torch.where(is_up, target, source)
    parent = torch.arange(depth.size(0), device=depth.device)
    parent[child] = above
    if not (parent[child].equal(above) and bool((depth[child] > depth[above]).all())):
        raise ValueError(
            "'edge_index' must hold edges of the forest alone, got a node with two parents or "
            "two ends of equal depth; add edges before ToSpanningForest, not after it"
        )
    return parent
