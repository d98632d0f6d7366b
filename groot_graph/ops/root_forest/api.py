r"""Rooting: the public function, and the operation behind it."""

import torch
from torch import Tensor
from torch_geometric.utils.num_nodes import maybe_num_nodes

from groot_graph import checks
from groot_graph.checks import (
    check_device,
    check_edge_index,
    check_node_range,
    check_num_nodes,
    check_root,
    check_root_range,
    check_shape,
    check_tensor,
)
from groot_graph.forest import Forest
from groot_graph.ops import dispatch
from groot_graph.ops.plan import empty_plan, keep_plan


def root_forest(
    edge_index: Tensor,
    edge_mask: Tensor | None = None,
    num_nodes: int | None = None,
    root: "str | Tensor" = "first",
) -> Forest:
    r"""Roots a forest: gives every node its parent and puts parents before their children.

    Nodes are ordered tree by tree, the trees by their lowest node. Inside a tree the order is depth
    first; siblings follow each other by node number, except that the child with the largest subtree
    (of equal ones the highest node) comes last. That order is the same on every device, and a pass
    along it holds :math:`O(\log N)` unfinished nodes at a time.

    Args:
        edge_index (LongTensor): The edges, in any direction, of shape :obj:`[2, num_edges]`.
        edge_mask (BoolTensor, optional): True at the edges of the forest, as
            :func:`groot_graph.minimum_spanning_forest` returns them, of shape :obj:`[num_edges]`.
            (default: all edges)
        num_nodes (int, optional): The number of nodes. (default: the highest node number plus one,
            for which a GPU is waited for)
        root (str or LongTensor, optional): Where each tree is rooted: at its lowest node
            (:obj:`"first"`), its highest (:obj:`"last"`), or at the given nodes, one for each tree
            in any sequence. (default: :obj:`"first"`)

    Returns:
        Forest: The rooted forest.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes or devices do not fit, a node number is out of range, the kept edges
            hold a cycle, or `root` does not name one node per tree. On CUDA tensors what needs the
            values is checked only under :func:`torch_geometric.set_debug`.

    Source:
        The rooted tree that Algorithm 1 of `arXiv 2406.02395 <https://arxiv.org/abs/2406.02395>`_
        runs along.

    Example:
        >>> import torch
        >>> from groot_graph import root_forest
        >>> forest = root_forest(torch.tensor([[0, 2, 1], [1, 1, 3]]), root=torch.tensor([1]))
        >>> forest.parent
        tensor([1, 1, 1, 1])
    """
    check_edge_index(edge_index)
    if edge_mask is not None:
        check_tensor("edge_mask", edge_mask)
        if edge_mask.dtype != torch.bool:
            raise TypeError(f"'edge_mask' must have dtype torch.bool, got {edge_mask.dtype}")
        check_shape("edge_mask", edge_mask, (edge_index.size(1),), "[num_edges]")
        check_device("edge_mask", edge_mask, "edge_index", edge_index.device)
    check_num_nodes(num_nodes)
    check_root(root, edge_index)
    num_nodes = maybe_num_nodes(edge_index, num_nodes)
    if checks.values_are_checked(edge_index):
        check_node_range(edge_index, num_nodes)
    return trusted_root_forest(edge_index, edge_mask, num_nodes, root)


def trusted_root_forest(
    edge_index: Tensor, edge_mask: Tensor | None, num_nodes: int, root: "str | Tensor" = "first"
) -> Forest:
    r"""Roots a forest of edges that are known to fit."""
    name, nodes = (root, None) if isinstance(root, str) else ("given", root)
    order, parent, plan = _root_forest(edge_index, edge_mask, num_nodes, name, nodes)
    forest = Forest._of(order, parent)
    # Only the CUDA kernels find it on their way.
    if plan.numel() > 0:
        keep_plan(forest, plan)
    return forest


@torch.library.custom_op(
    "groot_graph::root_forest",
    mutates_args=(),
    schema="(Tensor edge_index, Tensor? edge_mask, SymInt num_nodes, str root, Tensor? root_nodes)"
    " -> (Tensor, Tensor, Tensor)",
)
def _root_forest(edge_index, edge_mask, num_nodes, root, root_nodes):
    # Here and not at a door, because a compiled graph's roots have values here alone.
    if root_nodes is not None and checks.values_are_checked(root_nodes):
        check_root_range(root_nodes, num_nodes)
    compute = dispatch.implementation("root_forest", edge_index.device)
    forest = compute(edge_index, edge_mask, num_nodes, root if root_nodes is None else root_nodes)
    order, parent, *plan = forest
    return order, parent, *(plan or [parent.new_empty(0, dtype=torch.int32)])


@_root_forest.register_fake
def _(edge_index, edge_mask, num_nodes, root, root_nodes):
    order, parent = edge_index.new_empty(num_nodes), edge_index.new_empty(num_nodes)
    if dispatch.has_cuda_kernels(parent.device):
        return order, parent, empty_plan(parent)
    return order, parent, parent.new_empty(0, dtype=torch.int32)
