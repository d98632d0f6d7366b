r"""The networks of the paper."""

import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from groot_graph.models.click_segmenter import ClickSegmenter, click_segmenter
from groot_graph.models.grootv import (
    GrootV,
    convert_grootv_checkpoint,
    grootv_base,
    grootv_micro,
    grootv_small,
    grootv_tiny,
    load_grootv,
)

if TYPE_CHECKING:
    from groot_graph.models.grootl import GrootLForCausalLM

__all__ = [
    "ClickSegmenter",
    "GrootLForCausalLM",
    "GrootV",
    "click_segmenter",
    "convert_grootv_checkpoint",
    "grootv_base",
    "grootv_micro",
    "grootv_small",
    "grootv_tiny",
    "load_grootv",
]

if find_spec("timm") is not None:
    try:
        from groot_graph.models.grootv import timm as _timm  # noqa: F401
    except Exception as error:
        warnings.warn(
            f"GrootV is not registered with timm, which fails at import: {error}", stacklevel=2
        )


def __getattr__(name: str) -> Any:
    # Not at import, because transformers is optional and takes its time.
    if name != "GrootLForCausalLM":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from groot_graph.models.grootl import GrootLForCausalLM

    return GrootLForCausalLM
