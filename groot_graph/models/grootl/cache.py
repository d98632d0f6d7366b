r"""What GrootL remembers of its texts, and the two names that transformers has for it."""

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


def one_cache(past_key_values: GrootLCache | None, cache: GrootLCache | None) -> GrootLCache | None:
    r"""The cache that is given under one of its two names."""
    if past_key_values is not None and cache is not None:
        raise ValueError("'cache' must be left out with 'past_key_values', whose other name it is")
    return past_key_values if cache is None else cache


def under_its_name(kwargs: dict) -> dict:
    r"""Keyword arguments with the cache, where there is one, under :obj:`CACHE_NAME`."""
    cache = one_cache(kwargs.pop("past_key_values", None), kwargs.pop("cache", None))
    return kwargs if cache is None else {**kwargs, CACHE_NAME: cache}
