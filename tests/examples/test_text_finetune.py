import ast
import builtins
import gc
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import random_split
from transformers import MambaConfig, MambaForCausalLM

from examples import text_finetune
from examples.text_finetune import main
from groot_graph.models.grootl import GrootLForCausalLM
from tests.equipment.failing import fails, fails_at_once

EXAMPLE = Path(text_finetune.__file__)
SHIPPED = json.loads((EXAMPLE.parent / "data" / "instructions.json").read_text())
RECORDS = [
    {"instruction": f"Add {number} to x.", "input": "x = 1\n" * (number % 3), "output": output}
    for number, output in enumerate(["x + 0", "x + 1 + 0", "x", "y", "4 + x", "x+5", "x + 6"])
]
NUM_TRAIN = 6
# Three batches an epoch, of texts of several lengths.
SETTINGS = {
    "--seeds": 1,
    "--epochs": 2,
    "--batch-size": 2,
    "--learning-rate": 0.05,
    "--lora-rank": 2,
    "--max-length": 96,
}
SMALL = {
    "sources": "co*.py",
    "architecture": {
        "vocab_size": 300,
        "hidden_size": 16,
        "state_size": 4,
        "num_hidden_layers": 2,
    },
    "block_length": 16,
    "num_test_blocks": 4,
    "pretraining": {"max_steps": 5, "per_device_train_batch_size": 2, "learning_rate": 1e-2},
    "save_steps": 2,
    "num_answers": 1,
}


@pytest.fixture(autouse=True, scope="module")
def small():
    """A small Mamba, and the settings of transformers as they were."""
    verbosity, threads = transformers.utils.logging.get_verbosity(), torch.get_num_threads()
    torch.set_num_threads(1)
    # Trainer collects garbage at its start, which takes longer the more has been imported.
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(text_finetune, name, value)
        yield
    transformers.utils.logging.set_verbosity(verbosity)
    transformers.utils.logging.enable_progress_bar()
    torch.set_num_threads(threads)
    gc.unfreeze()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "own.json"
    path.write_text(json.dumps(RECORDS))
    return path


@pytest.fixture(scope="module")
def base(small, tmp_path_factory):
    """A trained small Mamba with its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    text_finetune.pretrain(folder)
    return folder


def options(data, output, *flags, **changed):
    given = SETTINGS | {"--" + name.replace("_", "-"): value for name, value in changed.items()}
    return [
        f"--data={data}",
        f"--output={output}",
        *(f"{name}={value}" for name, value in given.items()),
        *flags,
    ]


@pytest.fixture
def run(base, data, tmp_path, monkeypatch):
    """A run without its picture and answers."""
    for name in ("draw", "show_answers"):
        monkeypatch.setattr(text_finetune, name, lambda *args: None)

    def run(*flags, output="out", data=data, model=base, **changed):
        return main(options(data, tmp_path / output, *flags, model=model, **changed))

    return run


@pytest.fixture(scope="module")
def whole(base, data, tmp_path_factory):
    """The folder of a run from start to end."""
    output = tmp_path_factory.mktemp("whole") / "out"
    main(options(data, output, model=base))
    return output


def read(path):
    return json.loads(path.read_text())


def files_of(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def interrupt_after(monkeypatch, num_steps):
    """Of all trainings together; returns the list that the steps are noted in."""
    steps = []
    on_step_end = text_finetune.Progress.on_step_end

    def count(self, args, state, control, **kwargs):
        steps.append(state.global_step)
        if len(steps) == num_steps:
            raise KeyboardInterrupt
        on_step_end(self, args, state, control, **kwargs)

    monkeypatch.setattr(text_finetune.Progress, "on_step_end", count)
    return steps


def is_interrupted(run):
    with pytest.raises(SystemExit) as exit_info:
        run()
    return exit_info.value.code == 130


# The whole example. -------------------------------------------------------------------------------


def test_both_variants_are_trained_and_compared(data, tmp_path, capsys):
    losses = main(options(data, tmp_path / "out", seeds=2))
    printed = capsys.readouterr()
    assert "on 9 files of Python's standard library" in printed.out
    assert "6 records to train on, 1 held out" in printed.out
    assert "# Mamba + LoRA:" in printed.out and "# GrootL + LoRA:" in printed.out
    assert "6/6" in printed.err and "GrootL + LoRA, seed 1" in printed.err
    for seed in range(2):
        row = next(line for line in printed.out.splitlines() if line.startswith(f"{seed}   "))
        pairs = [losses[variant][seed]["held_out"] for variant in ("mamba", "grootl")]
        shown = [f"{loss:.3f}" for pair in pairs for loss in (pair[0][1], pair[-1][1])]
        assert row.split() == [str(seed), *shown]
    gaps = [
        b["held_out"][-1][1] - a["held_out"][-1][1]
        for a, b in zip(losses["mamba"], losses["grootl"], strict=True)
    ]
    assert f"GrootL - Mamba, after fine-tuning: {sum(gaps) / 2:+.4f} ± " in printed.out
    assert f"GrootL is lower for {sum(gap < 0 for gap in gaps)} of 2 seeds" in printed.out

    assert read(tmp_path / "out" / "losses.json") == losses
    with Image.open(tmp_path / "out" / "curve.png") as picture:
        assert picture.width > 500
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "curve.png",
        "losses.json",
        "pretrained",
        "seed0",
        "seed1",
        "settings.json",
    ]
    assert list((tmp_path / "out").rglob("*.bin")) == []


def test_losses_fall_and_come_with_their_steps(whole):
    for of_seeds in read(whole / "losses.json").values():
        (of_seed,) = of_seeds
        assert [step for step, _ in of_seed["held_out"]] == [0, 3, 6]
        assert [step for step, _ in of_seed["training"]] == [3, 6]
        assert of_seed["training"][1][1] < of_seed["training"][0][1]


def test_without_the_tree_both_variants_are_one(run):
    losses = run(tree_scale=0)
    assert losses["mamba"] == losses["grootl"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("changed", [{}, {"tree_mode": "causal"}, {"tree_window": 1}], ids=str)
def test_the_tree_makes_a_difference(run, changed):
    # At the scale shipped, a tenth of this, the losses differ by little more than rounding.
    large_tree = {"epochs": 1, "tree_scale": 3}
    losses = run(**large_tree, **changed)
    assert losses["mamba"] != losses["grootl"]
    before = [of_seed[0]["held_out"][0] for of_seed in losses.values()]
    unchanged = run(**large_tree, output="unchanged").values()
    shipped = [of_seed[0]["held_out"][0] for of_seed in unchanged]
    assert before[0] == shipped[0]
    assert (before[1] == shipped[1]) == (changed == {})


def held_out_loss(model, tokenizer, records):
    """Text for text, without padding, and with the prompt as context."""
    losses, num_tokens = 0.0, 0
    for record in records:
        prompt = tokenizer(text_finetune.prompt_of(record)).input_ids
        answer = [*tokenizer(record["output"]).input_ids, tokenizer.eos_token_id]
        tokens = torch.tensor([prompt + answer])
        with torch.no_grad():
            logits = model(input_ids=tokens, context_lengths=len(prompt)).logits.double()
        scores = logits[0, len(prompt) - 1 : -1].log_softmax(dim=-1)
        losses -= scores.gather(1, torch.tensor(answer)[:, None]).sum().item()
        num_tokens += len(answer)
    return losses / num_tokens


def test_adapters_are_loaded_as_the_docstring_says(run, base, tmp_path, monkeypatch):
    monkeypatch.setattr(text_finetune, "held_out", 1 / 2)
    losses = run("--seeds=2")
    for seed in range(2):
        shares = random_split(RECORDS, [0.5, 0.5], torch.Generator().manual_seed(seed))
        for variant, scale in {"mamba": 0.0, "grootl": 0.3}.items():
            folder = tmp_path / "out" / f"seed{seed}" / variant
            model = GrootLForCausalLM.from_pretrained(base, tree_scale=scale).eval()
            tokenizer = text_finetune.load_tokenizer(folder)
            (_, before), *_, (_, after) = losses[variant][seed]["held_out"]
            assert held_out_loss(model, tokenizer, shares[1]) == pytest.approx(before, abs=1e-5)
            model = PeftModel.from_pretrained(model, folder).eval()
            assert held_out_loss(model, tokenizer, shares[1]) == pytest.approx(after, abs=1e-5)


def test_adapters_are_of_all_four_projections(whole):
    adapter = load_file(whole / "seed0" / "grootl" / "adapter_model.safetensors")
    found = Counter(name.split(".lora_")[0].split(".")[-1] for name in adapter)
    assert found == {"in_proj": 4, "x_proj": 4, "out_proj": 4, "embeddings": 2}
    assert all(value.abs().max() > 0 for value in adapter.values())


def test_a_checkpoint_of_hugging_face(run, base, tmp_path, capsys):
    torch.manual_seed(0)
    config = MambaConfig(**SMALL["architecture"], tie_word_embeddings=False)
    mamba = MambaForCausalLM(config).eval()
    mamba.save_pretrained(tmp_path / "mamba")
    tokenizer = text_finetune.load_tokenizer(base)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "mamba")
    losses = run("--epochs=1", model=tmp_path / "mamba")
    assert "standard library" not in capsys.readouterr().out
    ((_, before), _) = losses["mamba"][0]["held_out"]
    records = text_finetune.split(RECORDS, seed=0)[1]
    bare = lambda input_ids, context_lengths: mamba(input_ids)  # noqa: E731
    assert held_out_loss(bare, tokenizer, records) == pytest.approx(before, abs=1e-5)


def test_labels_are_of_the_answer_alone(base, data):
    args = text_finetune.parse_arguments(options(data, "out"))
    tokenizer = text_finetune.load_tokenizer(base)
    for record, example in zip(
        RECORDS, text_finetune.encode(RECORDS, tokenizer, args), strict=True
    ):
        num_prompt = example["labels"].count(-100)
        prompt, answer = example["input_ids"][:num_prompt], example["labels"][num_prompt:]
        assert tokenizer.decode(prompt) == text_finetune.prompt_of(record)
        assert tokenizer.decode(answer) == record["output"] + tokenizer.eos_token
        assert example["input_ids"] == prompt + answer


def test_long_answers_are_cut(base, data, tmp_path, capsys):
    args = text_finetune.parse_arguments(options(data, "out"))
    tokenizer = text_finetune.load_tokenizer(base)
    record = {"instruction": "Count.", "input": "", "output": "1, 2, 3, " * 50}
    (example,) = text_finetune.encode([record], tokenizer, args)
    assert len(example["input_ids"]) == len(example["labels"]) == 96
    assert example["labels"][-1] != tokenizer.eos_token_id
    assert "1 answers are cut at --max-length 96" in capsys.readouterr().out


# Interruptions. -----------------------------------------------------------------------------------


@pytest.mark.full
# 6 steps of Mamba and 6 of GrootL, with a checkpoint after every third.
@pytest.mark.parametrize("num_steps, num_lost", [(2, 2), (10, 1), (12, 3)])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    run, whole, tmp_path, monkeypatch, capsys, num_steps, num_lost
):
    with monkeypatch.context() as patch:
        interrupt_after(patch, num_steps)
        assert is_interrupted(run)
    assert "--resume goes on" in capsys.readouterr().err

    load = torch.load
    loaded = []

    def load_safely(*args, weights_only=False, **kwargs):
        loaded.append(args[0])
        assert weights_only
        return load(*args, weights_only=weights_only, **kwargs)

    monkeypatch.setattr(torch, "load", load_safely)
    steps = interrupt_after(monkeypatch, -1)
    run("--resume")
    assert len(steps) == 12 - num_steps + num_lost
    assert (loaded != []) == (num_steps > 3)
    assert read(tmp_path / "out" / "losses.json") == read(whole / "losses.json")
    for variant in ("mamba", "grootl"):
        place = Path("seed0") / variant / "adapter_model.safetensors"
        assert (tmp_path / "out" / place).read_bytes() == (whole / place).read_bytes()


def test_an_interruption_between_training_and_saving(run, whole, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(text_finetune, "losses_by_step", interrupted)
        assert is_interrupted(run)
    run("--resume")
    assert read(tmp_path / "out" / "losses.json") == read(whole / "losses.json")


@pytest.mark.full
def test_an_interrupted_pretraining_goes_on_to_the_same_bits(base, tmp_path, monkeypatch, data):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4)
        assert is_interrupted(lambda: main(options(data, tmp_path / "out")))
    # From the second step on, for the checkpoint of the fourth was not written.
    steps = interrupt_after(monkeypatch, -1)
    text_finetune.pretrain(tmp_path / "out" / "pretrained")
    assert steps == [3, 4, 5]
    found, wanted = (
        (folder / "model.safetensors").read_bytes()
        for folder in (tmp_path / "out" / "pretrained", base)
    )
    assert found == wanted


def test_a_finished_pretraining_is_used_again(base, capsys):
    before = files_of(base)
    text_finetune.pretrain(base)
    assert "made with the same settings" in capsys.readouterr().out
    assert files_of(base) == before


def test_a_pretraining_with_other_settings_is_kept(base, monkeypatch):
    before = files_of(base)
    monkeypatch.setattr(text_finetune, "block_length", 8)
    with pytest.raises(text_finetune.UserError, match="block_length 16, this run has 8"):
        text_finetune.pretrain(base)
    assert files_of(base) == before


def flip_a_bit(path):
    (state, *_) = torch.load(path, weights_only=True)["state"].values()
    content = bytearray(path.read_bytes())
    content[content.index(state["exp_avg"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_checkpoint_is_passed_over(run, whole, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(text_finetune, "losses_by_step", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run()
    checkpoints = tmp_path / "out" / "seed0" / "mamba" / "checkpoints"
    newest = checkpoints / "checkpoint-6"
    assert text_finetune.last_checkpoint(checkpoints) == str(newest)
    for name, damage in [
        ("trainer_state.json", Path.unlink),
        ("trainer_state.json", cut),
        ("optimizer.pt", flip_a_bit),
        ("scheduler.pt", Path.unlink),
        ("rng_state.pth", cut),
        ("adapter_model.safetensors", cut),
    ]:
        before = (newest / name).read_bytes()
        damage(newest / name)
        assert text_finetune.last_checkpoint(checkpoints) == str(checkpoints / "checkpoint-3")
        if name != "adapter_model.safetensors":
            (newest / name).write_bytes(before)
    steps = interrupt_after(monkeypatch, -1)
    run("--resume")
    assert steps == [4, 5, 6, 1, 2, 3, 4, 5, 6]
    assert f"passes over {newest}, which was not written to its end" in capsys.readouterr().out
    assert read(tmp_path / "out" / "losses.json") == read(whole / "losses.json")


def test_a_finished_run_is_only_told_again(run, monkeypatch, tmp_path):
    losses = run("--epochs=1")
    before = files_of(tmp_path / "out" / "seed0")
    steps = interrupt_after(monkeypatch, -1)
    assert run("--epochs=1", "--resume") == losses
    assert steps == [] and files_of(tmp_path / "out" / "seed0") == before


def test_what_must_not_be_resumed(run, tmp_path, capsys):
    fails_at_once(capsys, lambda: run("--resume"), "there is nothing to resume from")
    assert not (tmp_path / "out").exists()
    run("--epochs=1")
    before = files_of(tmp_path / "out")
    fails_at_once(capsys, run, tmp_path / "out", "--resume goes on", "another --output")
    other = lambda: run("--resume", "--epochs=1", "--lora-rank=3")  # noqa: E731
    fails_at_once(capsys, other, "lora_rank 2, this run has 3")
    assert files_of(tmp_path / "out") == before


# Bad input. ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option, message",
    [
        ("--nonsense=1", "unrecognized arguments: --nonsense=1"),
        ("--epoch=3", "unrecognized arguments: --epoch=3"),
        ("--epochs=many", "--epochs: invalid int value: 'many'"),
        ("--epochs=0", "--epochs must lie from 1 to 1000000, got 0"),
        ("--learning-rate=nan", "--learning-rate must lie from"),
        ("--tree-scale=-1", "--tree-scale must lie from 0.0 to 100.0, got -1.0"),
        ("--tree-mode=star", "--tree-mode: invalid choice: 'star'"),
    ],
)
def test_bad_settings_are_told_in_one_line(run, tmp_path, capsys, option, message):
    fails_at_once(capsys, lambda: run(option), message)
    assert not (tmp_path / "out").exists()


def without(key):
    return {name: value for name, value in RECORDS[0].items() if name != key}


@pytest.mark.parametrize(
    "third, message",
    [
        (without("output"), "record 3 needs 'output', a string"),
        (without("input"), "record 3 needs 'input', a string"),
        (without("instruction"), "record 3 needs 'instruction', a string"),
        (RECORDS[0] | {"output": 5}, "record 3 needs 'output', a string"),
        (RECORDS[0] | {"output": " \n"}, "record 3 has an empty 'output'"),
        (RECORDS[0] | {"instruction": ""}, "record 3 has an empty 'instruction'"),
        (["a", "b", "c"], "record 3 must be an object, found list"),
        (RECORDS[0] | {"input": "x" * 300}, "record 3 has a prompt of"),
    ],
    ids=str,
)
def test_bad_records_are_told_in_one_line(run, tmp_path, capsys, third, message):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([*RECORDS[:2], third, *RECORDS[2:]]))
    fails_at_once(capsys, lambda: run(data=path), path, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content, message",
    [
        (b"{", "not a JSON file"),
        (b"\xff\xfe", "not a JSON file"),
        (b"{}", "wants a list of at least 5 records"),
        (json.dumps(RECORDS[:4]).encode(), "wants a list of at least 5 records"),
    ],
    ids=["broken", "bytes", "object", "few"],
)
def test_bad_files_are_told_in_one_line(run, tmp_path, capsys, content, message):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    fails_at_once(capsys, lambda: run(data=path), path, message)
    fails_at_once(capsys, lambda: run(data=tmp_path / "none.json"), "none.json")


@pytest.fixture
def copy(base, tmp_path):
    """A checkpoint to damage."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def set_type(folder, name):
    config = read(folder / "config.json") | {"model_type": name}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: set_type(folder, "gpt2"), "got 'gpt2'"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no file named"),
        (lambda folder: cut(folder / "model.safetensors"), "no Mamba with its tokenizer"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no Mamba with its tokenizer"),
    ],
    ids=["config", "another model", "weights", "cut weights", "tokenizer"],
)
def test_bad_checkpoints_are_told_in_one_line(run, copy, tmp_path, capsys, damage, message):
    damage(copy)
    fails_at_once(capsys, lambda: run(model=copy), copy, message)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_all_weights(run, copy, capsys):
    weights = load_file(copy / "model.safetensors")
    del weights["backbone.layers.1.mixer.D"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    fails_at_once(capsys, lambda: run(model=copy), copy, "backbone.layers.1.mixer.D")


@pytest.mark.parametrize("variant", ["mamba", "grootl"])
def test_a_divergence_is_told_in_one_line(run, copy, monkeypatch, capsys, variant):
    weights = load_file(copy / "model.safetensors")
    weights["backbone.layers.0.norm.weight"].fill_(torch.nan)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(text_finetune, "VARIANTS", {variant: "This one"})
    fails(capsys, lambda: run(model=copy), "This one, seed 0 diverged: try a lower --learning-rate")


def test_a_python_without_sources(monkeypatch, data, tmp_path, capsys):
    monkeypatch.setattr(text_finetune, "sources", "*.none")
    fails_at_once(capsys, lambda: main(options(data, tmp_path / "out")), "give a --model DIR")


@pytest.mark.full
def test_the_script_ends_with_code_2(tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLE, "--seeds=0"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr == "error: --seeds must lie from 1 to 1000, got 0\n"


# The shipped instructions. ------------------------------------------------------------------------


def shipped(start):
    """Input and output of all records whose instruction starts so, with the rest of it."""
    found = [
        (record["instruction"][len(start) :], record["input"], record["output"])
        for record in SHIPPED
        if record["instruction"].startswith(start)
    ]
    assert len(found) >= 10
    return found


def test_shipped_records_are_well_formed():
    assert 150 <= len(SHIPPED) <= 300
    for number, record in enumerate(SHIPPED):
        assert list(record) == ["instruction", "input", "output"]
        text_finetune.check_record(record, str(number))
        assert all(value.isascii() for value in record.values())
    questions = Counter((record["instruction"], record["input"]) for record in SHIPPED)
    assert max(questions.values()) == 1


def test_shipped_values_and_exceptions_are_right():
    for _, expression, value in shipped("What is the value of this expression?"):
        assert repr(eval(expression)) == value
    for _, line, name in shipped("Which exception does this line raise?"):
        with pytest.raises(Exception) as found:  # noqa: B017
            exec(line, {})
        assert type(found.value).__name__ == name


def test_shipped_names_exist():
    for _, _, name in shipped("Which module of the standard library "):
        assert name in sys.stdlib_module_names and importlib.util.find_spec(name)
    for _, name, text in shipped("Explain this built-in function"):
        assert hasattr(builtins, name) and text.startswith("It ") and text.endswith(".")
    for _, _, method in shipped("Which method of "):
        kind, name = method.split(".")
        assert hasattr(getattr(builtins, kind), name)
    for _, name, line in shipped("Write the line that imports this name."):
        names = {}
        exec(line, names)
        assert name in names
    for _, name, snake in shipped("Write this name in snake_case."):
        assert "".join("_" * c.isupper() + c.lower() for c in name) == snake


def test_shipped_code_is_valid():
    for _, wrong, line in shipped("Fix the syntax error in this line."):
        with pytest.raises(SyntaxError):
            ast.parse(complete(wrong))
        ast.parse(complete(line))
    for _, head, body in shipped("Complete the function, which "):
        (function,) = ast.parse(f"{head}\n{body}").body
        assert isinstance(function, ast.FunctionDef)
        assert isinstance(function.body[-1], ast.Return | ast.With | ast.For)
    for _, function, docstring in shipped("Write a docstring of one line for this function."):
        head, *body = function.splitlines()
        (function,) = ast.parse("\n".join([head, f"    {docstring}", *body])).body
        assert ast.get_docstring(function).endswith(".")
    for _, line, hinted in shipped("Add type hints to this line."):
        before, after = (ast.parse(f"{head} ...").body[0] for head in (line, hinted))
        assert after.name == before.name and after.returns is not None
    for _, _, expression in shipped("Write an expression for "):
        ast.parse(expression, mode="eval")
    for _, line, better in shipped("Write this line in idiomatic Python."):
        assert ast.dump(ast.parse(complete(line))) != ast.dump(ast.parse(complete(better)))


def complete(line):
    """The line where it may stand in a program."""
    before = {"else": "if x:\n ...\n", "elif": "if x:\n ...\n", "return": ""}
    line = before.get(line.split()[0].rstrip(":"), "") + line
    line = f"{line}\n ..." if line.endswith(":") else line
    return f"{line}\nfinally:\n ..." if line.startswith("try") else line


def test_shipped_rewritings_compute_the_same():
    person = SimpleNamespace(name="Ada", age=36, is_file=lambda: True)
    words, numbers = ["ab ", "c", "ab "], [3, -1, 4]
    world = {
        **{name: words for name in ("words", "lines", "data")},
        **{name: numbers for name in ("items", "values", "numbers", "left", "right")},
        **{name: [person] for name in ("users", "people", "paths")},
        "texts": ["1", "2"],
    }
    for _, loop, line in shipped("Rewrite this loop as one line."):
        name = line.split(" = ")[0]
        results = [dict(world), dict(world)]
        for code, result in zip((loop, line), results, strict=True):
            exec(code, result)
        assert results[0][name] == results[1][name]

    names = "name count key value x folder file a b number price message done total index tag"
    world = {name: 7 for name in names.split()}
    world |= {name: name for name in ("name", "folder", "file", "message", "tag")}
    for _, expression, f_string in shipped("Rewrite this expression with an f-string."):
        assert eval(expression, dict(world)) == eval(f_string, dict(world))
