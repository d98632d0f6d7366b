import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from examples import text_generation
from examples.text_generation import UserError, load, main
from groot_graph.models import GrootLForCausalLM
from tests.equipment.failing import fails, fails_at_once

PROMPT = "def count(words):\n    total = 0"
SETTINGS = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_layers": 3,
    "steps": 3,
    "batch_size": 4,
    "num_tokens": 32,
    "longest_context": 16,
    "num_test_pieces": 4,
}


def write_sources(folder):
    """Twenty files that are much alike."""
    folder.mkdir()
    for number in range(20):
        lines = [f"def count_{number}(words):", "    total = 0", "    for word in words:"]
        lines += ["        total += len(word)", "    return total", ""]
        (folder / f"count_{number}.py").write_text("\n".join(lines * 4))
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return write_sources(tmp_path_factory.mktemp("library") / "sources")


@pytest.fixture(autouse=True)
def small_settings(monkeypatch, sources):
    for name, value in SETTINGS.items():
        monkeypatch.setattr(text_generation, name, value)
    monkeypatch.setattr(text_generation, "sources", sources)


@pytest.fixture(scope="module")
def checkpoints(sources, tmp_path_factory):
    """What the example has trained, one folder for each mode."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setattr(text_generation, name, value)
        patch.setattr(text_generation, "sources", sources)
        for mode in ("context", "causal"):
            text_generation.train(folder / mode, mode)
    return folder


@pytest.fixture
def checkpoint(checkpoints, tmp_path):
    """A copy to spoil."""
    return Path(shutil.copytree(checkpoints / "context", tmp_path / "checkpoint"))


@pytest.fixture
def run(tmp_path):
    def run(*options, output="out"):
        given = ["--max-new-tokens", 5, *options, "--output", tmp_path / output]
        return main([str(option) for option in given])

    return run


def test_a_run(run, tmp_path, capsys):
    (text,) = run(PROMPT)
    printed = capsys.readouterr()
    assert "18 files of the standard library to learn from" in printed.out
    assert "loss on 2 other files: " in printed.out
    assert "tokens per second" in printed.out
    assert f"--- {PROMPT!r} goes on:\n{text}\n" in printed.out
    assert f"saved {tmp_path / 'out' / 'text_tree.png'}" in printed.out
    assert "3/3" in printed.err  # the progress bar
    found = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*"))
    assert [str(path) for path in found if path.suffix != ".json"] == [
        "text_generation",
        "text_generation/context",
        "text_generation/context/model.safetensors",
        "text_tree.png",
    ]
    with Image.open(tmp_path / "out" / "text_tree.png") as picture:
        assert min(picture.size) > 300

    # The next time it has learned already.
    assert run(PROMPT) == [text]
    printed = capsys.readouterr()
    assert "to learn from" not in printed.out and printed.err == ""


@pytest.mark.full
def test_the_same_seed_gives_the_same_bits(run, tmp_path):
    options = [PROMPT, "--temperature", 3]
    assert run(*options, output="a") == run(*options, output="b")
    assert run(*options, "--seed", 1, output="a") != run(*options, output="b")
    for name in ("text_tree.png", "text_generation/context/model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.full
def test_it_learns(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(text_generation, "steps", 60)
    monkeypatch.setattr(text_generation, "hidden_size", 32)
    text_generation.train(tmp_path / "trained", "context")
    loss = float(capsys.readouterr().out.split("other files: ")[1].split()[0])
    assert loss < 0.3 * math.log(300)


@pytest.mark.parametrize("mode", ["context", "causal"])
def test_the_loss_is_that_of_what_follows_the_contexts(checkpoints, mode):
    model, _ = load(checkpoints / mode, None)
    tokens = torch.randint(300, (3, 32))
    context_lengths = torch.tensor([0, 5, 16])
    found = text_generation.loss_after(context_lengths, model, tokens)
    logits = model(tokens, context_lengths=context_lengths).logits
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    is_predicted = torch.arange(1, 32) >= context_lengths[:, None]
    torch.testing.assert_close(found, losses[is_predicted].mean())


def test_several_prompts_go_on_as_alone(run, checkpoints, tmp_path):
    prompts = [PROMPT, "x", "    return total\n\ndef "]
    options = ["--model", checkpoints / "context", "--temperature", 0]
    together = run(*prompts, *options)
    assert together == [run(prompt, *options)[0] for prompt in prompts]


@pytest.mark.parametrize("mode", ["context", "causal"])
def test_the_trees_are_those_of_the_mode(checkpoints, mode):
    model, tokenizer = load(checkpoints / mode, None)
    tokens = tokenizer.encode(PROMPT)
    forests = [text_generation.grow_tree(model, tokens, layer) for layer in range(3)]
    node = torch.arange(len(tokens))
    for forest in forests:
        assert forest.num_nodes == len(tokens) and forest.num_trees == 1
        assert ((forest.parent - node).abs() <= model.config.tree_window).all()
    if mode == "causal":
        assert all((forest.parent <= node).all() for forest in forests)
    else:
        assert all(forest.roots.tolist() == [len(tokens) - 1] for forest in forests)
    assert not any(layer.mixer.tree._forward_hooks for layer in model.backbone.layers)


def test_a_mode_other_than_that_of_the_checkpoint(run, checkpoints):
    model, _ = load(checkpoints / "context", "causal")
    assert model.config.tree_mode == "causal"
    options = [PROMPT, "--model", checkpoints / "context", "--temperature", 0]
    assert len(run(*options, "--mode", "causal")) == 1


def test_each_mode_learns_for_itself(run, tmp_path):
    run(PROMPT, "--mode", "causal")
    model, _ = load(tmp_path / "out" / "text_generation" / "causal", None)
    assert model.config.tree_mode == "causal"


def test_a_mamba(run, checkpoint):
    """A checkpoint that knows of no tree."""
    (checkpoint / "config.json").unlink()
    sizes = {"vocab_size": 320, "hidden_size": 16, "num_hidden_layers": 2}
    MambaForCausalLM(MambaConfig(**sizes)).save_pretrained(checkpoint)
    assert len(run(PROMPT, "--model", checkpoint, "--layer", 1)) == 1


def test_beams(run, checkpoints):
    model, tokenizer = load(checkpoints / "context", None)
    tokens = tokenizer(PROMPT, return_tensors="pt").input_ids
    best = model.generate(tokens, num_beams=4, max_new_tokens=5, do_sample=False)
    expected = tokenizer.decode(best[0, tokens.size(1) :], skip_special_tokens=True)
    options = ["--model", checkpoints / "context", "--temperature", 0, "--num-beams", 4]
    assert run(PROMPT, *options) == [expected]


def test_a_panel_for_every_layer(run, checkpoints, tmp_path):
    heights = []
    for layers in ([0], [0, 1, -1]):
        run(PROMPT, "--model", checkpoints / "context", "--layer", *layers)
        with Image.open(tmp_path / "out" / "text_tree.png") as picture:
            heights.append(picture.height)
    assert heights[1] == 3 * heights[0]


def test_words_are_the_text(checkpoints):
    _, tokenizer = load(checkpoints / "context", None)
    # Of the letters of a text none is special.
    assert tokenizer.all_special_tokens == [text_generation.end]
    assert len(tokenizer.encode("left", add_special_tokens=False)) > 1
    words = text_generation.words_of(tokenizer.encode(PROMPT), tokenizer)
    assert "".join(words) == PROMPT.replace(" ", "·")


def test_the_standard_library(tmp_path):
    sources = text_generation.read_sources(text_generation.standard_library, "*.py", at_least=10)
    assert sum(map(len, sources)) > 10**6
    with pytest.raises(UserError, match="too few files to learn from"):
        text_generation.read_sources(tmp_path, "*.py", at_least=1)


@pytest.mark.parametrize(
    "options, message",
    [
        ([""], "the prompt is empty"),
        (["word " * 40, "--max-prompt-tokens", 20], "more than the 20 of --max-prompt-tokens"),
        ([PROMPT, "--layer", 3], "--layer 3: the network has layers 0 to 2"),
        ([PROMPT, "--layer", 0, -4], "--layer -4: the network has layers 0 to 2"),
        ([PROMPT, "--temperature", -1], "--temperature must be 0 or more, got -1.0"),
        ([PROMPT, "--temperature", "nan"], "--temperature must be 0 or more, got nan"),
        ([PROMPT, "--max-new-tokens", 0], "--max-new-tokens must be at least 1"),
        ([PROMPT, "--num-beams", 0], "--num-beams must be at least 1"),
    ],
)
def test_bad_options_are_told_in_one_line(run, checkpoints, tmp_path, capsys, options, message):
    fails_at_once(capsys, lambda: run(*options, "--model", checkpoints / "context"), message)
    assert not (tmp_path / "out").exists()


def cut(checkpoint):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def without_weights_of_a_layer(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))


def of_another_network(checkpoint):
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1)).save_pretrained(checkpoint)


def without_trees(checkpoint):
    GrootLForCausalLM.from_pretrained(checkpoint, tree_scale=0).save_pretrained(checkpoint)


def with_few_tokens(checkpoint):
    model = GrootLForCausalLM.from_pretrained(checkpoint)
    model.resize_token_embeddings(200)
    model.save_pretrained(checkpoint)


def of_an_unknown_mode(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "tree_mode": "other"}))


@pytest.mark.parametrize(
    "damage, message",
    [
        (shutil.rmtree, "no such folder"),
        (lambda path: (path / "config.json").unlink(), "not a checkpoint of Mamba or GrootL"),
        (lambda path: (path / "config.json").write_text("{"), "not a checkpoint of Mamba or"),
        (lambda path: (path / "tokenizer.json").unlink(), "not a checkpoint of Mamba or GrootL"),
        (cut, "not a checkpoint of Mamba or GrootL"),
        (of_another_network, "got 'gpt2'"),
        (of_an_unknown_mode, "'tree_mode' must be"),
        (without_weights_of_a_layer, "has no weights for backbone.layers.3."),
        (with_few_tokens, "has a tokenizer of 300 tokens, weights for 200"),
        (without_trees, "grows no trees to draw, as its tree_scale is 0"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_bad_checkpoints_are_told_in_one_line(run, checkpoint, tmp_path, capsys, damage, message):
    damage(checkpoint)
    fails(capsys, lambda: run(PROMPT, "--model", checkpoint), checkpoint.name, message)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_training_is_not_taken_for_a_whole_one(run, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", interrupt)
    with pytest.raises(SystemExit) as exit_info:
        run(PROMPT)
    assert exit_info.value.code == 130
    assert not (tmp_path / "out" / "text_generation" / "context").exists()
