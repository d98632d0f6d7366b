import json

import pytest
import torch
from torch import Generator

from experiments import text_edge_steps
from experiments.runner import main
from experiments.text import CHAIN, TASKS, logits_of, num_kinds
from experiments.text_edge_steps import (
    EXPERIMENT,
    VARIANTS,
    EdgeStepsMixer,
    make_model,
    run,
)
from experiments.training import num_parameters
from groot_graph.nn.tree_topology import euclidean

RECALL = "associative recall"
LEARNED = [name for name in VARIANTS if name.endswith("edge steps")]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(text_edge_steps, "held_out", 16)
    monkeypatch.setattr(text_edge_steps, "steps_per_check", 2)
    monkeypatch.setattr(text_edge_steps, "most_steps", 4)


def texts():
    return TASKS[RECALL].generate(8, 8, Generator().manual_seed(0))


def make(variant):
    torch.manual_seed(0)
    return make_model(variant).eval()


def test_networks_have_the_same_parameters_within_two_percent():
    counts = [num_parameters(make(variant)) for variant in VARIANTS]
    assert max(counts) <= 1.02 * min(counts)


@torch.no_grad()
def test_variants_compute_different_things():
    logits = [logits_of(make(variant), *texts()) for variant in VARIANTS]
    for number, found in enumerate(logits):
        assert not any(torch.allclose(found, other, atol=1e-6) for other in logits[:number])


@pytest.mark.parametrize("variant", LEARNED)
def test_a_gradient_reaches_what_the_tree_is_grown_over(variant):
    model = make(variant)
    logits_of(model, *texts()).square().sum().backward()
    for layer in model.backbone.layers:
        assert isinstance(layer.mixer, EdgeStepsMixer)
        assert layer.mixer.embedding.weight.grad.abs().sum() > 0
        assert layer.mixer.sigma.grad.abs().sum() > 0


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_logits_depend_on_what_follows_them(variant):
    model, (tokens, answers) = make(variant), texts()
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % num_kinds
    found = []
    for given in (tokens, changed):
        torch.manual_seed(0)
        found.append(logits_of(model, given, answers))
    assert found[1][:, :-1].allclose(found[0][:, :-1], atol=1e-6)
    assert not torch.allclose(found[1][:, -1], found[0][:, -1], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("variant", [name for name in LEARNED if "random" not in name])
def test_of_no_length_is_the_tree_of_ties(variant):
    """Without lengths only the steps of the tokens are left."""
    model, (tokens, answers) = make(variant), texts()
    for layer in model.backbone.layers:
        layer.mixer.embedding.weight.zero_()
    before = logits_of(model, tokens, answers)
    for layer in model.backbone.layers:
        layer.mixer.sigma.fill_(3.0)
    assert logits_of(model, tokens, answers).equal(before)


def test_distances_have_no_gradient_where_they_are_zero():
    a = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    found = euclidean(a, torch.zeros(2, 2))
    assert found.tolist() == [0, 5]
    found.sum().backward()
    assert a.grad.allclose(torch.tensor([[0.0, 0.0], [0.6, 0.8]]))


def test_a_run_follows_its_seed(small):
    results = [run(RECALL, LEARNED[0], seed, 1e-2) for seed in (0, 0)]
    for result in results:
        assert result.pop("seconds") > 0
    assert results[0] == results[1] and results[0]["steps_in_all"] == 4


def test_the_command_chooses_a_rate(small, tmp_path, capsys):
    files = ["--json", str(tmp_path / "runs.json"), "--plot", str(tmp_path / "plot.png")]
    runs = main(EXPERIMENT, ["--task", RECALL, "--variant", CHAIN, "--seeds", "2", *files])
    assert len(runs) == len(text_edge_steps.learning_rates) + 1
    assert json.loads((tmp_path / "runs.json").read_text())["runs"] == runs
    assert f"| {RECALL} | {CHAIN} | " in capsys.readouterr().out
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
