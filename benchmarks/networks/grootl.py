"""GrootL beside its chain alone and beside transformers' Mamba."""

import statistics
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM

from benchmarks.harness import gpu
from benchmarks.harness.registry import Goal, Measurement, cost, row, speedup
from benchmarks.harness.timing import check_close, interleave
from groot_graph.models import GrootLForCausalLM
from groot_graph.models.grootl import CACHE_NAME

# The settings of GrootL that are measured; transformers' own Mamba has the same weights.
MODELS = {
    "chain": {"tree_scale": 0},
    "tree": {},
    "causal tree": {"tree_mode": "causal"},
}
PEER = "transformers"
# The size of Mamba-130M.
FULL = {"layers": 24, "hidden_size": 768, "vocabulary": 50280}
SMOKE = {"layers": 1, "hidden_size": 16, "vocabulary": 50}
SHAPE = "{layers} layers of {hidden_size}, "


class Size(NamedTuple):
    layers: int
    hidden_size: int
    vocabulary: int
    device: str


def text_row(title: str, goal: Goal, tokens: int, **kind) -> Callable:
    """A row on the CPU, and the same on a GPU."""

    def register(function: Callable) -> Callable:
        for device in ("cpu", "cuda"):
            on_device = kind | {"device": device}
            row(
                SHAPE + title,
                goal,
                full=FULL | {"tokens": tokens} | on_device,
                smoke=SMOKE | {"tokens": 8} | on_device,
                device=device,
                least={"tokens": 4, "vocabulary": 2},
            )(function)
        return function

    return register


@text_row("forward, {tokens} tokens", cost(goal=2), tokens=2048)
def forward(repeats: int, tokens: int, **size) -> list[Measurement]:
    """Without transformers, which takes minutes for long texts."""
    steps = {name: make_forward(name, tokens, Size(**size)) for name in MODELS}
    return against("chain", steps, repeats, size["device"])


@text_row("forward beside transformers, {tokens} tokens", speedup(goal=3), tokens=512)
def forward_beside_peer(repeats: int, tokens: int, **size) -> list[Measurement]:
    steps = {name: make_forward(name, tokens, Size(**size)) for name in (*MODELS, PEER)}
    # 24 layers of random weights amplify rounding: each of both is 5e-4 from its own in doubles.
    check_close("chain and transformers", steps["chain"](), steps[PEER](), 1e-3)
    return against(PEER, steps, repeats, size["device"])


@text_row("training step, {tokens} tokens, half of them context", cost(), tokens=512)
def training(repeats: int, tokens: int, **size) -> list[Measurement]:
    steps = {name: make_training(name, tokens, Size(**size)) for name in MODELS}
    return against("chain", steps, repeats, size["device"])


def against(peer: str, steps: dict[str, Callable], repeats: int, device: str) -> list[Measurement]:
    """Every other step against the peer's, all in turns; the tree's is judged."""
    seconds = interleave(steps, repeats, gpu.clock(device))
    return [
        Measurement(seconds[name], {peer: seconds[peer]}, work=name, judged=name == "tree")
        for name in steps
        if name != peer
    ]


# The peer reads its prompt token by token, which takes minutes for long ones.
@text_row("one more token, {model}", cost(), tokens=128, model=PEER, doublings=0)
@text_row("one more token, {model}", cost(), tokens=128, model="causal tree", doublings=5)
@text_row("one more token, {model}", cost(), tokens=128, model="tree", doublings=5)
@text_row("one more token, {model}", cost(), tokens=128, model="chain", doublings=5)
def generation(repeats: int, tokens: int, model: str, doublings: int, **size) -> list[Measurement]:
    """After histories of several lengths, in turns, each against the shortest."""
    lengths = [tokens * 2**power for power in range(doublings + 1)]
    steps = {length: make_next_token(model, length, Size(**size)) for length in lengths}
    seconds = interleave(steps, repeats, gpu.clock(size["device"]))
    peers = {f"after {tokens:,} tokens": seconds[tokens]}
    measured = [
        Measurement(seconds[length], peers, work=f"after {length:,} tokens") for length in lengths
    ]
    medians = [statistics.median(times) for times in seconds.values()]
    measured[0].note = f"dearest / cheapest history: {max(medians) / min(medians):.2f}"
    return measured


@text_row("peak extra memory of forward, {tokens} tokens", cost(), tokens=2048)
def memory(repeats: int, tokens: int, **size) -> list[Measurement]:
    """Of a forward pass that returns the last token's logits alone."""
    of = Size(**size)
    config = make_model("tree", of).config
    states = 4 * tokens * config.intermediate_size * config.state_size
    peer = {"[tokens, channels, states] in float32": [states]}
    peaks = {
        name: gpu.peak_memory(of.device, make_last_logits, (name, tokens, of), (name, 16, of))
        for name in MODELS
    }
    return [Measurement([peak], peer, "B", work=name) for name, peak in peaks.items()]


@cache
def make_model(name: str, size: Size) -> torch.nn.Module:
    """A model of random weights, the same for every name."""
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden_size,
        num_hidden_layers=size.layers,
    )
    model = MambaForCausalLM(config).to(size.device).eval()
    return model if name == PEER else GrootLForCausalLM.from_mamba(model, **MODELS[name])


def make_tokens(num_tokens: int, size: Size) -> Tensor:
    generator = torch.Generator().manual_seed(num_tokens)
    tokens = torch.randint(1, size.vocabulary, (1, num_tokens), generator=generator)
    return tokens.to(size.device)


def make_forward(name: str, num_tokens: int, size: Size) -> Callable[[], Tensor]:
    """The logits of all tokens of one text, all of which are context."""
    return partial(_logits, make_model(name, size), make_tokens(num_tokens, size))


def make_last_logits(name: str, num_tokens: int, size: Size) -> Callable[[], Tensor]:
    model, tokens = make_model(name, size), make_tokens(num_tokens, size)
    return partial(_logits, model, tokens, logits_to_keep=1)


@torch.no_grad()
def _logits(model: torch.nn.Module, tokens: Tensor, **settings) -> Tensor:
    return model(tokens, use_cache=False, **settings).logits


def make_training(name: str, num_tokens: int, size: Size) -> Callable[[], Tensor]:
    """Loss and gradients of one text, half of which is context."""
    model, tokens = make_model(name, size), make_tokens(num_tokens, size)
    labels = tokens.clone()
    labels[:, : num_tokens // 2] = -100

    def train() -> Tensor:
        model.zero_grad()
        loss = model(tokens, labels=labels, use_cache=False).loss
        loss.backward()
        return loss.detach()

    return train


def make_next_token(name: str, num_tokens: int, size: Size) -> Callable[[], Tensor]:
    """The logits of one more token, after so many that a cache holds; the cache goes on."""
    model = make_model(name, size)
    memory = CACHE_NAME
    if name == PEER and memory == "past_key_values":
        memory = "cache_params"  # as Mamba calls it before transformers 5.24
    with torch.no_grad():
        output = model(make_tokens(num_tokens, size), use_cache=True, logits_to_keep=1)
    token = make_tokens(1, size)

    def next_token() -> Tensor:
        with torch.no_grad():
            past = {memory: getattr(output, memory)}
            return model(token, use_cache=True, **past).logits

    return next_token
