r"""The plan of a forest: what its device prepares for the scans, made once and kept on the forest.

How a device lays it out is known to :obj:`groot_graph.ops.cpu.order` and
:obj:`groot_graph.ops.cuda.plan`; here is when it is made, and how long it serves.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from groot_graph.forest import Forest
from groot_graph.lasting import current_stream, is_captured, makes_plain_tensors
from groot_graph.ops.dispatch import backend, implementation


class Plan(NamedTuple):
    r"""A plan, and what it holds for.

    Attributes:
        values: What the kernels read, an IntTensor.
        backend: Whose kernels read it.
        order, parent: The tensors of the forest.
        versions: Theirs, or None where nobody counts them.
        stream: The stream that it was made on, or None where it came along with the forest, and is
            there where the forest is.
    """

    values: Tensor
    backend: str
    order: Tensor
    parent: Tensor
    versions: tuple[int, int] | None
    stream: int | None


def plan_of(forest: Forest) -> Tensor:
    r"""The plan of a forest. Making it checks that parents stand before their children, where the
    device reads values.
    """
    kept = forest._plan
    if kept is not None and _serves(kept, forest):
        return kept.values
    values = _make_plan(forest.order, forest.parent)
    if _is_lasting(forest):
        forest._plan = _plan(forest, values, current_stream(forest.device))
    return values


def with_plan(order: Tensor, parent: Tensor, values: Tensor) -> Forest:
    r"""A forest that comes with its plan."""
    forest = Forest._of(order, parent)
    forest._plan = _plan(forest, values, None)
    return forest


def empty_plan(parent: Tensor) -> Tensor:
    r"""Room for a plan."""
    size = implementation("root_forest", parent.device, "_plan_size")(parent.size(0))
    return parent.new_empty(size, dtype=torch.int32)


def _plan(forest: Forest, values: Tensor, stream: int | None) -> Plan:
    tensors = forest.order, forest.parent
    return Plan(values, backend(forest.device), *tensors, _versions(*tensors), stream)


def _serves(kept: Plan, forest: Forest) -> bool:
    if kept.order is not forest.order or kept.parent is not forest.parent:
        return False
    if kept.backend != backend(forest.device):
        return False
    if torch.compiler.is_compiling():
        return kept.stream is None
    if kept.stream not in (None, current_stream(forest.device)):
        return False
    return kept.versions is None or kept.versions == _versions(forest.order, forest.parent)


def _versions(order: Tensor, parent: Tensor) -> tuple[int, int] | None:
    if torch.compiler.is_compiling() or order.is_inference() or parent.is_inference():
        return None
    return order._version, parent._version


def _is_lasting(forest: Forest) -> bool:
    r"""Whether a plan that is made now may serve later calls: none may that belongs to a trace, to
    a CUDA graph or to inference mode.
    """
    if not makes_plain_tensors() or torch.is_inference_mode_enabled():
        return False
    is_inference = forest.order.is_inference() or forest.parent.is_inference()
    return not is_inference and not is_captured(forest.device)


@torch.library.custom_op(
    "groot_graph::scan_plan", mutates_args=(), schema="(Tensor order, Tensor parent) -> Tensor"
)
def _make_plan(order, parent):
    return implementation("root_forest", parent.device, "_plan")(order, parent)


@_make_plan.register_fake
def _(order, parent):
    return empty_plan(parent)
