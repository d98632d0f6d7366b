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
ONE_TEXT_PER_ROW = "give every text a row of its own, padded, with its 'attention_mask'"


class AfterContext(NamedTuple):
    r"""How many tokens of every text follow its context, of shape :obj:`[batch, 1]`: known to fit,
    and the same where others put tokens before a text, as prompt tuning does.
    """

    num_after: Tensor


class PromptContexts(NamedTuple):
    r"""The contexts of the prompts that are generated from.

    Args:
        num_after (LongTensor): How many tokens of every prompt follow its context, of shape
            :obj:`[batch, 1]`.
        num_places (int): The number of token ids of every prompt.
    """

    num_after: Tensor
    num_places: int

    def of(self, input_ids: Tensor) -> AfterContext:
        r"""The same contexts in the texts so far."""
        num_new = max(input_ids.size(1) - self.num_places, 0)
        return AfterContext(self.num_after + num_new)


Contexts: TypeAlias = int | Sequence[int] | Tensor | AfterContext | None


def no_texts(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> ValueError:
    r"""What is raised where neither or both are given, or no text is."""
    if (input_ids is None) == (inputs_embeds is None):
        return ValueError("exactly one of 'input_ids' and 'inputs_embeds' must be given")
    name, texts, shape = "input_ids", input_ids, "[batch, num_tokens]"
    if inputs_embeds is not None:
        name, texts, shape = "inputs_embeds", inputs_embeds, "[batch, num_tokens, hidden_size]"
    found = list(texts.shape) if isinstance(texts, Tensor) else type(texts).__name__
    return ValueError(f"'{name}' must have shape {shape} and hold a token, got {found}")


def checked_mask(mask: Tensor | None, x: Tensor, num_before: int = 0) -> Tensor | None:
    r"""Which places hold a token, on the device of the embeddings; None where all do.

    Args:
        mask (Tensor, optional): What a user gives: 0 at padding, of shape
            :obj:`[batch, num_places]`, or of all places so far, of which the first are left out.
        x (Tensor): The embeddings, or the tokens, of shape :obj:`[batch, num_places, ...]`.
        num_before (int, optional): The number of places before these. (default: :obj:`0`)
    """
    if mask is None:
        return None
    batch_size, num_places = x.shape[:2]
    checks.check_tensor("attention_mask", mask)
    lengths = num_places, num_before + num_places
    if mask.dim() != 2 or mask.size(0) != batch_size or mask.size(1) not in lengths:
        with_past = f", or [{batch_size}, {lengths[1]}] with its past" if num_before > 0 else ""
        raise ValueError(
            f"'attention_mask' must have shape [batch, num_tokens] = [{batch_size}, {num_places}]"
            f"{with_past}, got {list(mask.shape)}"
        )
    mask = mask[:, mask.size(1) - num_places :].to(x.device)
    if checks.values_are_checked(mask):
        _check_one_text(mask)
    return mask.bool()


def _check_one_text(mask: Tensor) -> None:
    r"""A row of a mask holds one text, which its places follow without a gap."""
    is_number = (mask == 0) | (mask == 1)
    if not bool(is_number.all()):
        found = mask[~is_number].flatten()[0].item()
        several = f", which keeps texts in one row apart: {ONE_TEXT_PER_ROW}" if found > 1 else ""
        raise ValueError(f"'attention_mask' must hold 0 and 1, got {found}{several}")
    mask = mask.bool()
    begins = mask[:, :1].sum(dim=1) + (mask[:, 1:] & ~mask[:, :-1]).sum(dim=1)
    if bool((begins > 1).any()):
        text = int(begins.gt(1).nonzero()[0])
        raise ValueError(
            "'attention_mask' must have zeros before and after a text alone, got some inside text "
            f"{text}; pad on the right where other tokens are put before it, as prompt tuning does"
        )


def extent(mask: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Where each text starts and how many tokens it has, of shape :obj:`[batch, 1]`."""
    batch_size, num_places = x.shape[:2]
    if mask is None:
        start = torch.zeros(batch_size, 1, dtype=torch.long, device=x.device)
        return start, torch.full_like(start, num_places)
    return mask.int().argmax(dim=1, keepdim=True), mask.sum(dim=1, keepdim=True)


def after_contexts(contexts: Contexts, length: Tensor, num_places: int) -> AfterContext:
    r"""Checks the context lengths that a user gives.

    Args:
        contexts (int or list or LongTensor or AfterContext, optional): For all texts or for each;
            None stands for whole texts.
        length (LongTensor): How many tokens every text has, of shape :obj:`[batch, 1]`.
        num_places (int): The number of places of every text, padding included.
    """
    if isinstance(contexts, AfterContext):
        return contexts
    if contexts is None:
        return AfterContext(torch.zeros_like(length))
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
    return AfterContext(length - lengths)


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
        contexts (int or list or LongTensor or AfterContext, optional): The contexts, which are
            checked here.
        window (int): How many places back a token may be joined to.
        num_readouts (int, optional): The number of readouts of every text. (default: :obj:`0`)
    """
    num_places = x.size(1)
    start, length = extent(mask, x)
    stop = start + length
    context_stop = stop - after_contexts(contexts, length, num_places).num_after.to(x.device)
    return TextLayout(start, stop, context_stop, num_places, window, num_readouts, mask)


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


def contexts_of_prompts(
    contexts: Contexts, mask: Tensor | None, prompt: Tensor, num_copies: int
) -> AfterContext:
    r"""Checks prompts, and tells the contexts of several copies of each.

    Args:
        contexts (int or list or LongTensor, optional): What a user gives.
        mask (Tensor, optional): What a user gives.
        prompt (Tensor): The tokens or embeddings, of shape :obj:`[batch, num_places, ...]`.
        num_copies (int): The number of copies.
    """
    mask = checked_mask(mask, prompt)
    _check_ends_in_a_token(mask)
    _, length = extent(mask, prompt)
    num_after = after_contexts(contexts, length, prompt.size(1)).num_after
    return AfterContext(num_after.repeat_interleave(num_copies, dim=0))


def _check_ends_in_a_token(mask: Tensor | None) -> None:
    if mask is not None and not bool(mask[:, -1].all()):
        text = int((~mask[:, -1]).nonzero()[0])
        raise ValueError(
            "'attention_mask' must be 1 at the last place of a text that generate() goes on with, "
            f"got 0 for text {text}: pad on the left"
        )


def mask_of_next(mask: Tensor | None, text: Tensor, cache: GrootLCache) -> Tensor | None:
    r"""Which of the places that follow a cache hold a token.

    Args:
        mask (Tensor, optional): What a user gives.
        text (Tensor): The whole texts or, with a longer mask, the tokens that follow.
        cache (GrootLCache): What is remembered of the texts.
    """
    if mask is None:
        return None
    is_whole = mask.size(1) == text.size(1)
    num_next = text.size(1) - (cache.num_tokens if is_whole else 0)
    return mask[:, mask.size(1) - max(num_next, 0) :].bool()


def mask_of_leading_padding(mask: Tensor) -> Tensor:
    r"""A mask that was inferred from padding tokens, of which those inside a text are its own."""
    ends_in_padding = (mask[:, -1:] == 0).flatten()
    if bool(ends_in_padding.any()):
        text = int(ends_in_padding.nonzero()[0])
        raise ValueError(
            "'attention_mask' must be given where a text ends with the padding token, got none for "
            f"text {text}: 1 where it is a token of the text, 0 at padding, on the left"
        )
    return mask.cummax(dim=1).values


def check_told(mask: Tensor | None, told: dict) -> None:
    r"""Refuses texts that stand one after the other in one row, as packing collators make them, and
    context lengths under another name, which would go unheard.

    Args:
        mask (BoolTensor, optional): A checked mask.
        told (dict): Arguments, of which those with the names that packing collators and kernels use
            tell where texts begin.
    """
    for name in told:
        if name.startswith("context"):
            raise TypeError(f"'context_lengths' is the name of the contexts, got '{name}'")
    position = told.get("position_ids")
    if position is not None:
        _check_begins("position_ids", position[..., 1:] <= position[..., :-1], mask)
    for name in ("seq_idx", "sequence_ids"):
        if told.get(name) is not None:
            number = told[name]
            _check_begins(name, number[..., 1:] != number[..., :-1], mask)
    for name in ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens", "cu_seq_lens"):
        if told.get(name) is not None and len(told[name]) > 2:
            raise ValueError(
                f"'{name}' must be left out or tell of one text, got {len(told[name]) - 1}: "
                f"{ONE_TEXT_PER_ROW}"
            )


def _check_begins(name: str, begins: Tensor, mask: Tensor | None) -> None:
    if mask is not None and begins.size(-1) == mask.size(1) - 1:
        begins = begins.to(mask.device) & mask[:, 1:] & mask[:, :-1]
    # On every device, because texts that hear each other are no error that shows.
    begins = begins.cpu()
    if checks.values_are_checked(begins) and bool(begins.any()):
        place = int(begins.nonzero()[0, -1]) + 1
        raise ValueError(
            f"'{name}' must be left out or tell of one text in a row, got another that begins at "
            f"place {place}: {ONE_TEXT_PER_ROW}"
        )


def check_prompt_is_whole(input_ids: Tensor, contexts: PromptContexts, tree_mode: str) -> None:
    r"""The published tree is grown over a prompt at once."""
    if tree_mode == "context" and input_ids.size(1) < contexts.num_places:
        raise ValueError(
            "'prefill_chunk_size' must be None with tree_mode='context', whose tree is grown over "
            f"the whole prompt of {contexts.num_places} tokens, got chunks of {input_ids.size(1)}"
        )


def check_is_longer(num_new: int | None, cache: GrootLCache) -> None:
    r"""A text that generation goes on with holds tokens that the cache has not seen."""
    if num_new is not None and num_new < 1:
        num_tokens = cache.num_tokens
        raise ValueError(
            f"'input_ids' must hold the whole text, longer than the {num_tokens} tokens of "
            f"'{CACHE_NAME}', got {num_tokens + num_new} tokens"
        )


def after_unlabelled(labels: Tensor, mask: Tensor | None) -> AfterContext:
    r"""The contexts of texts to learn from: their tokens before the first that the loss is taken
    of.

    Args:
        labels (LongTensor): Of shape :obj:`[batch, num_places]`.
        mask (Tensor, optional): What a user gives.
    """
    start, length = extent(checked_mask(mask, labels), labels)
    leading = (labels == IGNORED).cumprod(dim=1).sum(dim=1, keepdim=True)
    return AfterContext(length - (leading - start).clamp(min=0).minimum(length))
