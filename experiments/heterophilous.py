r"""Nodes of graphs whose neighbors are unlike, for TreeSSMConv and its peers.

The data sets of Platonov et al. 2023 (arXiv 2302.11640), their ten splits in place of seeds, from a
folder of their files `NAME.npz` (https://github.com/yandex-research/heterophilous-graphs, `data/`).
Networks of one size, of residual blocks that differ in the layer alone. The learning rate is chosen
on the validation nodes of the first split; training goes on until the score on those stops rising.
Scores are the area under the ROC curve where there are two classes, and right answers elsewhere.
"""

import time
from bisect import bisect_right
from collections.abc import Callable
from functools import cache, partial
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GCNConv, GPSConv, SAGEConv
from torch_geometric.utils import to_undirected

from experiments.runner import Experiment, chosen
from experiments.tables import accuracy_cell, markdown, summary
from experiments.training import fit_until_it_stops, num_parameters
from groot_graph.nn import TreeSSMConv
from groot_graph.nn.tree_gnn import LocalAndTree

DATASETS = ("minesweeper", "tolokers", "actor", "chameleon_filtered", "squirrel_filtered")

budget = 150_000  # parameters beside those that read the features
num_blocks = 5
dropout = 0.2
learning_rates = (3e-4, 1e-3, 3e-3)
steps_per_check = 20
most_steps = 1500


# Of so many channels.
LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "TreeSSMConv": lambda width: TreeSSMConv(width, width),
    "TreeSSMConv, edge steps": lambda width: TreeSSMConv(width, width, edge_steps=True),
    "SAGE + TreeSSMConv": lambda width: LocalAndTree(width, width),
    "SAGE + TreeSSMConv, edge steps": lambda width: LocalAndTree(width, width, edge_steps=True),
    "GCN": lambda width: GCNConv(width, width),
    "SAGE": lambda width: SAGEConv(width, width),
    "GAT": lambda width: GATConv(width, width // 4, heads=4),
    "GPS": lambda width: GPSConv(
        width,
        SAGEConv(width, width),
        heads=4,
        attn_type="performer",  # dense attention over ten thousand nodes takes gigabytes
        attn_kwargs={"head_channels": width // 4},
    ),
}


class Block(nn.Module):
    """A layer, and two matrices after it, added to what they were given."""

    def __init__(self, layer: nn.Module, channels: int, hidden_channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.layer = layer
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden_channels),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_channels, channels),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return x + self.mlp(self.layer(self.norm(x), edge_index))


class Network(nn.Module):
    def __init__(
        self, model: str, num_features: int, num_classes: int, channels: int, hidden_channels: int
    ):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(num_features, channels), nn.Dropout(dropout), nn.GELU()
        )
        self.blocks = nn.ModuleList(
            Block(LAYERS[model](channels), channels, hidden_channels) for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(channels)
        self.answer = nn.Linear(channels, num_classes)

    def forward(self, graph: Data) -> Tensor:
        x = self.encoder(graph.x)
        for block in self.blocks:
            x = block(x, graph.edge_index)
        return self.answer(self.norm(x))


def make_network(model: str, graph: Data) -> Network:
    """The widest whose blocks keep within the budget; the hidden layers take up what is left."""
    num_classes = int(graph.y.max()) + 1

    # Not on the meta device, where the performer of GPS cannot be made.
    def size(channels: int, hidden_channels: int) -> int:
        return num_parameters(Network(model, 1, num_classes, channels, hidden_channels).blocks)

    widths = range(4, 256, 4)  # for the heads of the peers
    channels = widths[bisect_right(widths, budget, key=lambda width: size(width, 2 * width)) - 1]
    hidden = bisect_right(range(1, 4 * channels), budget, key=partial(size, channels))
    return Network(model, graph.num_features, num_classes, channels, hidden)


@cache
def load_graph(folder: Path, dataset: str) -> Data:
    """A graph in both directions, with the nodes of every split as columns."""
    path = folder / f"{dataset}.npz"
    if not path.exists():
        raise FileNotFoundError(f"no {path}; 'experiments/heterophilous.py' says where it is from")
    with np.load(path) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    return Data(
        x=arrays["node_features"].float(),
        y=arrays["node_labels"].long(),
        edge_index=to_undirected(arrays["edges"].t().long().contiguous()),
        train_mask=arrays["train_masks"].t(),
        val_mask=arrays["val_masks"].t(),
        test_mask=arrays["test_masks"].t(),
    )


def run(dataset: str, model: str, seed: int, learning_rate: float, data: Path) -> dict:
    """One training on the split of the seed's number; what is measured, as plain values."""
    graph = load_graph(data, dataset)
    start = time.perf_counter()
    torch.manual_seed(seed)
    network = make_network(model, graph)
    train, validation, test = (
        mask[:, seed] for mask in (graph.train_mask, graph.val_mask, graph.test_mask)
    )
    fitted = fit_until_it_stops(
        network,
        repeat(graph),
        lambda graph: F.cross_entropy(network(graph)[train], graph.y[train]),
        lambda: score(network, graph, validation),
        learning_rate,
        steps_per_check,
        most_steps,
        f"{dataset}, {model}, split {seed}, learning rate {learning_rate:g}",
    )
    return {
        **fitted,
        "accuracy": score(network, graph, test),
        "num_parameters": num_parameters(network.blocks),
        "seconds": time.perf_counter() - start,
    }


@torch.no_grad()
def score(network: nn.Module, graph: Data, mask: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    network.eval()
    logits, y = network(graph)[mask], graph.y[mask]
    if logits.size(1) == 2:
        return float(roc_auc_score(y, (logits[:, 1] - logits[:, 0]).numpy()))
    return (logits.argmax(1) == y).float().mean().item()


def table(runs: list[dict]) -> str:
    """Area under the ROC curve or right answers, in percent."""
    datasets = [dataset for dataset in DATASETS if any(run["dataset"] == dataset for run in runs)]
    rows = [
        [model, *(accuracy_cell(chosen(runs, dataset=name, model=model)) for name in datasets)]
        for model in LAYERS
    ]
    return f"{summary(runs)}\n\n{markdown(['score, %', *datasets], rows)}"


EXPERIMENT = Experiment(
    name="heterophilous",
    about=__doc__,
    cells=[{"dataset": dataset, "model": model} for dataset in DATASETS for model in LAYERS],
    settings={},
    run=run,
    table=table,
    seeds=10,
    learning_rates=learning_rates,
    data="the files of the data sets, see experiments/heterophilous.py",
)
