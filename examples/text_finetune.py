r"""python examples/text_finetune.py

Fine-tunes a Mamba checkpoint to follow instructions, once as it is and once as GrootL, which passes
its states along a tree over the prompt: both with LoRA, from the same weights, on the same batches,
over several seeds. Without an argument it first trains a small Mamba on the sources of Python's
standard library, which are on every machine, and then fine-tunes it on examples/data. Takes about
six minutes on one CPU core.

    --model DIR     a Mamba checkpoint of Hugging Face with its tokenizer, in place of the small one
    --data FILE     your own instructions: a JSON list of {"instruction", "input", "output"}, in
                    which only "input" may be empty; the loss is taken of "output" alone
    --resume        go on after an interruption, to the same losses

Writes curve.png, losses.json and, for each seed, the adapters seed0/mamba and seed0/grootl, with
the small Mamba in pretrained, all in --output. To use an adapter:

    model = GrootLForCausalLM.from_pretrained("outputs/text_finetune/pretrained", tree_scale=0.3)
    model = PeftModel.from_pretrained(model, "outputs/text_finetune/seed0/grootl")
"""

import argparse
import hashlib
import json
import math
import shutil
import time
import warnings
import zipfile
from pathlib import Path
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.data import random_split
from tqdm import tqdm
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from groot_graph.errors import NotANumberError
from groot_graph.models.grootl import IGNORED, GrootLConfig, GrootLForCausalLM

from common import (
    UserError,
    check_range,
    check_same,
    first_line,
    option_of,
    save_figure,
    told_errors,
    write,
)
from texts import read_sources, standard_library, train_tokenizer

# The settings of the small Mamba, and of its training on the standard library.
sources = "*.py"
test_every = 20  # one file in so many is held out
architecture = {"vocab_size": 2048, "hidden_size": 128, "state_size": 8, "num_hidden_layers": 4}
block_length = 256  # tokens of a piece to train on
num_test_blocks = 64  # held-out pieces
pretraining = {"max_steps": 1000, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
save_steps = 100

# The settings of all fine-tunings: their least, greatest and default value, and what they mean.
settings = {
    "seeds": (1, 1000, 3, "fine-tunings of each of the two"),
    "epochs": (1, 10**6, 8, "passes over the records to train on"),
    "batch_size": (1, 10**6, 8, "records at once"),
    "learning_rate": (1e-9, 1.0, 5e-3, "at its highest; it falls to zero along a cosine"),
    "lora_rank": (1, 10**4, 8, "rank of the adapters"),
    "max_length": (2, 10**6, 256, "tokens of prompt and answer; longer answers are cut"),
    "tree_scale": (0.0, 100.0, 0.3, "how much of the tree's states GrootL adds"),
    "tree_window": (1, 10**6, 3, "how many tokens back GrootL may join a token to"),
}
lora_targets = ["in_proj", "x_proj", "out_proj", "embeddings"]
warmup = 0.1  # share of all steps
weight_decay = 0.1
held_out = 1 / 5  # of the records, drawn by the seed
num_answers = 4  # held-out records whose answers are shown
threads = 1  # networks this small gain little from more; real checkpoints use all cores

VARIANTS = {"mamba": "Mamba + LoRA", "grootl": "GrootL + LoRA"}


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message} (--help lists all settings)")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description="Fine-tunes Mamba and GrootL with LoRA.", allow_abbrev=False)
    parser.add_argument("--model", type=Path, metavar="DIR", help="default: a small one, trained")
    data = Path(__file__).parent / "data" / "instructions.json"
    parser.add_argument("--data", type=Path, metavar="FILE", default=data)
    parser.add_argument("--output", type=Path, default=Path("outputs/text_finetune"), metavar="DIR")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints")
    parser.add_argument("--tree-mode", choices=("context", "causal"), default="context")
    for name, (_, _, default, meaning) in settings.items():
        text = f"{meaning} (default: {default})"
        parser.add_argument(option_of(name), type=type(default), default=default, help=text)
    args = parser.parse_args(argv)
    for name, (low, high, _, _) in settings.items():
        check_range(name, getattr(args, name), low, high)
    return args


# A small Mamba that knows Python's sources. -------------------------------------------------------


def pretrain(folder: Path) -> None:
    """Leaves a checkpoint and its tokenizer in the folder, unless they are there."""
    texts = read_sources(standard_library, sources, at_least=2)
    test_texts = texts[::test_every]
    train_texts = [text for number, text in enumerate(texts) if number % test_every]
    digest = hashlib.sha256("".join(train_texts + test_texts).encode()).hexdigest()
    described = {**architecture, **pretraining, "block_length": block_length, "sources": digest}
    claim(folder, described)
    if (folder / "losses.json").exists():
        print(f"goes on from {folder}, which was made with the same settings")
        return

    tokenizer = train_tokenizer(
        train_texts, architecture["vocab_size"], eos_token="<|endoftext|>", pad_token="<|pad|>"
    )
    train_set = to_blocks(train_texts, tokenizer)
    test_set = to_blocks(test_texts, tokenizer)[:num_test_blocks]
    set_seed(0)
    token = tokenizer.eos_token_id
    special = {"bos_token_id": token, "eos_token_id": token, "pad_token_id": tokenizer.pad_token_id}
    model = GrootLForCausalLM(GrootLConfig(**architecture, **special, tree_scale=0))
    print(
        f"trains a Mamba of {model.num_parameters()} parameters on {len(train_texts)} files of "
        f"Python's standard library, {len(train_set) * block_length} tokens"
    )
    losses = fit(
        model, tokenizer, train_set, test_set, folder, "Mamba", seed=0, **pretraining,
        eval_strategy="steps", eval_steps=save_steps, logging_steps=save_steps,
        save_strategy="steps", save_steps=save_steps,
    )  # fmt: skip
    (_, before), *_, (_, after) = losses["held_out"]
    print(f"held-out loss per token: {before:.3f}, after training {after:.3f}")
    print(f"saved checkpoint and tokenizer in {folder}")


def to_blocks(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[dict]:
    """All texts, one after the other, in pieces of the same length."""
    end = [tokenizer.eos_token_id]
    tokens = [token for ids in tokenizer(texts).input_ids for token in ids + end]
    starts = range(0, len(tokens) - block_length + 1, block_length)
    blocks = [tokens[start : start + block_length] for start in starts]
    return [{"input_ids": block, "labels": block} for block in blocks]


# Instructions. ------------------------------------------------------------------------------------


def read_records(path: Path) -> list[dict[str, str]]:
    records = read_json(path)
    if not isinstance(records, list) or len(records) < 5:
        raise UserError(f"{path}: wants a list of at least 5 records")
    for number, record in enumerate(records, start=1):
        check_record(record, f"{path}: record {number}")
    return records


def check_record(record: dict, where: str) -> None:
    if not isinstance(record, dict):
        raise UserError(f"{where} must be an object, found {type(record).__name__}")
    for key in ("instruction", "input", "output"):
        if not isinstance(record.get(key), str):
            raise UserError(f"{where} needs '{key}', a string")
        if key != "input" and not record[key].strip():
            raise UserError(f"{where} has an empty '{key}'")


def prompt_of(record: dict[str, str]) -> str:
    given = f"# Input:\n{record['input']}\n" if record["input"] else ""
    return f"# Instruction: {record['instruction']}\n{given}# Answer:\n"


def encode(
    records: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace
) -> list[dict]:
    """Tokens and labels of each record; the prompt has none, so the loss is of the answer alone."""
    examples, num_cut = [], 0
    for number, record in enumerate(records, start=1):
        # Apart, so that the first token of an answer is the same whatever stands before it.
        prompt, answer = tokenizer(
            [prompt_of(record), record["output"]], add_special_tokens=False
        ).input_ids
        room = args.max_length - len(prompt)
        if room < 1:
            raise UserError(
                f"{args.data}: record {number} has a prompt of {len(prompt)} tokens, which leaves "
                f"none of --max-length {args.max_length} to its answer: shorten it, or allow more"
            )
        answer = [*answer, tokenizer.eos_token_id]
        num_cut += len(answer) > room
        answer = answer[:room]
        labels = [IGNORED] * len(prompt) + answer
        examples.append({"input_ids": prompt + answer, "labels": labels})
    if num_cut:
        print(f"{num_cut} answers are cut at --max-length {args.max_length}")
    return examples


# Training. ----------------------------------------------------------------------------------------


def fit(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    train_set,
    test_set,
    folder: Path,
    title: str,
    seed: int,
    **arguments,
) -> dict[str, list]:
    """Trains, from the last checkpoint on if there is one, and saves what came out in the folder;
    returns the losses by step."""
    checkpoints = folder / "checkpoints"
    bar = tqdm(desc=title, unit="step")
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(checkpoints),
            seed=seed,
            data_seed=seed,
            lr_scheduler_type="cosine",
            warmup_steps=warmup,
            weight_decay=weight_decay,
            eval_on_start=True,
            per_device_eval_batch_size=16,
            label_names=["labels"],
            save_total_limit=2,
            dataloader_pin_memory=torch.cuda.is_available(),
            disable_tqdm=True,
            report_to="none",
            **arguments,
        ),
        DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED),
        train_set,
        test_set,
        compute_metrics=mean_loss,
        preprocess_logits_for_metrics=sum_losses,
        callbacks=[Progress(bar)],
    )
    trainer.remove_callback(PrinterCallback)
    try:
        with bar:
            trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    except NotANumberError as error:
        raise UserError(f"{title} diverged: try a lower --learning-rate") from error
    losses = {
        "held_out": losses_by_step(trainer.state.log_history, "eval_loss_per_token"),
        "training": losses_by_step(trainer.state.log_history, "loss"),
    }
    if not math.isfinite(losses["held_out"][-1][1]):
        raise UserError(f"{title} diverged: try a lower --learning-rate")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # The last of all, for it tells that the training is done.
    write(folder / "losses.json", json.dumps(losses))
    shutil.rmtree(checkpoints)
    return losses


class Progress(TrainerCallback):
    """A bar that shows the losses in place of a line for each."""

    def __init__(self, bar: tqdm):
        self.bar = bar
        self.shown = {}

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.bar.reset(state.max_steps)
        self.bar.n = self.bar.initial = state.global_step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.bar.update()

    def on_log(self, args, state, control, logs: dict, **kwargs) -> None:
        names = {"loss": "loss", "eval_loss_per_token": "held_out"}
        self.shown |= {names[key]: f"{logs[key]:.3f}" for key in names if key in logs}
        self.bar.set_postfix(self.shown)


def sum_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of each text's losses, and of how many tokens."""
    labels = labels[:, 1:]
    losses = F.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
    )
    return torch.stack([losses.sum(dim=1), (labels != IGNORED).sum(dim=1)], dim=1)


def mean_loss(prediction) -> dict[str, float]:
    # The mean over all tokens; Trainer's own is one over batches.
    loss, num_tokens = prediction.predictions.astype("float64").sum(axis=0)
    return {"loss_per_token": loss / num_tokens}


def losses_by_step(log: list[dict], key: str) -> list[list]:
    # A resumed run starts with the loss that was logged last, so a step may come twice.
    losses = {entry["step"]: entry[key] for entry in log if key in entry}
    return [[step, loss] for step, loss in losses.items()]


def last_checkpoint(folder: Path) -> str | None:
    found = folder.glob("checkpoint-*")
    for checkpoint in sorted(found, key=lambda path: -int(path.name.split("-")[1])):
        if is_whole(checkpoint):
            return str(checkpoint)
        print(f"passes over {checkpoint}, which was not written to its end or is damaged")
    return None


def is_whole(checkpoint: Path) -> bool:
    try:
        # Trainer writes it last.
        read_json(checkpoint / "trainer_state.json")
        for file in checkpoint.glob("*.safetensors"):
            safe_open(file, "pt").keys()
        # torch.load does not compare checksums.
        archives = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
        return all(zipfile.ZipFile(checkpoint / name).testzip() is None for name in archives)
    except (UserError, OSError, SafetensorError, zipfile.BadZipFile):
        return False


def finetune(
    variant: str,
    seed: int,
    source: Path,
    examples: list[dict],
    tokenizer: PreTrainedTokenizerBase,
    args: argparse.Namespace,
) -> dict[str, list]:
    """One fine-tuning, unless it is done; returns its losses by step."""
    folder = args.output / f"seed{seed}" / variant
    done = folder / "losses.json"
    if done.exists():
        return read_json(done)
    train_set, test_set = split(examples, seed)
    # Of both variants: the adapters' first weights and the order of the batches.
    set_seed(seed)
    lora = LoraConfig(
        r=args.lora_rank, lora_alpha=2 * args.lora_rank, target_modules=lora_targets,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    model = get_peft_model(load_base(variant, source, args), lora)
    return fit(
        model, tokenizer, train_set, test_set, folder, f"{VARIANTS[variant]}, seed {seed}", seed,
        num_train_epochs=args.epochs, per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate, eval_strategy="epoch", logging_strategy="epoch",
        save_strategy="epoch",
    )  # fmt: skip


def split(records: list, seed: int) -> tuple:
    """Those to train on, and those held out."""
    shares = [1 - held_out, held_out]
    return tuple(random_split(records, shares, torch.Generator().manual_seed(seed)))


def load_base(variant: str, source: Path, args: argparse.Namespace) -> GrootLForCausalLM:
    """The checkpoint as a Mamba, which is GrootL without its tree, or as GrootL."""
    model, info = GrootLForCausalLM.from_pretrained(
        source,
        tree_scale=args.tree_scale if variant == "grootl" else 0.0,
        tree_window=args.tree_window,
        tree_mode=args.tree_mode,
        use_cache=False,
        dtype=torch.float32,
        output_loading_info=True,
    )
    if info["missing_keys"]:
        raise UserError(f"{source}: has no weights for {sorted(info['missing_keys'])[0]}")
    return model


def load_tokenizer(source: Path) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(source)
    if tokenizer.eos_token is None:
        raise UserError(f"{source}: its tokenizer has no eos_token to end an answer with")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


# Files. -------------------------------------------------------------------------------------------


def claim(folder: Path, described: dict) -> None:
    """What is in the folder must have been made with the same settings."""
    path = folder / "settings.json"
    if path.exists():
        check_same(path, read_json(path), described)
    else:
        write(path, json.dumps(described, indent=2))


def read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file in UTF-8 ({error})") from error


# Results. -----------------------------------------------------------------------------------------


def report(losses: dict[str, list[dict]]) -> None:
    """A table of the held-out losses, with one row for each seed, and which of the two is lower."""
    print("held-out loss per token of an answer, before and after fine-tuning:")
    print("".join(["seed".ljust(10), *(name.center(34) for name in VARIANTS.values())]))
    columns = [
        [of_seed["held_out"][place][1] for of_seed in losses[variant]]
        for variant in VARIANTS
        for place in (0, -1)
    ]
    for seed, row in enumerate(zip(*columns, strict=True)):
        print("".join([str(seed).ljust(10), *(f"{loss:.3f}".center(17) for loss in row)]))
    print("".join(["mean".ljust(10), *(spread(column).center(17) for column in columns)]))

    _, mamba, _, grootl = columns
    gaps = [b - a for a, b in zip(mamba, grootl, strict=True)]
    lower = sum(gap < 0 for gap in gaps)
    print(f"GrootL - Mamba, after fine-tuning: {spread(gaps, '+.4f')}")
    print(f"GrootL is lower for {lower} of {len(gaps)} seeds")


def spread(values: list[float], form: str = ".3f") -> str:
    """Mean and standard deviation."""
    text = f"{mean(values):{form}}"
    return f"{text} ± {stdev(values):{form.lstrip('+')}}" if len(values) > 1 else text


def draw(losses: dict[str, list[dict]], path: Path) -> None:
    """Both curves of both variants: the mean over the seeds, and a band of their deviation."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, part in zip(axes, ("held_out", "training"), strict=True):
        for variant, title in VARIANTS.items():
            curves = torch.tensor([of_seed[part] for of_seed in losses[variant]])
            steps, values = curves[0, :, 0], curves[:, :, 1]
            deviation, center = torch.std_mean(values, dim=0, correction=min(1, len(values) - 1))
            ax.plot(steps, center, ".-", label=title)
            ax.fill_between(steps, center - deviation, center + deviation, alpha=0.2)
        ax.set(xlabel="step", ylabel="loss per token of an answer", title=part.replace("_", "-"))
        ax.grid(alpha=0.3)
        ax.legend()
    figure.suptitle(f"mean and deviation over {len(losses['mamba'])} seeds", fontsize=10)
    save_figure(figure, path)


def show_answers(
    records: list[dict[str, str]],
    source: Path,
    tokenizer: PreTrainedTokenizerBase,
    args: argparse.Namespace,
) -> None:
    """What both variants answer to held-out records of the first seed."""
    models = {
        title: PeftModel.from_pretrained(
            load_base(variant, source, args), args.output / "seed0" / variant
        ).eval()
        for variant, title in VARIANTS.items()
    }
    for record in list(split(records, seed=0)[1])[:num_answers]:
        print(f"\n{prompt_of(record)}{record['output']}")
        for title, model in models.items():
            print(f"# {title}:\n{answer(model, tokenizer, record)}")


def answer(model: nn.Module, tokenizer: PreTrainedTokenizerBase, record: dict[str, str]) -> str:
    prompt = tokenizer(prompt_of(record), add_special_tokens=False, return_tensors="pt")
    tokens = model.generate(
        input_ids=prompt.input_ids.to(model.device),
        max_new_tokens=40,
        do_sample=False,
        use_cache=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer.decode(tokens[0, prompt.input_ids.size(1) :], skip_special_tokens=True)


# All of it. ---------------------------------------------------------------------------------------


@told_errors("--resume goes on from the last checkpoint")
def main(argv: list[str] | None = None) -> dict[str, list[dict]]:
    start = time.perf_counter()
    args = parse_arguments(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # peft asks transformers by a name that is going to change.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    check_output(args)
    records = read_records(args.data)
    source = args.model or args.output / "pretrained"
    if args.model is None:
        torch.set_num_threads(threads)
        pretrain(source)
    tokenizer = open_checkpoint(source, args)
    examples = encode(records, tokenizer, args)
    claim(args.output, describe(args, records))

    train_set, test_set = split(records, seed=0)
    print(f"{len(train_set)} records to train on, {len(test_set)} held out")
    losses = {variant: [] for variant in VARIANTS}
    for seed in range(args.seeds):
        for variant in VARIANTS:
            losses[variant].append(finetune(variant, seed, source, examples, tokenizer, args))

    write(args.output / "losses.json", json.dumps(losses))
    draw(losses, args.output / "curve.png")
    show_answers(records, source, tokenizer, args)
    print()
    report(losses)
    print(f"saved adapters, losses.json and curve.png in {args.output}")
    print(f"{time.perf_counter() - start:.0f} s in all")
    return losses


def check_output(args: argparse.Namespace) -> None:
    if args.resume and not args.output.exists():
        raise UserError(f"{args.output}: there is nothing to resume from")
    if not args.resume and (args.output / "settings.json").exists():
        raise UserError(
            f"{args.output} has been used: --resume goes on from it, another --output keeps it"
        )


def describe(args: argparse.Namespace, records: list[dict[str, str]]) -> dict:
    """All that the losses depend on; a resumed run must have the same."""
    return {
        "model": str(args.model.resolve()) if args.model else "pretrained",
        "data": hashlib.sha256(json.dumps(records).encode()).hexdigest(),
        "tree_mode": args.tree_mode,
        **{name: getattr(args, name) for name in settings if name != "seeds"},
    }


def open_checkpoint(source: Path, args: argparse.Namespace) -> PreTrainedTokenizerBase:
    """Its tokenizer; fails if it cannot be fine-tuned."""
    if not (source / "config.json").is_file():
        raise UserError(f"--model {source}: no folder of a checkpoint, for it has no config.json")
    try:
        load_base("grootl", source, args)
        return load_tokenizer(source)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(
            f"--model {source}: no Mamba with its tokenizer ({first_line(error)})"
        ) from error


if __name__ == "__main__":
    main()
