r"""The selective scan: the public function, and the operation behind it with its gradient."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from groot_graph.checks import (
    check_device,
    check_direction,
    check_floating,
    check_forest,
    check_number,
    check_shape,
)
from groot_graph.forest import Forest
from groot_graph.ops import dispatch
from groot_graph.ops.derivatives import asks_for_derivatives, is_differentiated_again
from groot_graph.ops.dtypes import computing_dtype, operand_dtype
from groot_graph.ops.plan import plan_of, with_plan
from groot_graph.ops.selective_tree_scan.composed import selective_tree_scan_composed


def selective_tree_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    forest: Forest,
    D: Tensor | None = None,
    direction: str = "both",
    transition_delta: Tensor | None = None,
    state_norm_eps: float | None = None,
) -> Tensor:
    r"""Runs a selective state space model along a forest.

    .. math::
        \bar{\mathbf{x}}_i &= \boldsymbol\Delta_i \mathbf{B}_i \mathbf{u}_i, \qquad
        \bar{\mathbf{A}}_i = \exp(\boldsymbol\Delta'_i \mathbf{A}) \\
        \mathbf{h}_i &= \sum_j \Big( \prod_{k \in \text{path}(i, j)} \bar{\mathbf{A}}_k \Big)
        \bar{\mathbf{x}}_j \\
        \mathbf{y}_i &= \mathbf{C}_i \mathbf{h}_i + \mathbf{D} \odot \mathbf{u}_i

    With `state_norm_eps` :math:`\epsilon`, every state is normalized over the channels
    before it is read:

    .. math::
        \mathbf{y}_i = \mathbf{C}_i \hat{\mathbf{h}}_i + \mathbf{D} \odot \mathbf{u}_i, \qquad
        \hat{\mathbf{h}}_i = \frac{\mathbf{h}_i - \mathrm{mean}(\mathbf{h}_i)}
        {\sqrt{\mathrm{var}(\mathbf{h}_i) + \epsilon}}

    On a chain rooted at its last node, direction :obj:`"up"`, it is the selective scan of Mamba.
    The states of all nodes, :obj:`[num_nodes, channels, state_size]`, are never held in memory at
    once on the CPU and on CUDA devices.

    Args:
        u (Tensor): The input, of shape :obj:`[num_nodes, channels]`.
        delta (Tensor): The step :math:`\boldsymbol\Delta`, of shape :obj:`[num_nodes, channels]`.
        A (Tensor): The state matrix's diagonal, of shape :obj:`[channels, state_size]`.
        B (Tensor): The input matrix of every node, of shape :obj:`[num_nodes, state_size]`.
        C (Tensor): The output matrix of every node, of shape :obj:`[num_nodes, state_size]`.
        forest (Forest): The rooted forest.
        D (Tensor, optional): The skip weights, of shape :obj:`[channels]`. (default: no skip)
        direction (str, optional): Whom a node hears: :obj:`"both"`, :obj:`"up"` or :obj:`"down"`,
            as in :func:`groot_graph.tree_scan`. (default: :obj:`"both"`)
        transition_delta (Tensor, optional): The step :math:`\boldsymbol\Delta'` of the edge from
            every node to its parent, of shape :obj:`[num_nodes, channels]`. (default: `delta`)
        state_norm_eps (float, optional): What is added to the variance of every state over the
            channels. (default: states are not normalized)

    Returns:
        Tensor: :math:`\mathbf{y}`, of shape :obj:`[num_nodes, channels]` and the dtype of `u`. Half
        precision is computed in float32.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes, devices or the forest do not fit, `direction` is unknown, or
            `state_norm_eps` is not positive and finite.

    Source:
        `arXiv 2406.02395 <https://arxiv.org/abs/2406.02395>`_, Section 3; the selective scan of
        `arXiv 2312.00752 <https://arxiv.org/abs/2312.00752>`_, Algorithm 2.

    Example:
        >>> import torch
        >>> from groot_graph import root_forest, selective_tree_scan
        >>> chain = root_forest(torch.tensor([[0, 1], [1, 2]]), root="last")
        >>> u, delta, B, C = torch.ones(3, 4), torch.ones(3, 4), torch.ones(3, 2), torch.ones(3, 2)
        >>> selective_tree_scan(u, delta, torch.zeros(4, 2), B, C, chain, direction="up")[:, 0]
        tensor([2., 4., 6.])
    """
    _check_operands(u, delta, A, B, C, D, transition_delta)
    check_forest(forest, u.size(0), u.device, "u")
    check_direction(direction)
    _check_state_norm_eps(state_norm_eps)
    return trusted_selective_tree_scan(
        u, delta, A, B, C, forest, D, direction, transition_delta, state_norm_eps
    )


def trusted_selective_tree_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    forest: Forest,
    D: Tensor | None = None,
    direction: str = "both",
    transition_delta: Tensor | None = None,
    state_norm_eps: float | None = None,
) -> Tensor:
    r"""The selective scan of tensors and a forest that are known to fit."""
    operands = _in_common_dtypes(u, delta, A, B, C, D, transition_delta)
    if asks_for_derivatives():
        u_, delta, A, B, C, D, transition_delta = operands
        y = selective_tree_scan_composed(
            u_, delta, A, B, C, forest, D, direction, transition_delta, state_norm_eps
        )
        return y.to(u.dtype)
    tensors = forest.order, forest.parent, plan_of(forest)
    return _selective_tree_scan(*operands, *tensors, direction, state_norm_eps).to(u.dtype)


def _in_common_dtypes(u, delta, A, B, C, D, transition_delta) -> tuple:
    r"""What nodes have in one dtype, which may be a half type; what channels have in the dtype that
    is computed in.
    """
    of_nodes = (u, delta, B, C) if transition_delta is None else (u, delta, B, C, transition_delta)
    of_channels = (A,) if D is None else (A, D)
    dtype = computing_dtype(*of_nodes, *of_channels)
    is_double = dtype == torch.float64
    node_dtype = dtype if is_double else operand_dtype(*of_nodes)
    return (
        u.to(node_dtype),
        delta.to(node_dtype),
        A.to(dtype),
        B.to(node_dtype),
        C.to(node_dtype),
        None if D is None else D.to(dtype),
        None if transition_delta is None else transition_delta.to(node_dtype),
    )


def _check_state_norm_eps(state_norm_eps) -> None:
    if state_norm_eps is None:
        return
    check_number("state_norm_eps", state_norm_eps)
    if not 0 < state_norm_eps < math.inf:
        raise ValueError(f"'state_norm_eps' must be positive and finite, got {state_norm_eps}")


def _check_operands(u, delta, A, B, C, D, transition_delta) -> None:
    check_floating("u", u)
    check_shape("u", u, (None, None), "[num_nodes, channels]")
    check_floating("A", A)
    check_shape("A", A, (u.size(1), None), "[channels, state_size]")
    (num_nodes, channels), state_size = u.shape, A.size(1)
    expected = {
        "delta": (delta, (num_nodes, channels), "[num_nodes, channels]"),
        "B": (B, (num_nodes, state_size), "[num_nodes, state_size]"),
        "C": (C, (num_nodes, state_size), "[num_nodes, state_size]"),
        "D": (D, (channels,), "[channels]"),
        "transition_delta": (transition_delta, (num_nodes, channels), "[num_nodes, channels]"),
    }
    check_device("A", A, "u", u.device)
    for name, (operand, shape, meaning) in expected.items():
        if operand is None and name in ("D", "transition_delta"):
            continue
        check_floating(name, operand)
        check_shape(name, operand, shape, meaning)
        check_device(name, operand, "u", u.device)


@torch.library.custom_op(
    "groot_graph::selective_tree_scan",
    mutates_args=(),
    schema="(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, "
    "Tensor? transition_delta, Tensor order, Tensor parent, Tensor plan, str direction, "
    "float? state_norm_eps) -> Tensor",
)
def _selective_tree_scan(
    u, delta, A, B, C, D, transition_delta, order, parent, plan, direction, state_norm_eps
):
    compute = dispatch.implementation("selective_tree_scan", u.device)
    forest = with_plan(order, parent, plan)
    return compute(u, delta, A, B, C, forest, D, direction, transition_delta, state_norm_eps)


@_selective_tree_scan.register_fake
def _(u, delta, A, B, C, D, transition_delta, order, parent, plan, direction, state_norm_eps):
    return u.new_empty(u.shape)


@torch.library.custom_op(
    "groot_graph::selective_tree_scan_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, "
    "Tensor? transition_delta, Tensor order, Tensor parent, Tensor plan, str direction, "
    "float? state_norm_eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _selective_tree_scan_backward(
    grad, u, delta, A, B, C, D, transition_delta, order, parent, plan, direction, state_norm_eps
):
    compute = dispatch.implementation("selective_tree_scan", u.device, "_backward")
    forest = with_plan(order, parent, plan)
    return compute(grad, u, delta, A, B, C, forest, D, direction, transition_delta, state_norm_eps)


@_selective_tree_scan_backward.register_fake
def _(grad, u, delta, A, B, C, D, transition_delta, order, parent, plan, direction, state_norm_eps):
    nodes, states = u.new_empty(u.shape), B.new_empty(B.shape)
    return (
        nodes,
        nodes.clone(),
        A.new_empty(A.shape),
        states,
        states.clone(),
        A.new_empty(A.size(0)),
        nodes.clone(),
    )


def _setup_context(ctx, inputs, output):
    *tensors, ctx.direction, ctx.state_norm_eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    # Once, because under checkpointing the first reading frees them.
    saved = ctx.saved_tensors
    D, transition_delta = saved[5:7]
    is_again = is_differentiated_again()
    compute: Callable = _gradients if is_again else _selective_tree_scan_backward
    settings = ctx.direction, ctx.state_norm_eps
    *grads, grad_D, grad_transition_delta = compute(grad, *saved, *settings)
    grad_D = None if D is None else grad_D
    grad_transition_delta = None if transition_delta is None else grad_transition_delta
    return *grads, grad_D, grad_transition_delta, None, None, None, None, None


def _gradients(
    grad, u, delta, A, B, C, D, transition_delta, order, parent, plan, direction, state_norm_eps
):
    r"""What the backward pass computes, so that it can be differentiated again."""
    forest = with_plan(order, parent, plan)

    def scan(u, delta, A, B, C, optional):
        D, transition_delta = optional.get("D"), optional.get("transition_delta")
        return selective_tree_scan_composed(
            u, delta, A, B, C, forest, D, direction, transition_delta, state_norm_eps
        )

    optional = {"D": D, "transition_delta": transition_delta}
    given = {name: operand for name, operand in optional.items() if operand is not None}
    y, gradients_of, *_ = torch.func.vjp(scan, u, delta, A, B, C, given)
    *grads, of_given = gradients_of(grad.to(y.dtype))
    return *grads, of_given.get("D"), of_given.get("transition_delta")


_selective_tree_scan.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.groot_graph.selective_tree_scan)
def _flops(
    u_shape, delta_shape, A_shape, B_shape, C_shape, D_shape, transition_delta_shape, order_shape,
    parent_shape, plan_shape, direction, state_norm_eps, **_
) -> int:  # fmt: skip
    # Each state: discretised by 3, scanned, read by 2. Each channel: its input, and D.
    scan = 6 if direction == "both" else 2
    # Mean, difference, square, sum.
    norm = 0 if state_norm_eps is None else 4
    return u_shape[0] * (A_shape.numel() * (5 + scan + norm) + 3 * A_shape[0])


@register_flop_formula(torch.ops.groot_graph.selective_tree_scan_backward)
def _backward_flops(
    grad_shape, u_shape, delta_shape, A_shape, B_shape, C_shape, D_shape, transition_delta_shape,
    order_shape, parent_shape, plan_shape, direction, state_norm_eps, **_
) -> int:  # fmt: skip
    # Each state: found again, scanned backwards, and eight more for what A, B, C, delta and u get.
    scan, transition = (6, 7) if direction == "both" else (2, 1)
    # A scan more, the norm, two means of the gradient, two products less them.
    norm = 0 if state_norm_eps is None else scan + 4 + 3 + 4
    return u_shape[0] * (A_shape.numel() * (12 + 2 * scan + transition + norm) + 6 * A_shape[0])
