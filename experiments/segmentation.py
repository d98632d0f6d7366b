r"""Does the tree pay where every pixel gets a class?

One small network of GrootV blocks learns street scenes from nothing, again and again with one
thing changed: the way that its states go. All variants have the same parameters within 2 %, know
the place of every pixel, and see, for a seed, the same scenes in the same order. The learning rate
of each is chosen on the validation scenes from the same list, with the first seed; training goes on
until the score on those stops rising. The test scenes are asked once.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.camvid import (
    CLASSES,
    VOID,
    Scenes,
    confusion,
    intersection_over_union,
    load_scenes,
)
from experiments.mixers import MIXERS, TREE, GuidedSSM, centered
from experiments.runner import Experiment, by_variant
from experiments.tables import against, markdown, percents, plot_variants, sizes, spread, summary
from experiments.training import fit_until_it_stops, num_parameters, widest
from groot_graph.models.click_segmenter import place_of
from groot_graph.models.grootv.blocks import GrootVBlock, Stem

# The settings.
budget = 68_000  # parameters
channels = 32
depth = 3
batch_size = 4
learning_rates = (2e-3, 4e-3, 8e-3)
steps_per_check = 184  # two epochs
most_steps = 3680

UNET = "UNet"
VARIANTS = (*MIXERS, UNET)


class TreeNetwork(nn.Module):
    """GrootV's stem, of which a node is 4×4 pixels; its blocks; classes of every node, between
    which those of the pixels lie.
    """

    def __init__(self, make_mixer: Callable[[int], nn.Module], mlp_channels: int):
        super().__init__()
        self.stem = Stem(5, channels)
        self.blocks = nn.ModuleList(
            GrootVBlock(channels, mlp_channels / channels) for _ in range(depth)
        )
        for block in self.blocks:
            block.mixer = make_mixer(channels)
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, len(CLASSES))

    def forward(self, colors: Tensor) -> Tensor:
        x = self.stem(described(colors))
        for block in self.blocks:
            if isinstance(block.mixer, GuidedSSM):
                block.mixer.guide = F.avg_pool2d(centered(colors), 4).permute(0, 2, 3, 1)
            x = block(x)
        logits = self.head(self.norm(x)).permute(0, 3, 1, 2)
        return F.interpolate(logits, colors.shape[2:], mode="bilinear")


class Convolutions(nn.Sequential):
    """Two convolutions of 3×3 pixels."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )


class UNet(nn.Module):
    """Ronneberger, Fischer and Brox (arXiv 1505.04597), from the same stem on: three resolutions
    down and up again, each beside what it had on the way down.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.stem = Stem(5, 2 * channels)
        self.near = Convolutions(2 * channels, channels)
        self.middle = Convolutions(channels, channels)
        self.far = Convolutions(channels, 2 * channels)
        self.middle_again = Convolutions(3 * channels, channels)
        self.near_again = Convolutions(2 * channels, channels)
        self.head = nn.Conv2d(channels, len(CLASSES), 1)

    def forward(self, colors: Tensor) -> Tensor:
        near = self.near(self.stem(described(colors)).permute(0, 3, 1, 2))
        middle = self.middle(F.max_pool2d(near, 2))
        far = self.far(F.max_pool2d(middle, 2))
        middle = self.middle_again(joined(far, middle))
        near = self.near_again(joined(middle, near))
        return F.interpolate(self.head(near), colors.shape[2:], mode="bilinear")


def joined(coarse: Tensor, fine: Tensor) -> Tensor:
    return torch.cat([F.interpolate(coarse, fine.shape[2:], mode="bilinear"), fine], dim=1)


def described(colors: Tensor) -> Tensor:
    """What a pixel is told: its colors, and where it lies."""
    return torch.cat([centered(colors), place_of(colors)], dim=1)


def make_network(variant: str) -> nn.Module:
    """The largest within the budget, by the width of its MLPs or of its convolutions."""
    make = UNet if variant == UNET else partial(TreeNetwork, MIXERS[variant])
    return widest(make, budget)


def run(variant: str, seed: int, learning_rate: float, data: Path) -> dict:
    """One training; what is measured, as plain values."""
    train, validation, test = (load_scenes(data, part) for part in ("train", "val", "test"))
    start = time.perf_counter()
    torch.manual_seed(seed)
    network = make_network(variant)
    fitted = fit_until_it_stops(
        network,
        batches(train, torch.Generator().manual_seed(seed)),
        partial(loss_of, network),
        lambda: score(network, validation),
        learning_rate,
        steps_per_check,
        most_steps,
        f"{variant}, seed {seed}, learning rate {learning_rate:g}",
    )
    return {
        **fitted,
        "accuracy": score(network, test),
        "num_parameters": num_parameters(network),
        "seconds": time.perf_counter() - start,
    }


def batches(scenes: Scenes, generator: torch.Generator) -> Iterator[Scenes]:
    """All scenes again and again, in another order, half of them as a mirror shows them."""
    while True:
        for part in torch.randperm(len(scenes.colors), generator=generator).split(batch_size):
            is_mirrored = torch.rand(len(part), generator=generator) < 0.5
            colors, classes = scenes.colors[part], scenes.classes[part]
            colors[is_mirrored] = colors[is_mirrored].flip(3)
            classes[is_mirrored] = classes[is_mirrored].flip(2)
            yield Scenes(colors, classes)


def loss_of(network: nn.Module, scenes: Scenes) -> Tensor:
    return F.cross_entropy(network(scenes.colors), scenes.classes, ignore_index=VOID)


@torch.no_grad()
def score(network: nn.Module, scenes: Scenes) -> float:
    """The mean intersection over union of all classes."""
    network.eval()
    parts = zip(scenes.colors.split(16), scenes.classes.split(16), strict=True)
    counts = sum(confusion(network(colors).argmax(1), classes) for colors, classes in parts)
    return intersection_over_union(counts).mean().item()


def table(runs: list[dict]) -> str:
    """Mean intersection over union, and the paired difference to the published tree."""
    found = by_variant(runs, VARIANTS)
    rows = [
        [
            variant,
            spread(percents(of_variant), ".1f"),
            against(of_variant, found.get(TREE, []), "+.1f"),
            f"{of_variant[0]['learning_rate']:g}",
            len(of_variant),
            sizes(of_variant),
        ]
        for variant, of_variant in found.items()
    ]
    header = "variant", "mIoU, %", f"against the {TREE}", "learning rate", "seeds", "parameters"
    return f"{summary(runs)}\n\n{markdown(header, rows)}"


def plot(runs: list[dict], path: Path) -> None:
    what = "mean intersection over union on test scenes of CamVid"
    plot_variants(by_variant(runs, VARIANTS), TREE, what, path)


EXPERIMENT = Experiment(
    name="segmentation",
    about=__doc__,
    cells=[{"variant": variant} for variant in VARIANTS],
    settings={},
    run=run,
    table=table,
    plot=plot,
    learning_rates=learning_rates,
    data="the scenes of CamVid, see experiments/camvid.py",
)
