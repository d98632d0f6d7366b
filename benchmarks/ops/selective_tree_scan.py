"""``selective_tree_scan`` on chains against the scan that transformers' Mamba runs on the CPU; on a
GPU against a copy.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

import groot_graph
from benchmarks.harness import gpu
from benchmarks.harness.memory import in_fresh_process, peak_extra_memory
from benchmarks.harness.registry import Measurement, NotMeasuredError, cost, row, speedup
from benchmarks.harness.timing import check_close, in_turns
from benchmarks.harness.units import quantity

TITLE = "chain of {tokens} tokens, {channels} channels, {states} states, up, "
FULL = {"tokens": 2048, "channels": 1536, "states": 16}
SMOKE = {"tokens": 12, "channels": 5, "states": 3}
PEER = "transformers"
PEER_NOTE = "the peer is mamba_selective_scan: discretisation, scan, C and D, nothing else"
WARM_UP = (64, 32)


@dataclass
class Operands:
    """The same numbers in our layout (node-major) and in Mamba's (batch, channels, length)."""

    forest: groot_graph.Forest
    u: torch.Tensor
    delta: torch.Tensor
    transition_delta: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor
    D: torch.Tensor

    def ours(self) -> torch.Tensor:
        return groot_graph.selective_tree_scan(
            self.u,
            self.delta,
            self.A,
            self.B,
            self.C,
            self.forest,
            D=self.D,
            direction="up",
            transition_delta=self.transition_delta,
        )

    def to(self, device: torch.device) -> "Operands":
        return self._each(lambda name, value: value.to(device))

    def of_channels(self, number: int) -> "Operands":
        """The first channels alone; channels do not hear each other."""
        cut = {"A": lambda A: A[:number], "D": lambda D: D[:number]}
        cut |= dict.fromkeys(("u", "delta", "transition_delta"), lambda value: value[:, :number])
        return self._each(lambda name, value: cut[name](value) if name in cut else value)

    def _each(self, function: Callable) -> "Operands":
        return Operands(**{name: function(name, value) for name, value in vars(self).items()})

    def peer(self) -> Callable[[], torch.Tensor]:
        scan = _peer_scan()
        # As MambaMixer hands them over: u and delta contiguous, B and C as transposed views.
        u, delta = (t.t().contiguous()[None] for t in (self.u, self.delta))
        B, C = (t.t()[None] for t in (self.B, self.C))
        return lambda: scan(u, delta, self.A, B, C, D=self.D)


def _peer_scan() -> Callable:
    try:
        from transformers.models.mamba.modeling_mamba import mamba_selective_scan
    except ImportError as error:
        raise NotMeasuredError("needs a transformers that has mamba_selective_scan") from error
    return mamba_selective_scan


def _operands(tokens: int, channels: int, states: int, batch: int = 1) -> Operands:
    generator = torch.Generator().manual_seed(0)
    token = torch.arange(batch * tokens).view(batch, tokens)
    tokens = token.numel()
    edge_index = torch.stack([token[:, :-1].flatten(), token[:, 1:].flatten()])
    forest = groot_graph.root_forest(edge_index, num_nodes=tokens, root="last")
    # Δ spans the range that Mamba initialises it to.
    delta = 0.001 + 0.099 * torch.rand(tokens, channels, generator=generator)
    return Operands(
        forest=forest,
        u=torch.randn(tokens, channels, generator=generator),
        delta=delta,
        # The edge from token t to token t + 1 carries the transition of token t + 1.
        transition_delta=delta.roll(-1, dims=0),
        A=-torch.arange(1.0, states + 1).repeat(channels, 1),
        B=torch.randn(tokens, states, generator=generator),
        C=torch.randn(tokens, states, generator=generator),
        D=torch.ones(channels),
    )


@row(TITLE + "forward", speedup(goal=10), FULL, SMOKE)
@torch.no_grad()
def forward(repeats: int, tokens: int, channels: int, states: int) -> list[Measurement]:
    operands = _operands(tokens, channels, states)
    peer = operands.peer()
    check_close(f"output, ours and {PEER}", operands.ours(), peer()[0].t(), 1e-5)
    return in_turns({"ours": operands.ours, PEER: peer}, repeats, note=PEER_NOTE)


# Short, because autograd through the peer costs the square of the length.
@row(TITLE + "forward and backward", speedup(), FULL | {"tokens": 128}, SMOKE)
def forward_and_backward(repeats: int, tokens: int, channels: int, states: int):
    operands = _operands(tokens, channels, states)
    leaves = {name: getattr(operands, name).requires_grad_() for name in "ABCDu"}
    leaves["delta"] = operands.delta.requires_grad_()
    grad = torch.randn(tokens, channels, generator=torch.Generator().manual_seed(1))

    def ours():
        # Rolled in every call, so that the gradient of delta runs through the transitions too.
        operands.transition_delta = operands.delta.roll(-1, dims=0)
        return _gradients(operands.ours(), grad, leaves)

    def peer():
        return _gradients(operands.peer()()[0].t(), grad, leaves)

    for name, found, expected in zip(leaves, ours(), peer(), strict=True):
        check_close(f"gradient of {name}, ours and {PEER}", found, expected, 1e-4)
    return in_turns({"ours": ours, PEER: peer}, repeats, note=PEER_NOTE)


def _gradients(output: torch.Tensor, grad: torch.Tensor, leaves: dict[str, torch.Tensor]):
    return torch.autograd.grad(output, tuple(leaves.values()), grad)


@row(
    "chain of {tokens} tokens, {channels} channels, {states} normalized states, both, forward and "
    "backward",
    speedup(),
    {"tokens": 2048, "channels": 128, "states": 64},
    SMOKE,
)
def normalized_forward_and_backward(repeats: int, tokens: int, channels: int, states: int):
    operands = _operands(tokens, channels, states)
    leaves = {name: getattr(operands, name).requires_grad_() for name in ("u", "delta", *"ABCD")}
    grad = torch.randn(tokens, channels, generator=torch.Generator().manual_seed(1))
    eps = 1e-5

    def ours():
        y = groot_graph.selective_tree_scan(**leaves, forest=operands.forest, state_norm_eps=eps)
        return _gradients(y, grad, leaves)

    def peer():
        y = _normalized_in_pytorch(**leaves, forest=operands.forest, eps=eps)
        return _gradients(y, grad, leaves)

    name_of_peer = "tree_scan and PyTorch"
    for name, found, expected in zip(leaves, ours(), peer(), strict=True):
        check_close(f"gradient of {name}, ours and {name_of_peer}", found, expected, 1e-3)
    note = "the peer holds [N, S, D]: tree_scan over it, and PyTorch's layer_norm"
    return in_turns({"ours": ours, name_of_peer: peer}, repeats, note=note)


def _normalized_in_pytorch(u, delta, A, B, C, D, forest, eps) -> torch.Tensor:
    x = (delta * u).unsqueeze(1) * B.unsqueeze(2)
    transition = (delta.unsqueeze(1) * A.t()).exp()
    h = groot_graph.tree_scan(x.flatten(1), transition.flatten(1), forest).view_as(x)
    h = torch.nn.functional.layer_norm(h, u.shape[1:], eps=eps)
    return (h * C.unsqueeze(2)).sum(dim=1) + D * u


@row(TITLE + "peak extra memory of forward", cost(goal=1 / 8), FULL, SMOKE)
def memory(repeats: int, tokens: int, channels: int, states: int) -> list[Measurement]:
    """Bytes beyond operands and output, in a fresh process, against [N, D, S]."""
    ours, peer = in_fresh_process(_extra_memory, tokens, channels, states)
    full_state = {"[N, D, S] in float32": [4 * tokens * channels * states]}
    note = "" if peer is None else f"{PEER} takes {quantity(peer, 'B')}"
    return [Measurement([ours], full_state, unit="B", note=note)]


@torch.no_grad()
def _extra_memory(tokens: int, channels: int, states: int) -> tuple[int, int | None]:
    small, large = _operands(*WARM_UP, states), _operands(tokens, channels, states)
    small.ours()
    ours = peak_extra_memory(large.ours)
    try:
        small.peer()()
    except NotMeasuredError:
        return ours, None
    return ours, peak_extra_memory(large.peer())


@row(
    "{batch} chains of {tokens} tokens, {channels} channels, {states} states, up, forward",
    cost(goal=2),
    full=FULL | {"batch": 8, "tokens": 8192},
    smoke=SMOKE | {"batch": 2},
    device="cuda",
)
@torch.no_grad()
def forward_on_cuda(repeats: int, batch: int, tokens: int, channels: int, states: int):
    on_cpu = _operands(tokens, channels, states, batch)
    operands = on_cpu.to(gpu.DEVICE)
    y = operands.ours()
    # All channels would take the CPU minutes.
    some = on_cpu.of_channels(32).ours()
    check_close("some channels, on the GPU and on the CPU", y[:, :32].cpu(), some, 1e-4)
    moved = gpu.num_bytes(y, *(value for name, value in vars(operands).items() if name != "forest"))
    return gpu.measure([operands.ours], repeats, {"copy of as many bytes": gpu.copy_of(moved)})
