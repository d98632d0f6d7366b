"""``python -m benchmarks.grootl``: GrootL beside its chain alone and beside transformers' Mamba."""

import argparse
import json
import statistics
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM

from benchmarks import cuda
from benchmarks.machine import describe
from benchmarks.measure import (
    check_close,
    in_fresh_process,
    interleave,
    peak_extra_memory,
    wall_seconds,
)
from benchmarks.report import machine_lines
from benchmarks.units import quantity
from groot_graph.models import GrootLForCausalLM
from groot_graph.models.grootl import CACHE_NAME

# The settings of GrootL that are measured; transformers' own Mamba has the same weights.
MODELS = {
    "chain": {"tree_scale": 0},
    "tree": {},
    "causal tree": {"tree_mode": "causal"},
}
PEER = "transformers"
PARTS = ("forward", "training", "generation", "memory")
# What the times are held against: 'ours', 'to what', 'at most this many times'.
GOALS = {"long": ("tree", "chain", 2.0), "short": ("tree", PEER, 1 / 3)}


def make_model(name: str, args: argparse.Namespace) -> torch.nn.Module:
    """A model of random weights, the same for every name."""
    return _make_model(name, args.vocabulary, args.hidden_size, args.layers, args.device)


@cache
def _make_model(name: str, vocabulary: int, hidden_size: int, layers: int, device: str):
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=vocabulary, hidden_size=hidden_size, num_hidden_layers=layers)
    model = MambaForCausalLM(config).to(device).eval()
    return model if name == PEER else GrootLForCausalLM.from_mamba(model, **MODELS[name])


def make_tokens(num_tokens: int, args: argparse.Namespace) -> Tensor:
    generator = torch.Generator().manual_seed(num_tokens)
    shape = 1, num_tokens
    return torch.randint(1, args.vocabulary, shape, generator=generator).to(args.device)


def make_forward(name: str, num_tokens: int, args: argparse.Namespace) -> Callable[[], Tensor]:
    """The logits of all tokens of one text, all of which are context."""
    model, tokens = make_model(name, args), make_tokens(num_tokens, args)

    def forward() -> Tensor:
        with torch.no_grad():
            return model(tokens, use_cache=False).logits

    return forward


def make_training(name: str, num_tokens: int, args: argparse.Namespace) -> Callable[[], Tensor]:
    """Loss and gradients of one text, half of which is context."""
    model, tokens = make_model(name, args), make_tokens(num_tokens, args)
    labels = tokens.clone()
    labels[:, : num_tokens // 2] = -100

    def train() -> Tensor:
        model.zero_grad()
        loss = model(tokens, labels=labels, use_cache=False).loss
        loss.backward()
        return loss.detach()

    return train


def make_next_token(name: str, num_tokens: int, args: argparse.Namespace) -> Callable[[], Tensor]:
    """The logits of one more token, after so many that a cache holds; the cache goes on."""
    model = make_model(name, args)
    memory = CACHE_NAME
    if name == PEER and memory == "past_key_values":
        memory = "cache_params"  # as Mamba calls it before transformers 5.24
    with torch.no_grad():
        output = model(make_tokens(num_tokens, args), use_cache=True, logits_to_keep=1)
    token = make_tokens(1, args)

    def next_token() -> Tensor:
        with torch.no_grad():
            past = {memory: getattr(output, memory)}
            return model(token, use_cache=True, **past).logits

    return next_token


def measure_steps(steps: dict[str, Callable], args: argparse.Namespace, **settings) -> dict:
    """Samples and medians, in seconds."""
    seconds = cuda.event_seconds if args.device == "cuda" else wall_seconds
    samples = interleave(steps, args.repeats, seconds)
    medians = {name: statistics.median(times) for name, times in samples.items()}
    return {**settings, "samples": samples, "seconds": medians}


def measure_forward(args: argparse.Namespace) -> list[dict]:
    """Long texts without the peer, short ones with it: it takes minutes for long ones."""
    long = {name: make_forward(name, args.tokens, args) for name in MODELS}
    num_short = args.tokens // 4
    short = {name: make_forward(name, num_short, args) for name in (*MODELS, PEER)}
    # 24 layers of random weights amplify rounding: each of both is 5e-4 from its own in doubles.
    check_close("chain and transformers", short["chain"](), short[PEER](), 1e-3)
    return [
        measure_steps(long, args, part="forward", row="long", num_tokens=args.tokens),
        measure_steps(short, args, part="forward", row="short", num_tokens=num_short),
    ]


def measure_training(args: argparse.Namespace) -> list[dict]:
    num_tokens = args.tokens // 4
    steps = {name: make_training(name, num_tokens, args) for name in MODELS}
    return [measure_steps(steps, args, part="training", row="training", num_tokens=num_tokens)]


def measure_generation(args: argparse.Namespace) -> list[dict]:
    """One token after histories of several lengths, which take turns."""
    histories = [args.tokens * 2 // 2**power for power in (5, 4, 3, 2, 1, 0)]
    # The peer reads its prompt token by token, which takes minutes for the long ones.
    lengths = {**dict.fromkeys(MODELS, histories), PEER: histories[:1]}
    return [
        measure_steps(
            {str(length): make_next_token(name, length, args) for length in lengths[name]},
            args,
            part="generation",
            row=name,
        )
        for name in lengths
    ]


def measure_memory(args: argparse.Namespace) -> list[dict]:
    """Peak extra memory of a forward pass that returns the last token's logits alone."""
    names = ("chain", "tree", "causal tree")
    config = make_model("tree", args).config
    states = args.tokens * config.intermediate_size * config.state_size * 4
    peaks = {name: in_fresh_process(_peak_memory, name, args) for name in names}
    return [
        {
            "part": "memory",
            "row": "memory",
            "num_tokens": args.tokens,
            "bytes": {**peaks, "[tokens, channels, states]": states},
        }
    ]


def _peak_memory(name: str, args: argparse.Namespace) -> int:
    model = make_model(name, args)

    def forward(num_tokens: int) -> Tensor:
        with torch.no_grad():
            tokens = make_tokens(num_tokens, args)
            return model(tokens, use_cache=False, logits_to_keep=1).logits

    forward(16)
    if args.device == "cpu":
        return peak_extra_memory(partial(forward, args.tokens))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    forward(args.tokens)
    return torch.cuda.max_memory_allocated() - before


MEASURES = {
    "forward": measure_forward,
    "training": measure_training,
    "generation": measure_generation,
    "memory": measure_memory,
}


def heading(machine: dict, args: argparse.Namespace) -> str:
    num_parameters = sum(weight.numel() for weight in make_model("tree", args).parameters())
    lines = [
        *machine_lines(machine),
        f"{args.layers} layers, hidden size {args.hidden_size}, vocabulary {args.vocabulary}, "
        f"{num_parameters:,} parameters, float32, one text, median of up to {args.repeats}",
    ]
    return "\n".join(lines)


def table(result: dict) -> str:
    """One result as Markdown, and whether it met its goal."""
    if result["part"] == "memory":
        title = f"peak extra memory of a forward pass, {result['num_tokens']} tokens"
        values = {name: quantity(size, "B") for name, size in result["bytes"].items()}
    elif result["part"] == "generation":
        title = f"one more token, {result['row']}, by the tokens so far"
        values = {name: quantity(value, "s") for name, value in result["seconds"].items()}
    else:
        title = f"{result['part']}, {result['num_tokens']} tokens"
        base = result["seconds"]["chain"]
        values = {
            name: f"{quantity(value, 's')} ({value / base:.2f} x chain)"
            for name, value in result["seconds"].items()
        }
    heads, cells = " | ".join(values), " | ".join(values.values())
    rule = " | ".join("---" for _ in values)
    lines = [f"| {title} | {heads} |", f"| --- | {rule} |", f"| | {cells} |"]
    return "\n".join(["", *lines, *_verdict(result)])


def _verdict(result: dict) -> list[str]:
    if result["row"] == "tree":
        times = list(result["seconds"].values())
        return ["", f"dearest / cheapest history: {max(times) / min(times):.2f}"]
    if result["row"] not in GOALS:
        return []
    ours, other, most = GOALS[result["row"]]
    times = result["seconds"][ours] / result["seconds"][other]
    verdict = "met" if times <= most else "MISSED"
    return ["", f"{ours} takes {times:.3g} times what {other} takes; goal {most:.3g}: {verdict}"]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grootl", description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--tokens", type=int, default=2048, help="of a long text (2048)")
    parser.add_argument("--layers", type=int, default=24, help="24 is Mamba-130M's")
    parser.add_argument("--hidden-size", type=int, default=768, help="768 is Mamba-130M's")
    parser.add_argument("--vocabulary", type=int, default=50280, help="50280 is Mamba-130M's")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of every row (5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    args = parser.parse_args(argv)
    if args.device == "cuda" and (missing := cuda.missing()):
        parser.error(f"--device cuda needs {missing}")
    if args.tokens < 16:
        parser.error(f"--tokens must be at least 16, got {args.tokens}")
    if min(args.layers, args.hidden_size, args.vocabulary - 1, args.repeats) < 1:
        parser.error("sizes and --repeats must be at least 1, --vocabulary at least 2")
    if args.json and not args.json.absolute().parent.is_dir():
        parser.error(f"{args.json.absolute().parent} is not a directory")
    return args


def main(argv: list[str] | None = None) -> list[dict]:
    args = parse(argv)
    machine = describe(args.device)
    print(heading(machine, args), flush=True)
    results = []
    for part in args.part or PARTS:
        of_part = MEASURES[part](args)
        print("\n".join(map(table, of_part)), flush=True)
        results += of_part
        if args.json:
            write(args, machine, results)
    return results


def write(args: argparse.Namespace, machine: dict, results: list[dict]) -> None:
    settings = {key: getattr(args, key) for key in ("tokens", "layers", "hidden_size")}
    content = {"machine": machine, "settings": settings, "results": results}
    args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
