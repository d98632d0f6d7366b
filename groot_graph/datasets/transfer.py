import torch
from torch import Tensor
from torch_geometric.data import Data, InMemoryDataset

from groot_graph.ops.checks import check_positive_int
from groot_graph.transforms.utils import add_reverse_edges


class TransferDataset(InMemoryDataset):
    r"""Base of the tasks in which one node has to say what a far one holds.

    All graphs are the same but for the class, which stands as a one-hot vector at the
    :obj:`source`. The node to answer, :attr:`Data.root_index`, has zeros, all others have ones.
    """

    def __init__(
        self,
        edge_index: Tensor,
        num_nodes: int,
        source: int,
        num_classes: int,
        num_graphs: int,
        seed: int,
        transform=None,
    ):
        check_positive_int("num_classes", num_classes)
        check_positive_int("num_graphs", num_graphs)
        super().__init__(None, transform)
        generator = torch.Generator().manual_seed(seed)
        y = torch.randint(num_classes, (num_graphs,), generator=generator)
        edge_index = add_reverse_edges(edge_index)
        self.data, self.slices = self.collate(
            [_transfer_graph(edge_index, num_nodes, source, num_classes, label) for label in y]
        )


def _transfer_graph(
    edge_index: Tensor, num_nodes: int, source: int, num_classes: int, label: Tensor
) -> Data:
    x = torch.ones(num_nodes, num_classes)
    x[0] = 0
    x[source] = torch.nn.functional.one_hot(label, num_classes).float()
    root_index = torch.zeros(1, dtype=torch.long)
    return Data(x=x, edge_index=edge_index, y=label.view(1), root_index=root_index)
