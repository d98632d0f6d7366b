r"""The scan of a tree: the public function, and the operation behind it with its gradient."""

from collections.abc import Callable

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
from groot_graph.ops.derivatives import (
    asks_for_derivatives,
    is_differentiated_again,
    refuse_batched_forests,
)
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
    scan = _TreeScan.apply if asks_for_derivatives() else _tree_scan
    return scan(x.to(dtype), transition.to(dtype), *tensors, direction).to(x.dtype)


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
    is_found_again = x.is_cuda and dispatch.has_cuda_kernels(x.device)
    h = x.new_empty(0) if is_found_again else output
    ctx.save_for_backward(x, transition, h, order, parent, plan)


def _backward(ctx, grad):
    compute: Callable = _gradients if is_differentiated_again() else _tree_scan_backward
    grad_x, grad_transition = compute(grad, *ctx.saved_tensors, ctx.direction)
    return grad_x, grad_transition, None, None, None, None


_tree_scan.register_autograd(_backward, setup_context=_setup_context)


def _gradients(grad, x, transition, h, order, parent, plan, direction):
    r"""What the backward pass computes, out of scans, which can be differentiated again."""
    is_edge = _is_edge(parent)

    def scan(values, direction):
        scan = _TreeScan.apply if asks_for_derivatives() else _tree_scan
        return scan(values, transition, order, parent, plan, direction)

    if h.numel() == 0:
        h = scan(x, direction)
    if direction == "up":
        grad_x = scan(grad, "down")
        return grad_x, is_edge * grad_x[parent] * h
    if direction == "down":
        grad_x = scan(grad, "up")
        return grad_x, is_edge * grad_x * h[parent]
    xi, gamma, grad_x = scan(x, "up"), scan(grad, "up"), scan(grad, "both")
    arriving, asked = h[parent] - transition * xi, grad_x[parent] - transition * gamma
    return grad_x, is_edge * (gamma * arriving + xi * asked)


class _TreeScan(torch.autograd.Function):
    r"""The scan of dual numbers, and under the transforms of :obj:`torch.func`."""

    @staticmethod
    def forward(x, transition, order, parent, plan, direction):
        return _tree_scan(x, transition, order, parent, plan, direction)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, transition, order, parent, plan, ctx.direction = inputs
        ctx.save_for_backward(x, transition, output, order, parent, plan)
        ctx.save_for_forward(x, transition, order, parent, plan)

    @staticmethod
    def backward(ctx, grad):
        x, transition, h, order, parent, plan = ctx.saved_tensors
        grads = _gradients(grad, x, transition, h, order, parent, plan, ctx.direction)
        return *grads, None, None, None, None

    @staticmethod
    def jvp(ctx, x_tangent, transition_tangent, *_):
        x, transition, order, parent, plan = ctx.saved_tensors
        direction = ctx.direction

        def scan(values, direction):
            scan = _TreeScan.apply if asks_for_derivatives() else _tree_scan
            return scan(values, transition, order, parent, plan, direction)

        x_tangent = torch.zeros_like(x) if x_tangent is None else x_tangent
        if transition_tangent is None:
            return scan(x_tangent, direction)
        slope = _is_edge(parent) * transition_tangent
        # The output is found again, because a saved one has no tangents of other transforms.
        if direction == "down":
            return scan(x_tangent + slope * scan(x, "down")[parent], "down")
        xi = scan(x, "up")
        handed_up = torch.zeros_like(xi).index_add(0, parent, slope * xi)
        xi_tangent = scan(x_tangent + handed_up, "up")
        if direction == "up":
            return xi_tangent
        # h is the scan down of ξ − a² ξ.
        a = _is_edge(parent) * transition
        z_tangent = (1 - a**2) * xi_tangent - 2 * a * slope * xi
        return scan(z_tangent + slope * scan(x, "both")[parent], "down")

    @staticmethod
    def vmap(info, in_dims, x, transition, order, parent, plan, direction):
        refuse_batched_forests(in_dims[2:])
        x, transition = (
            _beside(value, dim, info.batch_size)
            for value, dim in zip((x, transition), in_dims[:2], strict=True)
        )
        scan = _TreeScan.apply if asks_for_derivatives() else _tree_scan
        h = scan(x, transition, order, parent, plan, direction)
        return h.view(h.size(0), info.batch_size, h.size(1) // info.batch_size), 1


def _is_edge(parent: Tensor) -> Tensor:
    r"""Whether a node has an edge to its parent, a column that is False at roots."""
    return (parent != torch.arange(parent.size(0), device=parent.device)).unsqueeze(1)


def _beside(x: Tensor, batch_dim: int | None, batch_size: int) -> Tensor:
    r"""A batch of features as channels side by side, since the scan takes each by itself."""
    x = x.unsqueeze(1).expand(-1, batch_size, -1) if batch_dim is None else x.movedim(batch_dim, 1)
    return x.reshape(x.size(0), -1)


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
