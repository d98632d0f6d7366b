"""Networks of one size that differ in their layer alone: ours and its peers in PyG."""

from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import (
    DeepGCNLayer,
    GATConv,
    GCNConv,
    GINConv,
    GPSConv,
    LayerNorm,
    SAGEConv,
    global_mean_pool,
)
from torch_geometric.transforms import VirtualNode

from experiments.training import num_parameters
from groot_graph.nn import TreeSSMConv

budget = 150_000  # parameters
# Layers of a model that hears every node.
num_layers_that_hear_all = 2


def gin(channels: int) -> GINConv:
    widths = nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels)
    return GINConv(nn.Sequential(*widths), train_eps=True)


def residual(conv: nn.Module, channels: int, act: nn.Module | None = None) -> DeepGCNLayer:
    return DeepGCNLayer(conv, LayerNorm(channels, mode="node"), act, block="res+")


def activated(conv: nn.Module, channels: int) -> DeepGCNLayer:
    return residual(conv, channels, nn.ReLU())


class Model(NamedTuple):
    layer: Callable[[int], nn.Module]  # of so many channels
    hears_all: bool = False
    transform: Callable[[Data], Data] | None = None


def ours(**settings) -> Model:
    """Our layer, which has activations of its own."""
    return Model(
        lambda width: residual(TreeSSMConv(width, width, **settings), width), hears_all=True
    )


OURS = "TreeSSMConv"
MODELS = {
    OURS: ours(),
    "GCN": Model(lambda width: activated(GCNConv(width, width), width)),
    "GAT": Model(lambda width: activated(GATConv(width, width), width)),
    "GIN": Model(lambda width: activated(gin(width), width)),
    "SAGE": Model(lambda width: activated(SAGEConv(width, width), width)),
    "GPS": Model(lambda width: GPSConv(width, gin(width), norm="layer_norm"), hears_all=True),
    "GIN + virtual node": Model(
        lambda width: activated(gin(width), width), hears_all=True, transform=VirtualNode()
    ),
}


class Encoder(nn.Module):
    """Features as they are, or one embedding for each of several numbers."""

    def __init__(self, x: Tensor, num_numbers: int, channels: int):
        super().__init__()
        self.is_numbers = not x.is_floating_point()
        if self.is_numbers:
            width = x.size(1)
            self.embed = nn.ModuleList(nn.Embedding(num_numbers, channels) for _ in range(width))
        else:
            self.embed = nn.Linear(x.size(1), channels)

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_numbers:
            return self.embed(x)
        return sum(embed(numbers) for embed, numbers in zip(self.embed, x.t(), strict=True))


class Network(nn.Module):
    """Encodes, passes messages, and answers.

    Args:
        model (Model): What the layers are.
        graph (Data): One of the graphs.
        num_classes (int): The number of answers.
        num_layers (int): The number of layers.
        answer_at (Callable): Which rows to answer from, of the nodes' rows and the batch.
        channels (int): The width of the layers.
        width (int): The width of the hidden layer of the answer.
    """

    def __init__(
        self,
        model: Model,
        graph: Data,
        num_classes: int,
        num_layers: int,
        answer_at: Callable[[Tensor, Batch], Tensor],
        channels: int,
        width: int,
    ):
        super().__init__()
        self.answer_at = answer_at
        self.encoder = Encoder(graph.x, num_classes + 1, channels)
        self.layers = nn.ModuleList(model.layer(channels) for _ in range(num_layers))
        self.takes_batch = isinstance(self.layers[0], GPSConv)
        self.norm = nn.LayerNorm(channels)
        self.answer = nn.Sequential(
            nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, num_classes)
        )

    def forward(self, batch: Batch) -> Tensor:
        x = self.encoder(batch.x)
        for layer in self.layers:
            more = (batch.batch,) if self.takes_batch else ()
            x = layer(x, batch.edge_index, *more)
        return self.answer(self.answer_at(self.norm(x), batch))


def at_root(x: Tensor, batch: Batch) -> Tensor:
    return x[batch.root_index]


def at_nodes(x: Tensor, batch: Batch) -> Tensor:
    return x[batch.is_asked]


def at_graph(x: Tensor, batch: Batch) -> Tensor:
    return global_mean_pool(x, batch.batch)


def make_network(
    model: Model,
    graph: Data,
    num_classes: int,
    num_layers: int,
    answer_at: Callable[[Tensor, Batch], Tensor],
) -> Network:
    """The widest network within the budget; the answer's hidden layer takes up what is left."""
    if model.hears_all:
        num_layers = num_layers_that_hear_all
    make = partial(Network, model, graph, num_classes, num_layers, answer_at)

    def size(channels: int) -> int:
        with torch.device("meta"):
            return num_parameters(make(channels, channels))

    channels = bisect_right(range(1, budget), budget, key=size)
    left = budget - size(channels)
    return make(channels, channels + left // (channels + 1 + num_classes))
