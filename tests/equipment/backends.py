"""The implementations that the tests of an operation compare, all called with CPU tensors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch

import groot_graph
from groot_graph import Forest
from groot_graph.ops.minimum_spanning_forest.reference import minimum_spanning_forest_reference
from groot_graph.ops.root_forest.reference import root_forest_reference
from groot_graph.ops.selective_tree_scan.reference import selective_tree_scan_reference
from groot_graph.ops.tree_scan.reference import tree_scan_reference
from tests.equipment.on_host import cuda_kernels


class Backend(NamedTuple):
    """Every operation, computed in one way."""

    minimum_spanning_forest: Callable
    root_forest: Callable
    tree_scan: Callable
    selective_tree_scan: Callable


def rooted_by_the_reference(edge_index, edge_mask=None, num_nodes=None, root="first") -> Forest:
    return Forest(*root_forest_reference(edge_index, edge_mask, num_nodes, root))


def on_the_gpu(operation: Callable) -> Callable:
    """Takes tensors and forests of the CPU, and gives such; gradients find the way back."""

    def there(value):
        return value.to("cuda") if isinstance(value, torch.Tensor | Forest) else value

    def call(*arguments, **keywords):
        keywords = {name: there(value) for name, value in keywords.items()}
        return operation(*map(there, arguments), **keywords).to("cpu")

    return call


OPERATIONS = {name: getattr(groot_graph, name) for name in Backend._fields}
PUBLIC = Backend(**OPERATIONS)
REFERENCE = Backend(
    minimum_spanning_forest_reference,
    rooted_by_the_reference,
    tree_scan_reference,
    selective_tree_scan_reference,
)
ON_THE_GPU = Backend(**{name: on_the_gpu(operation) for name, operation in OPERATIONS.items()})

KERNELS = ["cpu", "cuda", *(["gpu"] if torch.cuda.is_available() else [])]
BACKENDS = ["reference", *KERNELS]


@contextmanager
def backend_of(name: str) -> Iterator[Backend]:
    """`cuda` runs the CUDA sources on the CPU, whatever is computed meanwhile."""
    implementations = {"reference": REFERENCE, "gpu": ON_THE_GPU}
    with cuda_kernels() if name == "cuda" else nullcontext():
        yield implementations.get(name, PUBLIC)
