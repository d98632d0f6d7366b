r"""What the transforms of raw inputs share."""

from typing import Any

import torch
from torch_geometric.data import Data, HeteroData
from torch_geometric.transforms import BaseTransform


class InputToGraph(BaseTransform):
    """Base of the transforms that take a raw input, or a :obj:`Data` that holds it as :obj:`key`.

    A :obj:`Data` hands over its attribute :obj:`key` and keeps all others.
    """

    key: str

    def __call__(self, data: Any) -> Data:
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
        return value, data


def add_batch(data: Data, num_nodes: int, num_graphs: int) -> Data:
    """Adds :obj:`batch` and :obj:`ptr` of :obj:`num_graphs` graphs of equal size."""
    graph = torch.arange(num_graphs + 1, device=data.edge_index.device)
    data.batch = graph[:-1].repeat_interleave(num_nodes)
    data.ptr = graph * num_nodes
    return data
