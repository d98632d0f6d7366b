r"""GrootL, the language model. The import makes it known to the Auto classes of transformers."""

try:
    from groot_graph.models.grootl.cache import CACHE_NAME, GrootLCache
    from groot_graph.models.grootl.config import GrootLConfig
    from groot_graph.models.grootl.inputs import IGNORED
    from groot_graph.models.grootl.mixer import GrootLMixer
    from groot_graph.models.grootl.model import GrootLForCausalLM, GrootLModel
except ImportError as error:
    raise ImportError(
        'GrootLForCausalLM needs transformers >= 5.5: pip install "groot-graph[text]"'
    ) from error

__all__ = [
    "CACHE_NAME",
    "IGNORED",
    "GrootLCache",
    "GrootLConfig",
    "GrootLForCausalLM",
    "GrootLMixer",
    "GrootLModel",
]
