r"""Checks of the arguments that layers share, beside those of the operations."""

from torch import Tensor

from groot_graph.ops.checks import (
    check_choice,
    check_floating,
    check_positive_int,
    check_shape,
)


def check_dt_rank(dt_rank) -> None:
    if isinstance(dt_rank, str):
        check_choice("dt_rank", dt_rank, ("auto",))
    else:
        check_positive_int("dt_rank", dt_rank)


def check_features(name: str, value: Tensor, channels: int | None = None) -> None:
    check_floating(name, value)
    check_shape(name, value, (None, channels), "[num_nodes, channels]")
