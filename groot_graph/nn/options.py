r"""How a layer tells its options."""

import inspect
from collections.abc import Callable
from typing import Any


def told_options(init: Callable, values: dict[str, Any]) -> str:
    r"""The values that are not the defaults of a constructor, as its arguments are written.

    Args:
        init (Callable): The constructor.
        values (dict): Name to value.

    Example:
        >>> from groot_graph.nn.options import told_options
        >>> from groot_graph.nn import TreeSSM
        >>> told_options(TreeSSM, {"state_size": 4, "direction": "both"})
        ', state_size=4'
    """
    defaults = inspect.signature(init).parameters
    given = {name: value for name, value in values.items() if value != defaults[name].default}
    return "".join(f", {name}={_told(value)}" for name, value in given.items())


def _told(value: Any) -> str:
    return getattr(value, "__name__", None) or repr(value)
