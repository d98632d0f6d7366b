r"""GrootL, the language model. The import makes it known to the Auto classes of transformers."""

from groot_graph.models.grootl.model import (
    GrootLCache,
    GrootLConfig,
    GrootLForCausalLM,
    GrootLModel,
)

__all__ = ["GrootLCache", "GrootLConfig", "GrootLForCausalLM", "GrootLModel"]
