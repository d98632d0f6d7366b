from collections.abc import Callable

import torch
from torch import Tensor
from torch_geometric.data import Data, InMemoryDataset

from groot_graph.checks import check_int, check_positive_int
from groot_graph.graphs import add_reverse_edges


class TransferDataset(InMemoryDataset):
    r"""Base of the tasks in which one node has to say what a far one holds.

    All graphs are the same but for the class, which stands as a one-hot vector at one node. The
    node to answer, :attr:`Data.root_index`, has zeros, all others have ones.
    """

    least_distance = 2

    def __init__(
        self,
        distance: int,
        num_graphs: int = 1000,
        num_classes: int = 5,
        seed: int = 0,
        transform: Callable | None = None,
    ):
        check_positive_int("distance", distance, self.least_distance)
        check_positive_int("num_graphs", num_graphs)
        check_positive_int("num_classes", num_classes, 2)
        check_int("seed", seed)
        super().__init__(None, transform)
        self._num_classes = num_classes
        edge_index, num_nodes, source = self.layout(distance)
        edge_index = add_reverse_edges(edge_index)
        generator = torch.Generator().manual_seed(seed)
        y = torch.randint(num_classes, (num_graphs,), generator=generator)
        self.data, self.slices = self.collate(
            [_transfer_graph(edge_index, num_nodes, source, num_classes, label) for label in y]
        )

    @property
    def num_classes(self) -> int:
        return self._num_classes

    @staticmethod
    def layout(distance: int) -> tuple[Tensor, int, int]:
        r"""The edges, each in one direction; the number of nodes; the node that holds the class."""
        raise NotImplementedError


def _transfer_graph(
    edge_index: Tensor, num_nodes: int, source: int, num_classes: int, label: Tensor
) -> Data:
    x = torch.ones(num_nodes, num_classes)
    x[0] = 0
    x[source] = torch.nn.functional.one_hot(label, num_classes).float()
    root_index = torch.zeros(1, dtype=torch.long)
    return Data(x=x, edge_index=edge_index, y=label.view(1), root_index=root_index)
