r"""The minimum spanning forest: the public function, and the operation behind it."""

import torch
from torch import Tensor
from torch_geometric.utils.num_nodes import maybe_num_nodes

from groot_graph import checks
from groot_graph.checks import (
    check_edge_index,
    check_edge_weight,
    check_node_range,
    check_not_nan,
    check_num_nodes,
)
from groot_graph.ops import dispatch


def minimum_spanning_forest(
    # Left out where a whole graph was given, which the checks tell how to take apart.
    edge_index: Tensor,
    edge_weight: Tensor = None,  # type: ignore[assignment]
    num_nodes: int | None = None,
) -> Tensor:
    r"""Finds the minimum spanning forest of a graph: one tree of least total weight per connected
    component.

    .. math::
        F = \operatorname{argmin}_{F \subseteq E} \sum_{e \in F} w_e
        \quad \text{such that } F \text{ connects what } E \text{ connects}

    Edges are undirected: each may be given once or in both directions. They are ranked by
    :math:`(w_e, e)`, so ties go to the lower edge number and the forest is unique. Self-loops are
    never kept; of parallel edges at most one is. Weights may be zero, negative or infinite. No
    gradient flows through the choice.

    The forest the tree state space model of `"GrootVL: Tree Topology is All You Need in State Space
    Model" <https://arxiv.org/abs/2406.02395>`_ (Section 3.2) scans along, found by
    Borůvka's algorithm.

    Args:
        edge_index (LongTensor): The edges, of shape :obj:`[2, num_edges]`.
        edge_weight (Tensor): One weight per edge, floating point or integer, of shape
            :obj:`[num_edges]`.
        num_nodes (int, optional): The number of nodes. (default: the highest node number plus one,
            for which a GPU is waited for)

    Returns:
        BoolTensor: True at the kept edges, of shape :obj:`[num_edges]`. Their number is
        :obj:`num_nodes` minus the number of connected components.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes or devices do not fit or a node number is out of range.
        NotANumberError: If a weight is NaN. On CUDA tensors node numbers and weights are checked
            only under :func:`torch_geometric.set_debug`.

    Example:
        >>> import torch
        >>> from groot_graph import minimum_spanning_forest
        >>> edge_index = torch.tensor([[0, 1, 2, 0], [1, 2, 0, 3]])
        >>> minimum_spanning_forest(edge_index, torch.tensor([1.0, 3.0, 2.0, 5.0]))
        tensor([ True, False,  True,  True])
    """
    check_edge_index(edge_index)
    check_edge_weight(edge_weight, edge_index)
    check_num_nodes(num_nodes)
    num_nodes = maybe_num_nodes(edge_index, num_nodes)
    if checks.values_are_checked(edge_index):
        check_node_range(edge_index, num_nodes)
    return trusted_minimum_spanning_forest(edge_index, edge_weight, num_nodes)


def trusted_minimum_spanning_forest(
    edge_index: Tensor, edge_weight: Tensor, num_nodes: int, weight_name: str = "edge_weight"
) -> Tensor:
    r"""The minimum spanning forest of edges that are known to fit, over weights of which only a NaN
    is refused, in the name of what the caller gave.
    """
    return _minimum_spanning_forest(edge_index, edge_weight.detach(), num_nodes, weight_name)


@torch.library.custom_op(
    "groot_graph::minimum_spanning_forest",
    mutates_args=(),
    schema="(Tensor edge_index, Tensor edge_weight, SymInt num_nodes, str weight_name) -> Tensor",
)
def _minimum_spanning_forest(edge_index, edge_weight, num_nodes, weight_name):
    # Here and not at a door, because a compiled layer's weights have values here alone.
    if checks.values_are_checked(edge_weight):
        check_not_nan(weight_name, edge_weight)
    compute = dispatch.implementation("minimum_spanning_forest", edge_index.device)
    return compute(edge_index, edge_weight, num_nodes)


@_minimum_spanning_forest.register_fake
def _(edge_index, edge_weight, num_nodes, weight_name):
    return torch.empty_like(edge_weight, dtype=torch.bool)
