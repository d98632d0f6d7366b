r"""The selective scan over [num_nodes, channels, state_size] in plain PyTorch, on any device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from groot_graph.forest import Forest
from groot_graph.ops.tree_scan.reference import tree_scan_backward_reference, tree_scan_reference


def selective_tree_scan_reference(
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
    r"""The scan, differentiable by autograd."""
    x, transition = _discretise(u, delta, A, B, transition_delta)
    h = tree_scan_reference(x.flatten(1), transition.flatten(1), forest, direction).view_as(x)
    if state_norm_eps is not None:
        h = F.layer_norm(h.mT, (u.size(1),), eps=state_norm_eps).mT
    y = (h * C[:, None, :]).sum(dim=-1)
    return y if D is None else y + D * u


def selective_tree_scan_backward_reference(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    forest: Forest,
    D: Tensor | None,
    direction: str,
    transition_delta: Tensor | None,
    state_norm_eps: float | None,
) -> tuple[Tensor, ...]:
    r"""The gradients of u, delta, A, B, C, D, transition_delta from that of y, by chain rule."""
    x, transition = _discretise(u, delta, A, B, transition_delta)
    flat = x.flatten(1), transition.flatten(1)
    h = tree_scan_reference(*flat, forest, direction)
    grad_h, read = grad[:, :, None] * C[:, None, :], h.view_as(x)
    if state_norm_eps is not None:
        read, grad_h = _norm_backward(read, grad_h, state_norm_eps)
    grad_h = grad_h.flatten(1)
    grad_x, grad_transition = tree_scan_backward_reference(grad_h, *flat, h, forest, direction)
    grad_x = grad_x.view_as(x)
    grad_exponent = grad_transition.view_as(x) * transition

    through_x = (grad_x * B[:, None, :]).sum(dim=-1)
    step = delta if transition_delta is None else transition_delta
    grad_step = (grad_exponent * A).sum(dim=-1)
    return (
        through_x * delta if D is None else through_x * delta + grad * D,
        through_x * u + grad_step if transition_delta is None else through_x * u,
        (grad_exponent * step[:, :, None]).sum(dim=0),
        (grad_x * (delta * u)[:, :, None]).sum(dim=1),
        (read * grad[:, :, None]).sum(dim=1),
        (grad * u).sum(dim=0),
        grad_step,
    )


def _norm_backward(h: Tensor, grad: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    r"""ĥ over the channels, and h̄ = (ĝ − mean(ĝ) − ĥ mean(ĝ ĥ)) / deviation from its gradient ĝ."""
    centered = h - h.mean(dim=1, keepdim=True)
    deviation = torch.sqrt(centered.square().mean(dim=1, keepdim=True) + eps)
    normalized = centered / deviation
    along = (grad * normalized).mean(dim=1, keepdim=True)
    rest = grad - grad.mean(dim=1, keepdim=True) - normalized * along
    return normalized, rest / deviation


def _discretise(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, transition_delta: Tensor | None
) -> tuple[Tensor, Tensor]:
    r"""State inputs Δ·B·u and transitions exp(Δ'·A), [num_nodes, channels, state_size]."""
    step = delta if transition_delta is None else transition_delta
    return (delta * u)[:, :, None] * B[:, None, :], (step[:, :, None] * A).exp()
