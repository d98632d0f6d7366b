r"""How many of this library's functions a call of a layer or model runs, and how many of them
are checks: `python -m benchmarks.calls`.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

import groot_graph
from groot_graph.nn import TreeSSMConv
from groot_graph.transforms import ImageToGraph

PACKAGE = str(Path(groot_graph.__file__).parent)


class Calls(NamedTuple):
    r"""The numbers of Python calls."""

    all: int
    checks: int


def count(function: Callable[[], object]) -> Calls:
    r"""Counts the calls of this library's functions, after one that compiles and fills caches."""
    names = []

    def see(frame, event, argument) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            names.append(frame.f_code.co_name)

    function()
    sys.setprofile(see)
    try:
        function()
    finally:
        sys.setprofile(None)
    return Calls(len(names), sum(name.lstrip("_").startswith("check_") for name in names))


def tree_ssm_conv() -> Callable[[], object]:
    r"""The default layer on the graph of an image."""
    data = ImageToGraph()(torch.rand(3, 16, 16))
    conv = TreeSSMConv(3, 8)
    return lambda: conv(data.x, data.edge_index)


def grootv_tiny() -> Callable[[], object]:
    r"""The smallest published network on two images."""
    from groot_graph.models import grootv_tiny

    model, images = grootv_tiny(), torch.rand(2, 3, 64, 64)
    return lambda: model(images)


def grootl_first_token() -> Callable[[], object]:
    r"""The first token that a language model of two layers writes."""
    from groot_graph.models.grootl import GrootLConfig, GrootLForCausalLM

    config = GrootLConfig(vocab_size=97, hidden_size=32, state_size=8, num_hidden_layers=2)
    model, prompt = GrootLForCausalLM(config).eval(), torch.arange(24)[None]
    return lambda: model.generate(prompt, max_new_tokens=1, do_sample=False, pad_token_id=0)


# What is run, and the most calls that it is to take.
GOALS = {tree_ssm_conv: 80, grootv_tiny: 900, grootl_first_token: 300}


def main() -> None:
    r"""Prints the counts beside the goals."""
    # Threads share work out by calls, of which each runs another number every time.
    torch.set_num_threads(1)
    print("| what runs | calls | of them checks | goal |\n| --- | ---: | ---: | ---: |")
    for make, goal in GOALS.items():
        calls = count(make())
        print(f"| {make.__name__} | {calls.all:,} | {calls.checks:,} | {goal:,} |")


if __name__ == "__main__":
    main()
