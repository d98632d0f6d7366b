r"""Checks of the arguments that layers share, beside those of the operations."""

from torch import Tensor

from groot_graph.ops.checks import check_floating, check_shape


def check_choice(name: str, value, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"'{name}' must be one of {choices}, got {type(value).__name__}")
    if value not in choices:
        raise ValueError(f"'{name}' must be one of {choices}, got '{value}'")


def check_positive_int(name: str, value) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"'{name}' must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"'{name}' must be at least 1, got {value}")


def check_number(name: str, value) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"'{name}' must be a number, got {type(value).__name__}")


def check_bool(name: str, value) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"'{name}' must be a bool, got {type(value).__name__}")


def check_dt_rank(dt_rank) -> None:
    if isinstance(dt_rank, str):
        check_choice("dt_rank", dt_rank, ("auto",))
    else:
        check_positive_int("dt_rank", dt_rank)


def check_features(name: str, value: Tensor, channels: int | None = None) -> None:
    check_floating(name, value)
    check_shape(name, value, (None, channels), "[num_nodes, channels]")
