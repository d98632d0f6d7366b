r"""The plan of a forest: what its device prepares for the scans, made once and kept on the forest.

How a device lays it out is known to :obj:`groot_graph.ops.cpu.order` and
:obj:`groot_graph.ops.cuda.plan`; here is when it is made, and how long it serves.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from groot_graph.forest import Forest
from groot_graph.lasting import current_stream, is_captured, makes_plain_tensors
from groot_graph.ops import dispatch


class Plan(NamedTuple):
    r"""A plan, and what it holds for.

    Attributes:
        values: What the kernels read, an IntTensor.
        order, parent: The tensors of the forest.
        state: Theirs and the device's as the plan was made; None of a plan that always serves, as
            the forest lives no longer than a trace or an operation.
        came_along: Whether the plan was made with the forest, and is there wherever that is.
    """

    values: Tensor
    order: Tensor
    parent: Tensor
    state: tuple | None
    came_along: bool


def plan_of(forest: Forest) -> Tensor:
    r"""The plan of a forest. Making it checks that parents stand before their children, where the
    device reads values.
    """
    kept = forest._plan
    if kept is not None and (kept.state is None or _serves(kept, forest)):
        return kept.values
    order, parent = forest.order, forest.parent
    if not makes_plain_tensors():
        return _make_plan(order, parent)
    values = dispatch.implementation("root_forest", parent.device, "_plan")(order, parent)
    state = _state(order, parent, came_along=False)
    if state is not None and not torch.is_inference_mode_enabled():
        forest._plan = Plan(values, order, parent, state, came_along=False)
    return values


def with_plan(order: Tensor, parent: Tensor, values: Tensor) -> Forest:
    r"""A forest that its plan comes along with, inside of an operation."""
    forest = Forest._of(order, parent)
    forest._plan = Plan(values, order, parent, None, came_along=True)
    return forest


def keep_plan(forest: Forest, values: Tensor) -> None:
    r"""Keeps a plan that was made with the forest."""
    order, parent = forest.order, forest.parent
    state = _state(order, parent, came_along=True)
    forest._plan = Plan(values, order, parent, state, came_along=True)


def empty_plan(parent: Tensor) -> Tensor:
    r"""Room for a plan."""
    size = dispatch.implementation("root_forest", parent.device, "_plan_size")(parent.size(0))
    return parent.new_empty(size, dtype=torch.int32)


def _serves(kept: Plan, forest: Forest) -> bool:
    order, parent, came_along = forest.order, forest.parent, kept.came_along
    if kept.order is not order or kept.parent is not parent:
        return False
    # A trace would take it for a constant, whatever is written into the forest later.
    if torch.compiler.is_compiling():
        return came_along
    return kept.state == _state(order, parent, came_along)


def _state(order: Tensor, parent: Tensor, came_along: bool) -> tuple | None:
    r"""What a plan is outdated by when it changes; None in a trace and of tensors of inference
    mode, whose versions nobody counts, and in a CUDA graph, to which a plan would belong.
    """
    if torch.compiler.is_compiling() or order.is_inference() or parent.is_inference():
        return None
    name, stream = dispatch.backend(order.device), None
    if name == "cuda" and not came_along:
        if is_captured(order.device):
            return None
        stream = current_stream(order.device)
    return name, stream, order._version, parent._version


@torch.library.custom_op(
    "groot_graph::scan_plan", mutates_args=(), schema="(Tensor order, Tensor parent) -> Tensor"
)
def _make_plan(order, parent):
    return dispatch.implementation("root_forest", parent.device, "_plan")(order, parent)


@_make_plan.register_fake
def _(order, parent):
    return empty_plan(parent)
