import json
from dataclasses import replace

import pytest
import torch
from torch import Generator

from experiments import text
from experiments.runner import main
from experiments.text import (
    BOTH,
    CHAIN,
    EXPERIMENT,
    TASKS,
    VARIANTS,
    Task,
    logits_of,
    look_at_trees,
    make_model,
    num_kinds,
    run,
    table,
)
from groot_graph import Forest
from groot_graph.models.grootl.trees import TEXT_TREES

RECALL = "associative recall"


@pytest.fixture
def small(monkeypatch):
    """Few held-out texts and small batches."""
    monkeypatch.setattr(text, "held_out", 16)
    monkeypatch.setattr(text, "batch_size", 4)


def draw_texts(task: str, num_texts: int, size: int | None = None, seed: int = 0):
    draw = Generator().manual_seed(seed)
    return TASKS[task].generate(num_texts, size or TASKS[task].sizes[-1], draw)


def make(variant: str):
    torch.manual_seed(0)
    return make_model(variant).eval()


def recall(context: list[int], questions: list[int]) -> list[int]:
    """What follows the keys in the context."""
    return [context[context.index(key) + 1] for key in questions]


def copy(context: list[int], questions: list[int]) -> list[int]:
    """What is no distractor."""
    assert questions[0] not in context
    return [token for token in context if token < num_kinds]


def look_up(context: list[int], questions: list[int]) -> list[int]:
    """As many values after the key as there are questions."""
    assert context.count(questions[0]) == 1
    first = context.index(questions[0]) + 1
    return context[first : first + len(questions)]


SOLVERS = {RECALL: recall, "selective copying": copy, "key lookup": look_up}


@pytest.mark.parametrize(
    ("task", "size"), [(name, size) for name, task in TASKS.items() for size in task.sizes]
)
def test_context_and_questions_determine_the_answers(task, size):
    tokens, answers = draw_texts(task, 50, size)
    context_length = tokens.size(1) - answers.size(1)
    assert answers.size(1) == size
    for line, expected in zip(tokens.tolist(), answers.tolist(), strict=True):
        context, questions = line[:context_length], line[context_length:]
        assert SOLVERS[task](context, questions) == expected


@pytest.mark.parametrize("task", ["selective copying", "key lookup"])
def test_shows_the_answers_before_the_one_that_is_asked_for(task):
    tokens, answers = draw_texts(task, 50)
    assert tokens[:, 1 - answers.size(1) :].equal(answers[:, :-1])


@pytest.mark.parametrize("task", TASKS)
def test_texts_depend_on_the_seed_alone(task):
    tokens, answers = draw_texts(task, 50)
    again, same = draw_texts(task, 50)
    assert again.equal(tokens) and same.equal(answers)
    assert not draw_texts(task, 50, seed=1)[0].equal(tokens)


@pytest.mark.parametrize("task", TASKS)
def test_every_kind_of_answer_is_as_frequent(task):
    _, answers = draw_texts(task, 2000)
    count = answers.unique(return_counts=True)[1]
    assert count.numel() == num_kinds
    assert (count / answers.numel()).allclose(torch.tensor(1 / num_kinds), atol=0.02)


def test_content_may_stand_anywhere():
    tokens, answers = draw_texts("selective copying", 2000)
    context = tokens[:, : -answers.size(1)]
    share = (context < num_kinds).float().mean(dim=0)
    assert share.allclose(torch.tensor(8 / 48), atol=0.04)


def test_the_key_may_stand_wherever_its_values_fit():
    tokens, answers = draw_texts("key lookup", 5000)
    context = tokens[:, : -answers.size(1)]
    share = (context == tokens[:, 64:65]).float().mean(dim=0)
    assert share[:60].allclose(torch.tensor(1 / 60), atol=0.01) and not share[60:].any()


def test_variants_have_the_same_parameters_and_initial_weights():
    reference = make(CHAIN).state_dict()
    for variant in VARIANTS:
        weights = make(variant).state_dict()
        assert weights.keys() == reference.keys()
        assert all(weights[name].equal(value) for name, value in reference.items()), variant


@torch.no_grad()
def test_variants_compute_different_things():
    tokens, answers = draw_texts(RECALL, 8)
    logits = {variant: logits_of(make(variant), tokens, answers) for variant in VARIANTS}
    names = list(logits)
    for number, name in enumerate(names):
        for other in names[:number]:
            assert not torch.allclose(logits[name], logits[other], atol=1e-6), (name, other)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_logits_depend_on_what_follows_them(variant):
    model = make(variant)
    tokens, answers = draw_texts(RECALL, 8)
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % num_kinds
    torch.manual_seed(0)
    logits = logits_of(model, tokens, answers)
    torch.manual_seed(0)
    after = logits_of(model, changed, answers)
    assert after[:, :-1].equal(logits[:, :-1])
    assert not torch.allclose(after[:, -1], logits[:, -1], atol=1e-6)


@torch.no_grad()
def test_tree_alone_is_mamba_where_the_tree_is_the_chain():
    tokens, _ = draw_texts(RECALL, 8)
    chain, tree, both = (
        make(variant)(tokens, context_lengths=2).logits for variant in (CHAIN, "tree", BOTH)
    )
    torch.testing.assert_close(tree, chain)
    assert not torch.allclose(both, chain, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(("variant", "hears"), [("tree", False), (BOTH, True)])
def test_tree_alone_hears_nothing_along_the_chain(variant, hears):
    def lonely(tree, args, forest):
        node = torch.arange(forest.num_nodes)
        return Forest(node, node)

    model = make(variant)
    for layer in model.backbone.layers:
        layer.mixer.tree.register_forward_hook(lonely)
    tokens, answers = draw_texts(RECALL, 8)
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % num_kinds
    # Two convolutions look three tokens back each, and the context has sixteen.
    logits, after = (logits_of(model, x, answers) for x in (tokens, changed))
    assert logits.allclose(after, rtol=0, atol=1e-7) != hears


@pytest.mark.parametrize("variant", [BOTH, "chain + 0.3 causal tree"])
def test_sees_the_chain_where_the_tree_is_the_chain(variant):
    model = make(variant)
    tokens, _ = draw_texts(RECALL, 4)
    assert look_at_trees(model, tokens, 16)["neighbors"] < 1
    for layer in model.backbone.layers:
        layer.mixer.tree.window = 1
    # Keys and values take turns.
    assert look_at_trees(model, tokens, 16) == {"neighbors": 1, "same_kind": 0}


def test_sees_what_the_trees_join(monkeypatch):
    forests = {"context": [2, 2, 3, 4, 4], "causal": [0, 0, 0, 2, 2]}
    order = {"context": torch.arange(4, -1, -1), "causal": torch.arange(5)}
    tokens = torch.tensor([0, num_kinds, 1, 2, 3])[None].expand(2, -1)
    for mode, tree in TEXT_TREES.items():
        parent = torch.tensor(forests[mode])
        forest = Forest(torch.cat([order[mode], order[mode] + 5]), torch.cat([parent, parent + 5]))
        monkeypatch.setattr(tree, "forward", lambda *args, forest=forest: forest)
    expected = {"neighbors": 1 / 2, "same_kind": 1 / 2}
    assert look_at_trees(make(BOTH), tokens, 3) == pytest.approx(expected)
    causal = make("chain + 0.3 causal tree")
    assert look_at_trees(causal, tokens, 3) == pytest.approx(expected)
    assert look_at_trees(make(CHAIN), tokens, 3) == {}


def test_a_run_depends_on_its_arguments_alone(small):
    results = [run(RECALL, BOTH, seed, 2, rate) for seed, rate in [(0, 0.01), (0, 0.01), (1, 0.01)]]
    for result in results:
        assert result.pop("cpu_seconds") > 0
    assert results[0] == results[1]
    assert results[0]["train_loss"] != results[2]["train_loss"]


def test_a_run_learns(small, monkeypatch):
    def echo(num_texts, size, draw):
        tokens = torch.randint(4, (num_texts, 2 * size), generator=draw)
        return tokens, tokens[:, size:]

    monkeypatch.setitem(TASKS, "echo", Task(echo, (1, 2), 60, 1e-2))
    assert run("echo", BOTH, 0, 60, 1e-2)["accuracy"] > 0.9


def test_goes_on_where_it_stopped(small, tmp_path, capsys, monkeypatch):
    files = ["--json", str(tmp_path / "a" / "runs.json"), "--plot", str(tmp_path / "b" / "x.png")]
    options = ["--steps", "1", "--task", RECALL, "--variant", CHAIN, *files]
    first = main(EXPERIMENT, ["--seeds", "1", *options])
    assert len(first) == 1
    every = main(EXPERIMENT, ["--seeds", "2", "--variant", BOTH, *options])
    assert every[0] == first[0] and len(every) == 4
    assert json.loads((tmp_path / "a" / "runs.json").read_text())["runs"] == every
    assert (tmp_path / "b" / "x.png").read_bytes().startswith(b"\x89PNG")
    assert f"| {RECALL} | {BOTH} | " in capsys.readouterr().out
    never = replace(EXPERIMENT, run=None)  # would fail if it were called
    assert main(never, ["--seeds", "2", "--variant", BOTH, *options]) == every


def test_table_has_means_deviations_and_paired_differences():
    def result(variant, seed, accuracy, **seen):
        return {
            "task": RECALL, "variant": variant, "seed": seed, "accuracy": accuracy, **seen,
            "num_parameters": 1234, "cpu_seconds": 30.0,
        }  # fmt: skip

    runs = [
        result(CHAIN, 0, 0.90), result(CHAIN, 1, 0.94),
        result(BOTH, 0, 0.88, neighbors=0.1, same_kind=0.7),
        result(BOTH, 1, 0.91, neighbors=0.3, same_kind=0.7),
    ]  # fmt: skip
    lines = table(runs).splitlines()
    assert lines[0] == "4 runs, 2 minutes of one core"
    assert lines[-2:] == [
        f"| {RECALL} | {CHAIN} | 92.0 ± 2.8 |  |  |  | 2 | 1,234 |",
        f"| {RECALL} | {BOTH} | 89.5 ± 2.1 | -2.5 ± 0.7 | 20 | 70 | 2 | 1,234 |",
    ]
