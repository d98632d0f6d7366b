import torch
from torch import Tensor

from groot_graph.datasets.transfer import TransferDataset


class CliquePath(TransferDataset):
    r"""Cliques with a path, in which a node of the clique has to tell the class that the path's end
    holds, from the `"On Over-Squashing in Message Passing Neural Networks: The Impact of Width,
    Depth, and Topology" <https://arxiv.org/abs/2302.02941>`_ paper (Section 3).

    The first :math:`d - 1` nodes are a clique, the other :math:`d - 1` a path whose first node is
    joined to the clique's last. The path's end holds a class as a one-hot vector, node :math:`0`,
    which has to tell it, zeros, all others ones. The last step of the way goes through the crowd of
    the clique.

    Args:
        distance (int): The number of edges :math:`d` from the class to the node that tells it,
            three or more.
        num_graphs (int, optional): The number of graphs. (default: :obj:`1000`)
        num_classes (int, optional): The number of classes, two or more. (default: :obj:`5`)
        seed (int, optional): Of the classes. (default: :obj:`0`)
        transform (Callable, optional): A transform of every graph when it is read.
            (default: :obj:`None`)

    Shapes:
        - **x** :math:`(2d - 2, \mathrm{num\_classes})`, **edge_index** :math:`(2, d (d - 1))`
        - **y** :math:`(1)`, the class; **root_index** :math:`(1)`, the node that has to tell it

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `distance`, `num_graphs` or `num_classes` is too small.

    Example:
        >>> from groot_graph.datasets import CliquePath
        >>> dataset = CliquePath(distance=5, num_graphs=10)
        >>> dataset[0]
        Data(x=[8, 5], edge_index=[2, 20], y=[1], root_index=[1])
    """

    least_distance = 3

    @staticmethod
    def layout(distance: int) -> tuple[Tensor, int, int]:
        half = distance - 1
        clique = torch.combinations(torch.arange(half), 2).t()
        path = torch.arange(half - 1, 2 * half - 1)
        edge_index = torch.cat([clique, torch.stack([path, path + 1])], dim=1)
        return edge_index, 2 * half, 2 * half - 1
