r"""What the transforms of raw inputs share."""

from typing import Any

import torch
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.transforms import BaseTransform

from groot_graph.forest import Forest


class InputToGraph(BaseTransform):
    """Base of the transforms that take a raw input, or a :obj:`Data` that holds it as :obj:`key`.

    A :obj:`Data` hands over its attribute :obj:`key` and keeps all others but those of the edges
    that it had. The graphs of a :obj:`Batch` are transformed one by one.
    """

    key: str
    # Whether the nodes are made of the input, or are its points.
    makes_nodes: bool = True

    def __call__(self, data: Any) -> Data:
        if isinstance(data, Batch):
            return one_by_one(self, data)
        # No shallow copy of a raw tensor, because it would be cut off its gradient.
        return super().__call__(data) if isinstance(data, Data) else self.forward(data)

    def take_input(self, data: Any) -> tuple[Any, Data]:
        """Splits what the transform was given into the raw input and the :obj:`Data` to fill."""
        if isinstance(data, HeteroData):
            raise TypeError("'data' must be the raw input or a Data, got a HeteroData")
        if not isinstance(data, Data):
            return data, Data()
        if self.key not in data:
            raise ValueError(f"'data' must carry the attribute '{self.key}', got {data.keys()}")
        value = data[self.key]
        del data[self.key]
        forget_edges(data)
        if self.makes_nodes:
            _forget_batch(data)
        return value, data


def _forget_batch(data: Data) -> None:
    """Removes what tells the nodes that were there before into which graph they belong."""
    for key in {"batch", "ptr"} & {*data.keys()}:
        del data[key]


def one_by_one(transform: BaseTransform, batch: Batch) -> Batch:
    """The batch of the transformed graphs, which alone can be taken apart again."""
    return Batch.from_data_list([transform(graph) for graph in batch.to_data_list()])


def forget_edges(data: Data) -> None:
    """Removes what belongs to edges that are about to be replaced."""
    forget_structures(data)
    for key in list(data.keys()):
        if data.is_edge_attr(key) and key != "edge_index" and not is_supervision(key):
            del data[key]


def forget_structures(data: Data) -> None:
    """Removes what was made of all edges, which others are about to replace."""
    for key in list(data.keys()):
        is_forest = key in ("parent_index", "tree_depth") or isinstance(data[key], Forest)
        if is_forest or key == "adj_t":
            del data[key]


def is_supervision(key: str) -> bool:
    """Whether an attribute is about the pairs of nodes that a link prediction asks for."""
    return key.startswith("edge_label")


def add_batch(data: Data, num_nodes: int, num_graphs: int) -> Data:
    """Adds :obj:`batch` and :obj:`ptr` of :obj:`num_graphs` graphs of equal size."""
    graph = torch.arange(num_graphs + 1, device=data.edge_index.device)
    data.batch = graph[:-1].repeat_interleave(num_nodes)
    data.ptr = graph * num_nodes
    return data
