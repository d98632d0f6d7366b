r"""Does the tree pay on photographs?

A region of a photograph is to be found from a few clicks inside it and as many outside. One small
GrootV network is trained for it again and again with one thing changed: the way that its states go.
All variants have the same parameters within 2 % and, for a seed, the same photographs, regions and
clicks in the same order. The learning rate of each is chosen on the validation photographs from the
same list, with the first seed; training goes on until the score on those stops rising. The test
photographs are asked once, with 1, 3 and 5 clicks.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.mixers import EDGE_STEPS, MIXERS, GuidedSSM, centered
from experiments.photographs import (
    Photograph,
    Tasks,
    draw_tasks,
    intersection_over_union,
    load_photographs,
)
from experiments.runner import Experiment, by_variant
from experiments.tables import against, markdown, plot_variants, sizes, spread, summary
from experiments.training import fit_until_it_stops, num_parameters, widest
from groot_graph.models.click_segmenter import place_of
from groot_graph.models.grootv.blocks import GrootVBlock
from groot_graph.nn.grid_tree_ssm import convolve

# The settings.
budget = 26_000  # parameters
channels = 24
depth = 2
batch_size = 8
learning_rates = (2e-3, 4e-3, 8e-3)
clicks = (1, 3, 5)
steps_per_check = 100
most_steps = 3000
tests_per_photograph = 3

CONVOLUTIONS = "convolutions"
VARIANTS = (*MIXERS, CONVOLUTIONS)
dilations = (1, 2, 4, 8, 16)  # so that the last hears the whole photograph


class TreeNetwork(nn.Module):
    """GrootV blocks over the nodes, each with colors, clicks and its place."""

    def __init__(self, make_mixer: Callable[[int], nn.Module], mlp_channels: int):
        super().__init__()
        self.stem = nn.Conv2d(7, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            GrootVBlock(channels, mlp_channels / channels) for _ in range(depth)
        )
        for block in self.blocks:
            block.mixer = make_mixer(channels)
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, 1)

    def forward(self, colors: Tensor, clicks: Tensor) -> Tensor:
        x = convolve(self.stem, described(colors, clicks).permute(0, 2, 3, 1))
        for block in self.blocks:
            if isinstance(block.mixer, GuidedSSM):
                block.mixer.guide = centered(colors).permute(0, 2, 3, 1)
            x = block(x)
        return self.head(self.norm(x)).squeeze(3)


class ConvolutionalNetwork(nn.Module):
    """Residual convolutions, each further apart."""

    def __init__(self, channels: int):
        super().__init__()
        self.stem = nn.Conv2d(7, channels, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in dilations)
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
            for dilation in dilations
        )
        self.head = nn.Conv2d(channels, 1, 1)

    def forward(self, colors: Tensor, clicks: Tensor) -> Tensor:
        x = self.stem(described(colors, clicks))
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = x + conv(F.gelu(norm(x)))
        return self.head(x).squeeze(1)


def described(colors: Tensor, clicks: Tensor) -> Tensor:
    """What a node is told: colors, whether it was clicked, and where it lies."""
    return torch.cat([centered(colors), clicks, place_of(colors)], dim=1)


def make_network(variant: str) -> nn.Module:
    """The largest within the budget, by the width of its MLPs or of its convolutions."""
    is_tree = variant != CONVOLUTIONS
    make = partial(TreeNetwork, MIXERS[variant]) if is_tree else ConvolutionalNetwork
    return widest(make, budget)


def run(variant: str, seed: int, learning_rate: float, data: Path) -> dict:
    """One training; what is measured, as plain values."""
    train, validation, test = (load_photographs(data, part) for part in ("train", "val", "test"))
    start = time.perf_counter()
    torch.manual_seed(seed)
    network = make_network(variant)
    title = f"{variant}, seed {seed}, learning rate {learning_rate:g}"
    fitted = fit(network, train, validation, seed, learning_rate, title)
    found = {
        f"iou_{count}": score(network, tasks_of(test, count, tests_per_photograph))
        for count in clicks
    }
    return {
        **fitted,
        **found,
        "accuracy": found["iou_3"],
        "num_parameters": num_parameters(network),
        "seconds": time.perf_counter() - start,
    }


def fit(
    network: nn.Module,
    train: list[Photograph],
    validation: list[Photograph],
    seed: int,
    learning_rate: float,
    title: str,
) -> dict:
    return fit_until_it_stops(
        network,
        batches(train, torch.Generator().manual_seed(seed)),
        partial(loss_of, network),
        lambda: score(network, tasks_of(validation, 3, 1)),
        learning_rate,
        steps_per_check,
        most_steps,
        title,
    )


def batches(photographs: list[Photograph], generator: torch.Generator) -> Iterator[Tasks]:
    """All photographs again and again, in another order, with other regions and clicks."""
    while True:
        for part in torch.randperm(len(photographs), generator=generator).split(batch_size):
            counts = torch.randint(len(clicks), (len(part),), generator=generator)
            num_clicks = [clicks[count] for count in counts]
            yield draw_tasks([photographs[number] for number in part], num_clicks, generator)


def tasks_of(photographs: list[Photograph], num_clicks: int, repeats: int) -> Tasks:
    """Always the same, some of each photograph."""
    generator = torch.Generator().manual_seed(num_clicks)
    count = repeats * len(photographs)
    return draw_tasks(photographs * repeats, [num_clicks] * count, generator)


def loss_of(network: nn.Module, tasks: Tasks) -> Tensor:
    logits = network(tasks.colors, tasks.clicks)
    return F.binary_cross_entropy_with_logits(logits, tasks.is_inside.float())


@torch.no_grad()
def score(network: nn.Module, tasks: Tasks) -> float:
    """The mean intersection over union."""
    network.eval()
    inputs = zip(tasks.colors.split(50), tasks.clicks.split(50), strict=True)
    found = torch.cat([network(*part) > 0 for part in inputs])
    return intersection_over_union(found, tasks.is_inside).mean().item()


def table(runs: list[dict]) -> str:
    """Mean intersection over union with each number of clicks, and the paired difference."""
    found = by_variant(runs, VARIANTS)
    rows = [
        [
            variant,
            *(spread([100 * run[f"iou_{count}"] for run in of_variant], ".1f") for count in clicks),
            against(of_variant, found.get(EDGE_STEPS, []), "+.1f"),
            f"{of_variant[0]['learning_rate']:g}",
            len(of_variant),
            sizes(of_variant),
        ]
        for variant, of_variant in found.items()
    ]
    header = (
        "variant",
        *(f"{count} + {count} clicks" for count in clicks),
        "3 + 3 against edge steps",
        "learning rate",
        "seeds",
        "parameters",
    )
    return f"{summary(runs)}\nintersection over union, %\n\n{markdown(header, rows)}"


def plot(runs: list[dict], path: Path) -> None:
    what = "intersection over union on test photographs of BSDS500, 3 + 3 clicks"
    plot_variants(by_variant(runs, VARIANTS), EDGE_STEPS, what, path)


EXPERIMENT = Experiment(
    name="regions",
    about=__doc__,
    cells=[{"variant": variant} for variant in VARIANTS],
    settings={},
    run=run,
    table=table,
    plot=plot,
    learning_rates=learning_rates,
    data="the photographs of BSDS500, see experiments/photographs.py",
)
