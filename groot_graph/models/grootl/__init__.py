r"""GrootL, the language model. The import makes it known to the Auto classes of transformers."""

from importlib.util import find_spec

try:
    from groot_graph.models.grootl import training as _training  # noqa: F401
    from groot_graph.models.grootl.cache import CACHE_NAME, GrootLCache
    from groot_graph.models.grootl.config import GrootLConfig
    from groot_graph.models.grootl.inputs import IGNORED
    from groot_graph.models.grootl.mixer import GrootLMixer
    from groot_graph.models.grootl.model import GrootLForCausalLM, GrootLModel
except ImportError as error:
    raise ImportError(
        'GrootLForCausalLM needs transformers >= 5.5: pip install "groot-graph[text]"'
    ) from error

if find_spec("peft") is not None:
    from groot_graph.models.grootl import adapters as _adapters  # noqa: F401

__all__ = [
    "CACHE_NAME",
    "IGNORED",
    "GrootLCache",
    "GrootLConfig",
    "GrootLForCausalLM",
    "GrootLMixer",
    "GrootLModel",
]
