import torch
from torch import Tensor

from groot_graph.datasets.transfer import TransferDataset


class RingTransfer(TransferDataset):
    r"""Rings in which a node has to tell the class that the opposite node holds, from the `"On
    Over-Squashing in Message Passing Neural Networks: The Impact of Width, Depth, and Topology"
    <https://arxiv.org/abs/2302.02941>`_ paper (Section 3).

    A ring of :math:`2 d` nodes. Node :math:`d` holds a class as a one-hot vector, node :math:`0`,
    which has to tell it, zeros, all others ones. No model that reaches fewer than :math:`d` edges
    far can do better than chance, one in :obj:`num_classes`.

    Args:
        distance (int): The number of edges :math:`d` from the class to the node that tells it.
        num_graphs (int, optional): The number of graphs. (default: :obj:`1000`)
        num_classes (int, optional): The number of classes, two or more. (default: :obj:`5`)
        seed (int, optional): Of the classes. (default: :obj:`0`)
        transform (Callable, optional): A transform of every graph when it is read.
            (default: :obj:`None`)

    Shapes:
        - **x** :math:`(2d, \mathrm{num\_classes})`, **edge_index** :math:`(2, 4d)`
        - **y** :math:`(1)`, the class; **root_index** :math:`(1)`, the node that has to tell it

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `distance`, `num_graphs` or `num_classes` is too small.

    Example:
        >>> from groot_graph.datasets import RingTransfer
        >>> dataset = RingTransfer(distance=4, num_graphs=10)
        >>> dataset[0]
        Data(x=[8, 5], edge_index=[2, 16], y=[1], root_index=[1])
    """

    @staticmethod
    def layout(distance: int) -> tuple[Tensor, int, int]:
        node = torch.arange(2 * distance)
        return torch.stack([node, (node + 1) % (2 * distance)]), 2 * distance, distance
