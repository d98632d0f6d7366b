r"""The selective scan as a scan of all its states, out of operations that know every derivative."""

from torch import Tensor

from groot_graph.forest import Forest
from groot_graph.ops.tree_scan.api import trusted_tree_scan


def selective_tree_scan_composed(
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
) -> Tensor:
    r"""The output, of the dtype of `A`, with the states of all nodes in memory."""
    u, delta, B, C = (value.to(A.dtype) for value in (u, delta, B, C))
    transition_delta = delta if transition_delta is None else transition_delta.to(A.dtype)
    x = (delta * u).unsqueeze(2) * B.unsqueeze(1)
    transition = (transition_delta.unsqueeze(2) * A).exp()
    h = trusted_tree_scan(x.flatten(1), transition.flatten(1), forest, direction).view(x.shape)
    if state_norm_eps is not None:
        h = _normalized(h, state_norm_eps)
    y = (h * C.unsqueeze(1)).sum(dim=2)
    return y if D is None else y + D * u


def _normalized(h: Tensor, eps: float) -> Tensor:
    # Written out, because PyTorch's layer_norm loses terms where torch.func differentiates backward
    # what it has differentiated forward.
    h = h - h.mean(dim=1, keepdim=True)
    return h * (h.square().mean(dim=1, keepdim=True) + eps).rsqrt()
