import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments import real_graphs, training
from experiments.networks import MODELS, OURS, budget
from experiments.real_graphs import EXPERIMENT, TASKS, run, superpixel_graph
from experiments.runner import main
from experiments.training import learning_rates

NODE_TASKS = ("digits", "tumors", "karate club")


@pytest.fixture
def few_superpixels(monkeypatch):
    draw = np.random.default_rng(0)
    graphs = [superpixel_graph(draw.random((28, 28)), index % 10) for index in range(90)]
    monkeypatch.setattr(real_graphs, "superpixel_graphs", lambda: graphs)


def test_a_superpixel_has_gray_and_center():
    image = np.zeros((28, 28))
    image[:, 14:] = 1
    graph = superpixel_graph(image, 7)
    assert 30 < graph.num_nodes < 120 and graph.y.tolist() == [7]
    gray, _, column = graph.x.unbind(1)
    assert gray[column > 0.6].min() > 0.9 and gray[column < 0.4].max() < 0.1
    assert not graph.is_directed() and not graph.has_self_loops()


@pytest.mark.parametrize("name", NODE_TASKS)
def test_every_node_is_asked_for_in_one_part(name):
    train, validation, test = (part for (part,) in TASKS[name].make_sets(0))
    asked = train.is_asked.int() + validation.is_asked.int() + test.is_asked.int()
    assert asked.eq(1).all()
    assert train.y.bincount().eq(real_graphs.num_labeled[name]).all()
    again, other = (TASKS[name].make_sets(seed)[0][0] for seed in (0, 1))
    assert again.is_asked.equal(train.is_asked) and not other.is_asked.equal(train.is_asked)


def test_every_superpixel_graph_is_in_one_part(few_superpixels):
    parts = TASKS["MNIST superpixels"].make_sets(0)
    assert [len(part) for part in parts] == [60, 15, 15]
    assert len({id(graph) for part in parts for graph in part}) == 90


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    "task, model",
    [
        # Every task and every model once by default.
        pytest.param(
            task, model, marks=() if model == OURS or task == "tumors" else pytest.mark.full
        )
        for task in TASKS
        for model in MODELS
    ],
)
def test_every_model_runs_on_every_task_within_the_budget(
    task, model, few_superpixels, monkeypatch
):
    asked = []

    def counted(network, dataset):
        asked.append(sum(len(graph.y) for graph in dataset))
        return len(asked) / 10

    monkeypatch.setattr(real_graphs, "accuracy", counted)
    monkeypatch.setattr(training, "accuracy", counted)
    result = run(task, model, 0, 1, 1e-3)
    validation, test = (
        sum(len(graph.y) for graph in graphs) for graphs in TASKS[task].make_sets(0)[1:]
    )
    # After the only step the validation set, and the test set once, at the end.
    assert asked == [validation, test]
    assert (result["validation"], result["accuracy"]) == (0.1, 0.2)
    assert 0.95 * budget <= result["num_parameters"] <= budget


@pytest.mark.full
def test_a_run_learns():
    torch.manual_seed(0)
    assert run("tumors", "TreeSSMConv", 0, 50, 3e-3)["accuracy"] > 0.85


def test_the_command_goes_on_where_it_was_stopped(tmp_path, capsys):
    options = ["--task", "karate club", "--model", "GCN", "--seeds", "2", "--steps", "2"]
    options += ["--json", str(tmp_path / "runs.json")]
    runs = main(EXPERIMENT, options)
    assert len(runs) == len(learning_rates) + 1
    assert json.loads((tmp_path / "runs.json").read_text())["runs"] == runs
    assert "| right answers, % | karate club |" in capsys.readouterr().out
    never = replace(EXPERIMENT, run=None)  # would fail if it were called
    assert main(never, options) == runs
