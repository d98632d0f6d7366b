r"""What GrootL remembers of its texts, and the names that transformers has for it."""

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

# What transformers calls the memory of generation: "cache" from 5.24 on.
CACHE_NAME = "cache" if hasattr(CausalLMOutputWithPast, "cache") else "past_key_values"


class GrootLCache:
    r"""What generation remembers of its texts, in memory that does not grow with them.

    Attributes:
        layers (list of dict): The tensors of every layer, with the batch as first dimension.
        num_tokens (int): The number of places so far, padding included.
    """

    # What generation asks a cache.
    is_compileable = False
    is_croppable = False
    is_linear = (False,)  # It knows its number of tokens.

    def __init__(self, num_layers: int):
        self.layers: list[dict[str, Tensor]] = [{} for _ in range(num_layers)]
        self.num_tokens = 0

    def get_seq_length(self) -> int:
        r"""The number of places so far, padding included."""
        return self.num_tokens

    def reorder_cache(self, beam_idx: Tensor) -> None:
        r"""Puts the texts of the given numbers in place of the old ones, as beam search asks."""
        for layer in self.layers:
            for name, value in layer.items():
                layer[name] = value.index_select(0, beam_idx.to(value.device))

    @property
    def num_texts(self) -> int:
        r"""The number of texts, zero before the first are read."""
        values = [value for layer in self.layers for value in layer.values()]
        return values[0].size(0) if values else 0

    def repeated(self, num_copies: int) -> "GrootLCache":
        r"""A cache of several copies of every text; this one is left as it is."""
        copies = GrootLCache(len(self.layers))
        copies.num_tokens = self.num_tokens
        for layer, copy in zip(self.layers, copies.layers, strict=True):
            for name, value in layer.items():
                copy[name] = value.repeat_interleave(num_copies, dim=0)
        return copies


def one_cache(past_key_values: Any, cache: Any, cache_params: Any) -> Any:
    r"""The cache that is given under one of its names, of which the last is that of Mamba."""
    if cache is None and cache_params is None:
        return past_key_values
    named = {"past_key_values": past_key_values, "cache": cache, "cache_params": cache_params}
    given = [name for name, value in named.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"'{given[1]}' must be left out with '{given[0]}', whose other name it is")
    return named[given[0]]


def check_cache(cache: Any, num_layers: int, num_texts: int) -> None:
    r"""Refuses what is no cache of GrootL, or one of other texts or of another model."""
    if cache is None:
        return
    if not isinstance(cache, GrootLCache):
        raise TypeError(
            f"'past_key_values' must be a GrootLCache, got {type(cache).__name__}: leave it out at "
            "the first tokens, and the model returns one"
        )
    if len(cache.layers) != num_layers:
        raise ValueError(
            f"'past_key_values' must be of a model of {num_layers} layers, got "
            f"{len(cache.layers)} layers"
        )
    if cache.num_tokens > 0 and cache.num_texts != num_texts:
        raise ValueError(
            f"'past_key_values' must be of as many texts as are given, {num_texts}, got "
            f"{cache.num_texts}; generate() makes the copies for beams and samples itself"
        )


def without_cache(kwargs: dict) -> tuple[Any, dict]:
    r"""The cache among keyword arguments, and the others."""
    first, second = kwargs.pop("past_key_values", None), kwargs.pop("cache", None)
    cache = one_cache(first, second, kwargs.pop("cache_params", None))
    return cache, kwargs
