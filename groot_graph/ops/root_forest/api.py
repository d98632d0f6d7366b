r"""Rooting: the public function, the operation behind it, and the plan of a forest."""

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
from groot_graph.ops.cuda.plan import plan_size
from groot_graph.ops.dispatch import has_cuda_kernels, implementation


def root_forest(
    edge_index: Tensor,
    edge_mask: Tensor | None = None,
    num_nodes: int | None = None,
    root: "str | Tensor" = "first",
) -> Forest:
    r"""Roots a forest: gives every node its parent and puts parents before their children.

    Nodes are ordered tree by tree, the trees by their lowest node. Inside a tree the order is depth
    first; siblings follow each other by node number, except that the child with the largest subtree
    (of equal ones the highest node) comes last. That order is the same on every device, and a walk
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
        walks.

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
    return Forest._of(*_root_forest(edge_index, edge_mask, num_nodes, name, nodes))


def scan_plan(forest: Forest) -> Tensor:
    r"""What the scans walk along on the forest's device: nothing but on CUDA devices."""
    parent = forest.parent
    if not has_cuda_kernels(parent.device):
        return _no_plan(parent)
    if forest.plan is not None and forest.plan.numel() == plan_size(parent.size(0)):
        return forest.plan
    if not _is_lasting(parent):
        return _scan_plan(parent)
    # Another stream would read a plan that may not be there yet, another version an outdated one.
    made_for = parent._version, _current_stream(parent.device)
    if forest.made_plan is None or forest.made_plan[0] != made_for:
        forest.made_plan = made_for, _scan_plan(parent)
    return forest.made_plan[1]


def _is_lasting(parent: Tensor) -> bool:
    r"""Whether a plan that is made now may serve later calls: none may that belongs to a trace, to
    a CUDA graph or to inference mode.
    """
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or parent.is_inference():
        return False
    return parent.device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def _current_stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


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
    compute = implementation("root_forest", edge_index.device)
    forest = compute(edge_index, edge_mask, num_nodes, root if root_nodes is None else root_nodes)
    order, parent, *plan = forest
    return order, parent, *(plan or [_no_plan(edge_index)])


@_root_forest.register_fake
def _(edge_index, edge_mask, num_nodes, root, root_nodes):
    order, parent = edge_index.new_empty(num_nodes), edge_index.new_empty(num_nodes)
    return order, parent, _empty_plan(parent)


@torch.library.custom_op(
    "groot_graph::scan_plan", mutates_args=(), schema="(Tensor parent) -> Tensor"
)
def _scan_plan(parent):
    return implementation("root_forest", parent.device, "_plan")(parent)


@_scan_plan.register_fake
def _(parent):
    return _empty_plan(parent)


def _empty_plan(parent: Tensor) -> Tensor:
    if not has_cuda_kernels(parent.device):
        return _no_plan(parent)
    return parent.new_empty(plan_size(parent.size(0)), dtype=torch.int32)


def _no_plan(like: Tensor) -> Tensor:
    return like.new_empty(0, dtype=torch.int32)
