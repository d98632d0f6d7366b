import torch
from torch import Tensor

from groot_graph.datasets.ring_transfer import RingTransfer
from groot_graph.datasets.transfer import TransferDataset


class CrossedRing(TransferDataset):
    r"""Rings as those of :class:`RingTransfer` whose two sides are joined crosswise, from the `"On
    Over-Squashing in Message Passing Neural Networks: The Impact of Width, Depth, and Topology"
    <https://arxiv.org/abs/2302.02941>`_ paper (Section 3).

    A ring of :math:`2 d` nodes, and edges from every node :math:`i` of one side, :math:`0 < i < d -
    1`, to the node across and one further on, :math:`2 d - i - 1`, and from the node there,
    :math:`2 d - i`, to :math:`i + 1`. Many more walks lead from node to node than in a ring, at the
    same distance :math:`d`.

    Args:
        distance (int): The number of edges :math:`d` from the class to the node that tells it.
        num_graphs (int, optional): The number of graphs. (default: :obj:`1000`)
        num_classes (int, optional): The number of classes, two or more. (default: :obj:`5`)
        seed (int, optional): Of the classes. (default: :obj:`0`)
        transform (Callable, optional): A transform of every graph when it is read.
            (default: :obj:`None`)

    Shapes:
        - **x** :math:`(2d, \mathrm{num\_classes})`, **edge_index** :math:`(2, 4d + 4(d - 2))`
        - **y** :math:`(1)`, the class; **root_index** :math:`(1)`, the node that has to tell it

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `distance`, `num_graphs` or `num_classes` is too small.

    Example:
        >>> from groot_graph.datasets import CrossedRing
        >>> dataset = CrossedRing(distance=4, num_graphs=10)
        >>> dataset[0]
        Data(x=[8, 5], edge_index=[2, 24], y=[1], root_index=[1])
    """

    @staticmethod
    def layout(distance: int) -> tuple[Tensor, int, int]:
        ring, num_nodes, source = RingTransfer.layout(distance)
        node = torch.arange(1, distance - 1)
        across = num_nodes - node
        crosses = torch.cat([torch.stack([node, across - 1]), torch.stack([node + 1, across])], 1)
        return torch.cat([ring, crosses], dim=1), num_nodes, source
