r"""GrootL for the lm-evaluation-harness. The import registers it under the name :obj:`grootl`; the
command line of the harness, with GrootL registered, is::

    python -m groot_graph.models.grootl.lm_eval \
        --model grootl --model_args pretrained=DIR --tasks ...
"""

import logging
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import Collator
except ImportError as error:
    raise ImportError(
        "groot_graph.models.grootl.lm_eval needs the lm-evaluation-harness: "
        'pip install "groot-graph[eval]"'
    ) from error

from groot_graph.models.grootl.config import TREE_SETTINGS
from groot_graph.models.grootl.model import GrootLForCausalLM

logger = logging.getLogger(__name__)

# What the harness makes of a request: its strings, the tokens of the context and those to score.
Request = tuple[tuple[str, str] | None, list[int], list[int]]
# The numbers of the requests that share one forward, their context, and one of the continuations.
Group = tuple[list[int], list[int], list[int]]


@register_model("grootl")
class HarnessGrootL(HFLM):
    r"""A :class:`~groot_graph.models.GrootLForCausalLM` that the lm-evaluation-harness drives.

    * **Log-likelihoods:** the tree is grown over the context of each request, as the published
      evaluation of the `"GrootVL: Tree Topology is All You Need in State Space Model"
      <https://arxiv.org/abs/2406.02395>`_ paper did: the number of tokens that the harness encodes
      it to is handed to the model. Only logits from the last token of the context on are read, so
      no score has heard what it is to predict. Requests share a forward only where their contexts
      are equal, token by token.
    * **Rolling log-likelihoods:** the context of a window is what the harness puts before its first
      scored token: one token, with which the tree is the chain, or, in the last window of a text
      longer than `max_length`, what it repeats of the text before.
    * **Generation:** the tree is grown over the prompt.

    `max_length` is that of the tokenizer where not given, and else 2048, since a Mamba has no
    longest text. A longer context loses its first tokens, with a warning, as everywhere in the
    harness; the context length is that of what is left. A continuation that does not fit is an
    error.

    Args:
        pretrained (str or GrootLForCausalLM): Name or folder of a checkpoint of Mamba or GrootL, or
            a model, in which case `tokenizer` has to be given, too.
        **kwargs (optional): Arguments of :class:`lm_eval.models.huggingface.HFLM`, such as
            `tokenizer`, `batch_size`, `max_length`, `device` (default: a GPU if there is one),
            `dtype` or `peft`, and with a checkpoint those of
            :class:`~groot_graph.models.grootl.GrootLConfig`, such as `tree_scale`.

    Raises:
        TypeError: If `pretrained` is a model, but no GrootL.
        ValueError: If the checkpoint is of another kind of model, or if settings of the tree are
            given for a model that has its own.

    Example:
        >>> from lm_eval.api.instance import Instance
        >>> from tokenizers import Tokenizer
        >>> from tokenizers.models import WordLevel
        >>> from tokenizers.pre_tokenizers import Whitespace
        >>> from transformers import PreTrainedTokenizerFast
        >>> from groot_graph.models.grootl import GrootLConfig, GrootLForCausalLM
        >>> from groot_graph.models.grootl.lm_eval import HarnessGrootL
        >>> words = Tokenizer(WordLevel({"<end>": 0, "the": 1, "cat": 2, "sat": 3}, "<end>"))
        >>> words.pre_tokenizer = Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
        >>> config = GrootLConfig(vocab_size=4, hidden_size=16, num_hidden_layers=2)
        >>> lm = HarnessGrootL(GrootLForCausalLM(config), tokenizer=tokenizer, batch_size=8)
        >>> request = Instance("loglikelihood", {}, arguments=("the cat", " sat"), idx=0)
        >>> [(log_likelihood, is_greedy)] = lm.loglikelihood([request], disable_tqdm=True)
        >>> log_likelihood < 0
        True
    """

    AUTO_MODEL_CLASS = GrootLForCausalLM

    def __init__(self, pretrained: "str | GrootLForCausalLM", **kwargs):
        if not isinstance(pretrained, str):
            _check_model(pretrained, kwargs)
        kwargs.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(pretrained, backend="causal", **kwargs)

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        answers: list = [None] * len(requests)
        groups = self._groups(requests)
        is_quiet = disable_tqdm or self.rank != 0
        with tqdm(total=len(requests), desc="log-likelihoods", disable=is_quiet) as bar:
            for batch in self._batches(groups, override_bs):
                for (members, *_), log_probs in zip(batch, self._log_probs(batch), strict=True):
                    for number in members:
                        answers[number] = self._answer(requests[number], log_probs)
                    bar.update(len(members))
        return answers

    def _groups(self, requests: list[Request]) -> list[Group]:
        r"""Requests that differ in their last token alone, the longest first."""
        groups: dict[Any, Group] = {}
        for number, (_, context, continuation) in enumerate(requests):
            self._check_lengths(context, continuation)
            # Where the context ends decides about the tree, so the whole text is no key.
            key = (tuple(context), tuple(continuation[:-1])) if self.logits_cache else number
            groups.setdefault(key, ([], context, continuation))[0].append(number)
        return sorted(groups.values(), key=lambda group: -len(group[1]) - len(group[2]))

    def _check_lengths(self, context: list[int], continuation: list[int]) -> None:
        if not context:
            raise ValueError("a context must have at least one token, got none")
        if not 1 <= len(continuation) <= self.max_length:
            raise ValueError(
                f"a continuation must have 1 to {self.max_length} tokens, the 'max_length', got "
                f"{len(continuation)}"
            )

    def _batches(self, groups: list[Group], override_bs: int | None) -> Iterator[list[Group]]:
        if self.batch_size != "auto":
            return Collator.get_chunks(groups, n=self.batch_size)
        if override_bs is not None:
            return Collator.get_chunks(groups, n=override_bs)
        # What was found for other requests may be too much for longer ones.
        self.batch_sizes: dict[int, int] = {}
        return Collator.get_chunks(groups, fn=self._batch_scheduler)

    def _log_probs(self, batch: list[Group]) -> list[Tensor]:
        r"""Those of all tokens at the places of each continuation."""
        texts, context_lengths = [], []
        for _, context, continuation in batch:
            num_cut = max(len(context) + len(continuation) - 1 - self.max_length, 0)
            if num_cut > 0:
                logger.warning(
                    f"a context of {len(context)} and a continuation of {len(continuation)} tokens "
                    f"exceed the 'max_length' of {self.max_length}: the first {num_cut} are cut off"
                )
            text = (context + continuation)[num_cut:-1]
            texts.append(torch.tensor(text, device=self.device))
            context_lengths.append(len(context) - num_cut)
        logits = self._model_call(
            _pad_left(texts),
            _pad_left([torch.ones_like(text) for text in texts]),
            context_lengths=context_lengths,
            logits_to_keep=max(len(continuation) for *_, continuation in batch),
        )
        log_probs = F.log_softmax(logits, dim=-1, dtype=self.softmax_dtype)
        return [
            values[-len(continuation) :]
            for values, (*_, continuation) in zip(log_probs, batch, strict=True)
        ]

    @torch.no_grad()
    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, **kwargs) -> Tensor:
        # The harness calls it without a mask to find the largest batch that fits.
        with torch.autocast(
            self.device.type, self.mixed_precision_dtype, self.mixed_precision_dtype is not None
        ):
            return self.model(inps, attention_mask=attn_mask, use_cache=False, **kwargs).logits

    def _answer(self, request: Request, log_probs: Tensor) -> tuple[float, bool]:
        strings, _, continuation = request
        tokens = torch.tensor(continuation, device=log_probs.device)
        log_likelihood = log_probs.gather(1, tokens[:, None]).sum()
        answer = float(log_likelihood), log_probs.argmax(dim=1).equal(tokens)
        # Windows of a rolling log-likelihood have none; the harness stores their sum.
        if strings is not None:
            self.cache_hook.add_partial("loglikelihood", strings, answer)
        return answer


def _check_model(model: torch.nn.Module, kwargs: dict) -> None:
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    # Also one that an adapter wraps.
    if not any(isinstance(module, GrootLForCausalLM) for module in modules):
        raise TypeError(
            "'pretrained' must be a str or a GrootLForCausalLM, got "
            f"{type(model).__name__}; GrootLForCausalLM.from_mamba makes one of a Mamba"
        )
    for name in TREE_SETTINGS:
        if name in kwargs:
            raise ValueError(f"'{name}' must be left out with a model, which has its own")


def _pad_left(rows: list[Tensor]) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_side="left")


if __name__ == "__main__":
    cli_evaluate()
