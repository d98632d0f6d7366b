r"""Python's standard library, which is on every machine, as texts to learn, and a tokenizer."""

import sysconfig
from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from common import UserError

standard_library = Path(sysconfig.get_paths()["stdlib"])


def read_sources(folder: Path, pattern: str, at_least: int) -> list[str]:
    files = sorted(folder.glob(pattern))
    if len(files) < at_least:
        raise UserError(f"{folder}: too few files to learn from; give a --model DIR")
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


def train_tokenizer(
    texts: list[str], vocab_size: int, eos_token: str, pad_token: str, **options
) -> PreTrainedTokenizerFast:
    """Byte pairs, as the tokens of Mamba are."""
    tokens = Tokenizer(BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(dict.fromkeys([eos_token, pad_token])),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token=eos_token, pad_token=pad_token, **options
    )
