r"""The scan of a tree: the public function, and the operation behind it with its gradient."""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from groot_graph.checks import (
    check_device,
    check_direction,
    check_floating,
    check_forest,
    check_shape,
)
from groot_graph.forest import Forest
from groot_graph.ops import dispatch
from groot_graph.ops.dtypes import operand_dtype
from groot_graph.ops.plan import plan_of, with_plan


def tree_scan(x: Tensor, transition: Tensor, forest: Forest, direction: str = "both") -> Tensor:
    r"""Sums what the nodes of a tree hold, each weighted by the product of the transitions on the
    way.

    .. math::
        \mathbf{h}_i = \sum_j \Big( \prod_{k \in \text{path}(i, j)} \mathbf{a}_k \Big) \odot
        \mathbf{x}_j

    The edge between a node and its parent has the transition of the child. Which :math:`j` a node
    hears is its whole tree (:obj:`"both"`), its subtree (:obj:`"up"`) or its ancestors
    (:obj:`"down"`), itself always. Two passes make it linear in the nodes:

    .. math::
        \text{up:}\quad \boldsymbol\xi_i &= \mathbf{x}_i + \sum_{c \text{ child of } i} \mathbf{a}_c
        \odot \boldsymbol\xi_c \\
        \text{down:}\quad \mathbf{h}_i &= \boldsymbol\xi_i + \mathbf{a}_i \odot
        (\mathbf{h}_{p(i)} - \mathbf{a}_i \odot \boldsymbol\xi_i), \qquad
        \mathbf{h}_{\text{root}} = \boldsymbol\xi_{\text{root}}

    Args:
        x (Tensor): What every node puts in, of shape :obj:`[num_nodes, channels]`.
        transition (Tensor): The transition of the edge from every node to its parent, ignored at
            roots, of shape :obj:`[num_nodes, channels]`.
        forest (Forest): The rooted forest.
        direction (str, optional): :obj:`"both"`, :obj:`"up"` or :obj:`"down"`.
            (default: :obj:`"both"`)

    Returns:
        Tensor: :math:`\mathbf{h}`, of shape :obj:`[num_nodes, channels]` and the dtype of `x`. Half
        precision is computed in float32.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes, devices or the forest do not fit, or `direction` is unknown.

    Source:
        `arXiv 2406.02395 <https://arxiv.org/abs/2406.02395>`_, Algorithms 1 (forward) and 2
        (backward).

    Example:
        >>> import torch
        >>> from groot_graph import root_forest, tree_scan
        >>> chain = root_forest(torch.tensor([[0, 1], [1, 2]]))
        >>> tree_scan(torch.ones(3, 1), torch.full((3, 1), 0.5), chain).flatten()
        tensor([1.7500, 2.0000, 1.7500])
    """
    check_floating("x", x)
    check_shape("x", x, (None, None), "[num_nodes, channels]")
    check_floating("transition", transition)
    check_shape("transition", transition, tuple(x.shape), "[num_nodes, channels]")
    check_device("transition", transition, "x", x.device)
    check_forest(forest, x.size(0), x.device, "x")
    check_direction(direction)
    return trusted_tree_scan(x, transition, forest, direction)


def trusted_tree_scan(
    x: Tensor, transition: Tensor, forest: Forest, direction: str = "both"
) -> Tensor:
    r"""The scan of tensors and a forest that are known to fit."""
    dtype = operand_dtype(x, transition)
    tensors = forest.order, forest.parent, plan_of(forest)
    h = _tree_scan(x.to(dtype), transition.to(dtype), *tensors, direction)
    return h.to(x.dtype)


@torch.library.custom_op(
    "groot_graph::tree_scan",
    mutates_args=(),
    schema="(Tensor x, Tensor transition, Tensor order, Tensor parent, Tensor plan, "
    "str direction) -> Tensor",
)
def _tree_scan(x, transition, order, parent, plan, direction):
    compute = dispatch.implementation("tree_scan", x.device)
    return compute(x, transition, with_plan(order, parent, plan), direction)


@_tree_scan.register_fake
def _(x, transition, order, parent, plan, direction):
    return x.new_empty(x.shape)


@torch.library.custom_op(
    "groot_graph::tree_scan_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor transition, Tensor h, Tensor order, Tensor parent, "
    "Tensor plan, str direction) -> (Tensor, Tensor)",
)
def _tree_scan_backward(grad, x, transition, h, order, parent, plan, direction):
    compute = dispatch.implementation("tree_scan", x.device, "_backward")
    return compute(grad, x, transition, h, with_plan(order, parent, plan), direction)


@_tree_scan_backward.register_fake
def _(grad, x, transition, h, order, parent, plan, direction):
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _setup_context(ctx, inputs, output):
    x, transition, order, parent, plan, ctx.direction = inputs
    # The CUDA kernels find h again on their way.
    h = x.new_empty(0) if dispatch.backend(x.device) == "cuda" else output
    ctx.save_for_backward(x, transition, h, order, parent, plan)


def _backward(ctx, grad):
    grad_x, grad_transition = _tree_scan_backward(grad, *ctx.saved_tensors, ctx.direction)
    return grad_x, grad_transition, None, None, None, None


_tree_scan.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.groot_graph.tree_scan)
def _flops(x_shape, transition_shape, order_shape, parent_shape, plan_shape, direction, **_) -> int:
    # One multiplication and one addition for each pass, two more of both on the way down.
    return x_shape.numel() * (6 if direction == "both" else 2)


@register_flop_formula(torch.ops.groot_graph.tree_scan_backward)
def _backward_flops(
    grad_shape, x_shape, transition_shape, h_shape, order_shape, parent_shape, plan_shape,
    direction, **_
) -> int:  # fmt: skip
    # The scan of the gradient, and the gradient of the transition out of both scans' values.
    return grad_shape.numel() * (15 if direction == "both" else 3)
