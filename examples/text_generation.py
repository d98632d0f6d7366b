r"""python examples/text_generation.py "def read_lines(path):"

Goes on with a text, and draws the trees that GrootL grows over it. Without --model a small network
first learns from the source of Python's standard library, in about a minute on one CPU core, and is
kept in outputs/text_generation for the next time.

    PROMPT ...              one text, or several, which are gone on with together
    --model DIR             a checkpoint of Mamba or GrootL, with its tokenizer
    --mode causal           the tree in which no token hears a later one, not the published one
    --layer N ...           the layers whose trees to draw (default: 0 -1, the first and the last)

Writes outputs/text_tree.png.
"""

import argparse
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import trange
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging

from groot_graph import Forest
from groot_graph.analysis import scan_of_layer
from groot_graph.models import GrootLForCausalLM
from groot_graph.models.grootl import GrootLConfig
from groot_graph.visualization import plot_text_tree

from common import UserError, check_seed, first_line, option_of, replacing, save_figure, told_errors
from texts import read_sources, standard_library, train_tokenizer

# The settings of the small network and its training.
sources = standard_library
vocab_size = 1024
hidden_size = 128
num_layers = 2
steps = 400
batch_size = 8
num_tokens = 128  # of a piece of text to learn from
longest_context = 64  # of these, before those to predict
learning_rate = 1e-2
held_out = 10  # every tenth file
num_test_pieces = 200
training_seed = 0
threads = 1  # a network this small gains little from more; the same bits on any number of cores

end = "<|endoftext|>"
ignored = -100


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Goes on with a prompt, and draws its trees.")
    parser.add_argument("prompts", nargs="*", default=["def read_lines(path):"], metavar="PROMPT")
    parser.add_argument("--model", type=Path, metavar="DIR")
    parser.add_argument("--mode", choices=("context", "causal"), help="default: the checkpoint's")
    parser.add_argument("--max-new-tokens", type=int, default=60)
    parser.add_argument("--max-prompt-tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.7, help="0: the likeliest token")
    parser.add_argument("--num-beams", type=int, default=1)
    parser.add_argument("--layer", type=int, nargs="+", default=[0, -1], metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at random")
    parser.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR")
    args = parser.parse_args(argv)
    for name in ("max_new_tokens", "max_prompt_tokens", "num_beams"):
        if getattr(args, name) < 1:
            raise UserError(f"{option_of(name)} must be at least 1")
    check_seed(args.seed)
    if not 0 <= args.temperature < float("inf"):
        raise UserError(f"--temperature must be 0 or more, got {args.temperature}")
    if "" in args.prompts:
        raise UserError("the prompt is empty: there is nothing to go on with")
    return args


# The model: a checkpoint, or a small one. ---------------------------------------------------------


def load(folder: Path, mode: str | None) -> tuple[GrootLForCausalLM, PreTrainedTokenizerFast]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    given = {} if mode is None else {"tree_mode": mode}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, padding_side="left", trust_remote_code=False
        )
        model, info = GrootLForCausalLM.from_pretrained(folder, output_loading_info=True, **given)
    except UNREADABLE as error:
        raise UserError(
            f"{folder}: not a checkpoint of Mamba or GrootL ({first_line(error)})"
        ) from error
    if info["missing_keys"]:
        raise UserError(f"{folder}: has no weights for {min(info['missing_keys'])}")
    if model.config.tree_scale == 0:
        raise UserError(f"{folder}: grows no trees to draw, as its tree_scale is 0")
    known, learned = len(tokenizer), model.config.vocab_size
    if known > learned:
        raise UserError(f"{folder}: has a tokenizer of {known} tokens, weights for {learned}")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model.eval(), tokenizer


UNREADABLE = (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError)


def train(folder: Path, mode: str) -> None:
    """Puts a small model into the folder that has learned how sources of Python go on."""
    texts = read_sources(sources, "*.py", at_least=held_out)
    test_texts = texts[::held_out]
    del texts[::held_out]
    tokenizer = train_tokenizer(
        texts, vocab_size, eos_token=end, pad_token=end, padding_side="left"
    )
    stream, test_stream = (
        torch.tensor(tokenizer.encode(end.join(part))) for part in (texts, test_texts)
    )
    print(f"{len(texts)} files of the standard library to learn from: {len(stream)} tokens")
    torch.manual_seed(training_seed)
    special = tokenizer.eos_token_id
    config = GrootLConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        tree_mode=mode,
        bos_token_id=special,
        eos_token_id=special,
        pad_token_id=special,
    )
    model = GrootLForCausalLM(config)
    fit(model, stream)
    loss = held_out_loss(model, test_stream)
    print(f"loss on {len(test_texts)} other files: {loss:.2f} nats per token")
    with replacing(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def fit(model: GrootLForCausalLM, stream: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.1
    )
    pieces = stream.unfold(0, num_tokens, 1)
    model.train()
    with trange(steps, unit="step") as bar:
        for _ in bar:
            tokens = pieces[torch.randint(len(pieces), (batch_size,))]
            loss = loss_after(torch.randint(longest_context, (batch_size,)), model, tokens)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.2f}")


def loss_after(context_lengths: Tensor, model: GrootLForCausalLM, tokens: Tensor) -> Tensor:
    """Of the tokens after the contexts alone, as those of a context may have heard the next one."""
    is_context = torch.arange(num_tokens) < context_lengths[:, None]
    return model(tokens, labels=tokens.masked_fill(is_context, ignored)).loss


@torch.no_grad()
def held_out_loss(model: GrootLForCausalLM, stream: Tensor) -> float:
    model.eval()
    pieces = stream.unfold(0, num_tokens, len(stream) // num_test_pieces)[:num_test_pieces]
    context_lengths = torch.full((len(pieces),), longest_context // 2)
    return float(loss_after(context_lengths, model, pieces))


# Prompts: their tokens, what follows them, their trees. -------------------------------------------


def encode(prompts: list[str], tokenizer: PreTrainedTokenizerFast, longest: int) -> list[list[int]]:
    texts = tokenizer(prompts).input_ids
    for prompt, tokens in zip(prompts, texts, strict=True):
        if not tokens:
            raise UserError(f"the prompt {prompt!r} has no tokens")
        if len(tokens) > longest:
            raise UserError(
                f"the prompt {prompt[:20]!r}... is too long: {len(tokens)} tokens, more than the "
                f"{longest} of --max-prompt-tokens"
            )
    return texts


def go_on(model, tokenizer, prompts: list[list[int]], args: argparse.Namespace) -> list[str]:
    inputs = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    sampling = {"do_sample": args.temperature > 0}
    if args.temperature > 0:
        sampling["temperature"] = args.temperature
    torch.manual_seed(args.seed)
    start = time.perf_counter()
    tokens = model.generate(
        inputs.input_ids,
        attention_mask=inputs.attention_mask,
        max_new_tokens=args.max_new_tokens,
        num_beams=args.num_beams,
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )
    seconds = time.perf_counter() - start
    new = tokens[:, inputs.input_ids.size(1) :]
    count = int((new != tokenizer.pad_token_id).sum())
    print(f"{count} tokens in {seconds:.2f} s: {count / seconds:.0f} tokens per second")
    return tokenizer.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def grow_tree(model: GrootLForCausalLM, tokens: list[int], layer: int) -> Forest:
    forest, _ = scan_of_layer(model, torch.tensor([tokens]), layer=layer, use_cache=False)
    return forest


def check_layers(model: GrootLForCausalLM, layers: list[int]) -> list[int]:
    """Their numbers from the first one on."""
    count = model.config.num_hidden_layers
    for layer in layers:
        if not -count <= layer < count:
            raise UserError(f"--layer {layer}: the network has layers 0 to {count - 1}")
    return [layer % count for layer in layers]


def draw(path: Path, panels: list[tuple[str, list[str], Forest]]) -> None:
    """One below the other: a title, the words, their tree."""
    num_letters = max(len("".join(words)) + len(words) for _, words, _ in panels)
    num_words = max(len(words) for _, words, _ in panels)
    width = 0.11 * num_letters if num_letters < 200 else 0.2 * num_words
    figure = Figure(figsize=(max(width, 4), 2.2 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False)
    for ax, (title, words, forest) in zip(axes.flat, panels, strict=True):
        plot_text_tree(words, forest, ax=ax)
        ax.set_title(title, fontsize=10, loc="left")
    save_figure(figure, path)


# All of it. ---------------------------------------------------------------------------------------


@told_errors()
def main(argv: list[str] | None = None) -> list[str]:
    args = parse_arguments(argv)
    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    folder = args.model
    if folder is None:
        mode = args.mode or "context"
        folder = args.output / "text_generation" / mode
        if not folder.exists():
            train(folder, mode)
    model, tokenizer = load(folder, args.mode)
    layers = check_layers(model, args.layer)
    prompts = encode(args.prompts, tokenizer, args.max_prompt_tokens)

    panels = [
        (f"layer {layer}", words_of(tokens, tokenizer), grow_tree(model, tokens, layer))
        for tokens in prompts
        for layer in layers
    ]
    path = args.output / "text_tree.png"
    draw(path, panels)
    continuations = go_on(model, tokenizer, prompts, args)
    for prompt, continuation in zip(args.prompts, continuations, strict=True):
        print(f"--- {prompt[-50:]!r} goes on:\n{continuation}")
    print(f"saved {path}")
    return continuations


def words_of(tokens: list[int], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    words = [tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in tokens]
    return [word.replace(" ", "·") for word in words]


if __name__ == "__main__":
    main()
