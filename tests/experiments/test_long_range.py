import json
from dataclasses import replace

import pytest
import torch
from torch_geometric.data import Batch

from experiments import long_range, training
from experiments.long_range import (
    EXPERIMENT,
    MODELS,
    TASKS,
    make_network,
    make_sets,
    run,
    table,
)
from experiments.networks import OURS, budget
from experiments.runner import chosen, main
from experiments.training import accuracy, fit_to_graphs, make_loader, num_parameters


@pytest.fixture
def small(monkeypatch):
    """Tasks of seconds."""
    tasks = {
        name: task._replace(
            distances=task.distances[:2], num_graphs=task.num_graphs and 64, steps=lambda _: 2
        )
        for name, task in TASKS.items()
    }
    monkeypatch.setattr(long_range, "TASKS", tasks)
    monkeypatch.setattr(long_range, "num_held_out", 20)


@pytest.mark.full
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("task", TASKS)
def test_parameters_are_within_five_percent_of_the_budget(task, model, small):
    for distance in (TASKS[task].distances[0], TASKS[task].distances[-1]):
        network = make_network(MODELS[model], task, distance, TASKS[task].make(distance, 1))
        assert 0.95 * budget <= num_parameters(network) <= budget
        if not MODELS[model].hears_all:
            assert len(network.layers) == TASKS[task].num_layers(distance) >= distance


def reaches(network, dataset, source: int) -> bool:
    """Whether the answer depends on a node's features."""
    graph = next(data for data in dataset if data.y == 0)
    other = graph.clone()
    other.x[source] = other.x[source].flip(0)
    network.eval()
    answers = [network(Batch.from_data_list([data])) for data in (graph, other)]
    return not torch.equal(*answers)


@pytest.mark.parametrize("model", MODELS)
def test_every_network_hears_the_far_node(model):
    torch.manual_seed(0)
    dataset = TASKS["ring"].make(6, 20)
    dataset.transform = MODELS[model].transform
    assert reaches(make_network(MODELS[model], "ring", 6, dataset), dataset, source=6)


def test_one_layer_too_few_does_not_hear_the_far_node(monkeypatch):
    monkeypatch.setitem(
        long_range.TASKS, "ring", TASKS["ring"]._replace(num_layers=lambda distance: distance - 1)
    )
    dataset = TASKS["ring"].make(6, 20)
    assert not reaches(make_network(MODELS["GIN"], "ring", 6, dataset), dataset, source=6)


def test_held_out_graphs_are_the_same_for_every_seed_and_drawn_apart(small):
    first, second = (make_sets("tree", 3, seed) for seed in (0, 1))
    for one, other in zip(first[1:], second[1:], strict=True):
        assert all(a.x.equal(b.x) for a, b in zip(one, other, strict=True))
    assert not all(a.x.equal(b.x) for a, b in zip(first[0], second[0], strict=True))
    assert not all(a.x.equal(b.x) for a, b in zip(first[1], first[2], strict=True))


def test_on_a_ring_there_is_one_graph_per_class():
    for dataset in make_sets("ring", 5, 0):
        assert dataset.y.tolist() == [0, 1, 2, 3, 4]
        assert [data.x[5].argmax().item() for data in dataset] == [0, 1, 2, 3, 4]


@pytest.mark.full
def test_a_run_learns_and_its_accuracy_is_that_of_its_best_weights(small):
    torch.manual_seed(0)
    train, validation, test = make_sets("ring", 5, 0)
    network = make_network(MODELS[OURS], "ring", 5, train)
    found = fit_to_graphs(network, make_loader(train, 16), validation, 600, 1e-3, 5, "")
    assert found["validation"] == accuracy(network, validation) == 1
    assert accuracy(network, test) == 1
    assert found["steps_taken"] < found["steps_in_all"] < 600


@pytest.mark.parametrize("margin,steps_in_all", [(0.9, 2), (-1.0, 6)])
def test_a_run_at_chance_is_given_up_after_a_third(margin, steps_in_all, small, monkeypatch):
    monkeypatch.setattr(training, "steps_per_check", 1)
    monkeypatch.setattr(training, "margin", margin)
    monkeypatch.setattr(training, "checks_to_stop", 9)
    train, validation, _ = make_sets("ring", 5, 0)
    network = make_network(MODELS["GCN"], "ring", 5, train)
    found = fit_to_graphs(network, make_loader(train, 16), validation, 6, 1e-3, 5, "")
    assert found["steps_in_all"] == steps_in_all


def test_same_seed_same_run(small):
    arguments = ("crossed ring", 5, "GPS", 3, 2, 1e-3)
    first, second = run(*arguments), run(*arguments)
    for name in ("seconds", "step_seconds"):
        assert first.pop(name) > 0 and second.pop(name) > 0
    assert first == second


def result(model, seed, rate, validation, accuracy):
    return {
        "task": "ring", "distance": 5, "model": model, "seed": seed, "learning_rate": rate,
        "validation": validation, "accuracy": accuracy, "num_classes": 5, "num_parameters": 9,
        "seconds": 1200.0,
    }  # fmt: skip


def test_the_learning_rate_is_chosen_on_the_validation_set_of_the_first_seed():
    runs = [
        result(OURS, 0, 1e-3, validation=0.9, accuracy=0.99),
        result(OURS, 0, 1e-2, validation=1.0, accuracy=0.90),
        result(OURS, 0, 3e-3, validation=1.0, accuracy=0.80),
        result(OURS, 1, 3e-3, validation=0.1, accuracy=0.60),
        result(OURS, 1, 1e-3, validation=1.0, accuracy=1.00),
        result("GCN", 0, 1e-3, validation=0.2, accuracy=0.25),
    ]
    assert chosen(runs, task="ring", distance=5, model=OURS) == runs[2:4]
    lines = table(runs).splitlines()
    assert lines[0] == "6 runs, 2.0 hours; 9 to 9 parameters"
    assert lines[2] == "| ring, distance | 5 |"
    assert lines[4] == f"| {OURS} | 70.0 ± 14.1 |"
    assert lines[5] == "| GCN | 25.0 |"
    assert lines[-1] == "| chance | 20.0 |"


@pytest.mark.full
def test_the_command_goes_on_where_it_was_stopped(small, tmp_path, capsys):
    options = ["--task", "ring", "--model", "GCN", "--distance", "5", "--seeds", "2"]
    options += ["--json", str(tmp_path / "runs.json"), "--plot", str(tmp_path / "plot.png")]
    runs = main(EXPERIMENT, options)
    assert len(runs) == len(training.learning_rates) + 1
    assert json.loads((tmp_path / "runs.json").read_text())["runs"] == runs
    assert (tmp_path / "plot.png").stat().st_size > 5000
    assert "| GCN |" in capsys.readouterr().out
    never = replace(EXPERIMENT, run=None)  # would fail if it were called
    assert main(never, options) == runs
