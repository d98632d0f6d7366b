from collections.abc import Callable

import torch
from torch_geometric.data import Data, InMemoryDataset

from groot_graph.checks import check_int, check_positive_int
from groot_graph.graphs import add_reverse_edges


class TreeNeighborsMatch(InMemoryDataset):
    r"""Binary trees whose root has to find the leaf with its own key and tell that leaf's value,
    from the `"On the Bottleneck of Graph Neural Networks and its Practical Implications"
    <https://arxiv.org/abs/2006.05205>`_ paper (Section 4.1).

    A full binary tree of depth :math:`r`, numbered level by level from its root, node :math:`0`.
    Its :math:`2^r` leaves hold the keys :math:`1, \ldots, 2^r` in their sequence, and the values
    :math:`1, \ldots, 2^r` in a random one; the root holds one of the keys. Zero stands where a node
    has none. What the root has to know of its leaves grows exponentially with :math:`r`, while only
    two edges lead to it. Chance is one in :math:`2^r`.

    Args:
        depth (int): The depth :math:`r`, the number of edges from leaves to root.
        num_graphs (int, optional): The number of graphs. (default: :obj:`1000`)
        seed (int, optional): Of the values and keys. (default: :obj:`0`)
        transform (Callable, optional): A transform of every graph when it is read.
            (default: :obj:`None`)

    Shapes:
        - **x** :math:`(2^{r+1} - 1, 2)`, integers: the key and the value of every node
        - **edge_index** :math:`(2, 2^{r+2} - 4)`
        - **y** :math:`(1)`, the value less one; **root_index** :math:`(1)`, the root

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `depth` or `num_graphs` is below one.

    Example:
        >>> from groot_graph.datasets import TreeNeighborsMatch
        >>> dataset = TreeNeighborsMatch(depth=3, num_graphs=10)
        >>> dataset[0]
        Data(x=[15, 2], edge_index=[2, 28], y=[1], root_index=[1])
        >>> dataset.num_classes
        8
    """

    def __init__(
        self, depth: int, num_graphs: int = 1000, seed: int = 0, transform: Callable | None = None
    ):
        check_positive_int("depth", depth)
        check_positive_int("num_graphs", num_graphs)
        check_int("seed", seed)
        super().__init__(None, transform)
        self.depth = depth
        child = torch.arange(1, 2 ** (depth + 1) - 1)
        edge_index = add_reverse_edges(torch.stack([child, (child - 1) // 2]))
        generator = torch.Generator().manual_seed(seed)
        self.data, self.slices = self.collate(
            [self._tree(edge_index, generator) for _ in range(num_graphs)]
        )

    @property
    def num_classes(self) -> int:
        return 2**self.depth

    def _tree(self, edge_index: torch.Tensor, generator: torch.Generator) -> Data:
        num_leaves = 2**self.depth
        leaf_values = torch.randperm(num_leaves, generator=generator)
        wanted = torch.randint(num_leaves, (1,), generator=generator)
        x = torch.zeros(2 * num_leaves - 1, 2, dtype=torch.long)
        x[num_leaves - 1 :, 0] = torch.arange(1, num_leaves + 1)
        x[num_leaves - 1 :, 1] = leaf_values + 1
        x[0, 0] = wanted + 1
        root_index = torch.zeros(1, dtype=torch.long)
        return Data(x=x, edge_index=edge_index, y=leaf_values[wanted], root_index=root_index)
