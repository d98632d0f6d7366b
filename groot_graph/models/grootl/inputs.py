r"""What a model of texts is given beside its tokens: their padding and their contexts, checked."""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from groot_graph import checks
from groot_graph.models.grootl.cache import CACHE_NAME, GrootLCache
from groot_graph.models.grootl.trees import TextLayout

# The label of tokens that the loss leaves out.
IGNORED = -100


class FittingContexts(NamedTuple):
    r"""Context lengths that are known to fit their texts, of shape :obj:`[batch, 1]`."""

    lengths: Tensor

    def expanded(self, num_copies: int) -> "FittingContexts":
        r"""The context lengths of several copies of every text."""
        return FittingContexts(self.lengths.repeat_interleave(num_copies, dim=0))


Contexts: TypeAlias = int | Sequence[int] | Tensor | FittingContexts | None


def checked_mask(mask: Tensor | None, x: Tensor) -> Tensor | None:
    r"""Which places hold a token, on the device of the embeddings; None where all do.

    Args:
        mask (Tensor, optional): What a user gives: 0 at padding, of shape
            :obj:`[batch, num_places]`. Places that stand before these are left out.
        x (Tensor): The embeddings, of shape :obj:`[batch, num_places, hidden_size]`.
    """
    if mask is None:
        return None
    batch_size, num_places = x.shape[:2]
    checks.check_tensor("attention_mask", mask)
    if mask.dim() != 2 or mask.size(0) != batch_size or mask.size(1) < num_places:
        raise ValueError(
            f"'attention_mask' must have shape [batch, num_tokens] = [{batch_size}, {num_places}], "
            f"got {list(mask.shape)}"
        )
    mask = mask[:, mask.size(1) - num_places :].to(x.device).bool()
    begins = mask[:, :1].sum(dim=1) + (mask[:, 1:] & ~mask[:, :-1]).sum(dim=1)
    if checks.values_are_checked(begins) and bool((begins > 1).any()):
        text = int(begins.gt(1).nonzero()[0])
        raise ValueError(
            "'attention_mask' must have zeros before and after a text alone, got some inside text "
            f"{text}"
        )
    return mask


def extent(mask: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Where each text starts and how many tokens it has, of shape :obj:`[batch, 1]`."""
    batch_size, num_places = x.shape[:2]
    if mask is None:
        start = torch.zeros(batch_size, 1, dtype=torch.long, device=x.device)
        return start, torch.full_like(start, num_places)
    return mask.int().argmax(dim=1, keepdim=True), mask.sum(dim=1, keepdim=True)


def fitting_contexts(contexts: Contexts, length: Tensor, num_places: int) -> FittingContexts:
    r"""Checks the context lengths that a user gives.

    Args:
        contexts (int or list or LongTensor or FittingContexts, optional): For all texts or for
            each; None stands for whole texts.
        length (LongTensor): How many tokens every text has, of shape :obj:`[batch, 1]`.
        num_places (int): The number of places of every text, padding included.
    """
    if isinstance(contexts, FittingContexts):
        return contexts
    if contexts is None:
        return FittingContexts(length)
    lengths = _as_integers(contexts)
    if lengths.dim() > 1 or lengths.numel() not in (1, length.size(0)):
        raise ValueError(
            f"'context_lengths' must be an int or of shape [batch] = [{length.size(0)}], got shape "
            f"{list(lengths.shape)}"
        )
    lengths = lengths.view(-1, 1)
    _check_fit(lengths, torch.tensor(num_places))
    lengths = lengths.to(length.device).expand_as(length)
    _check_fit(lengths, length)
    return FittingContexts(lengths)


def _as_integers(lengths) -> Tensor:
    if isinstance(lengths, bool) or not isinstance(lengths, int | list | tuple | Tensor):
        raise TypeError(
            "'context_lengths' must be an int, a list of ints or a LongTensor, got "
            f"{type(lengths).__name__}"
        )
    try:
        lengths = torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"'context_lengths' must be one int per text, got {lengths}") from error
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"'context_lengths' must be integers, got {lengths.dtype}")
    return lengths


def _check_fit(lengths: Tensor, longest: Tensor) -> None:
    if not checks.values_are_checked(lengths):
        return
    does_fit = (lengths >= 0) & (lengths <= longest)
    if not bool(does_fit.all()):
        text = int((~does_fit).nonzero()[0, 0])
        found, most = int(lengths[text]), int(longest.expand_as(lengths)[text])
        raise ValueError(
            "'context_lengths' must not be negative or exceed the tokens of a text, got "
            f"{found} for text {text} of {most} tokens"
        )


def layout_of(
    x: Tensor, mask: Tensor | None, contexts: Contexts, window: int, num_readouts: int = 0
) -> TextLayout:
    r"""Where the tokens of whole texts stand.

    Args:
        x (Tensor): The embeddings, of shape :obj:`[batch, num_places, hidden_size]`.
        mask (BoolTensor, optional): A checked mask.
        contexts (int or list or LongTensor or FittingContexts, optional): The contexts, which are
            checked here.
        window (int): How many places back a token may be joined to.
        num_readouts (int, optional): The number of readouts of every text. (default: :obj:`0`)
    """
    num_places = x.size(1)
    start, length = extent(mask, x)
    context_stop = start + fitting_contexts(contexts, length, num_places).lengths.to(x.device)
    return TextLayout(start, start + length, context_stop, num_places, window, num_readouts, mask)


def check_goes_on(mask: Tensor | None, contexts: Contexts) -> None:
    r"""Tokens that follow a filled cache have neither padding nor a context."""
    if contexts is not None:
        raise ValueError(
            "'context_lengths' must be left out with a filled 'past_key_values', whose texts have "
            f"their contexts behind them, got {contexts}"
        )
    if mask is not None and checks.values_are_checked(mask) and not bool(mask.all()):
        raise ValueError(
            "'attention_mask' must be 1 at all tokens that follow a filled 'past_key_values', got 0"
        )


def check_is_longer(num_new: int | None, cache: GrootLCache) -> None:
    r"""A text that generation goes on with holds tokens that the cache has not seen."""
    if num_new is not None and num_new < 1:
        num_tokens = cache.num_tokens
        raise ValueError(
            f"'input_ids' must hold the whole text, longer than the {num_tokens} tokens of "
            f"'{CACHE_NAME}', got {num_tokens + num_new} tokens"
        )


def unlabelled(labels: Tensor, mask: Tensor | None) -> Tensor:
    r"""How many tokens each text has before the first that the loss is taken of."""
    leading = (labels == IGNORED).cumprod(dim=1).sum(dim=1)
    if mask is None:
        return leading
    start, length = (of_text.flatten() for of_text in extent(mask, mask))
    return (leading - start).clamp(min=0).minimum(length)
