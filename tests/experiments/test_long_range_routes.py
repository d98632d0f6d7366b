import json
from dataclasses import replace

import pytest
import torch
from torch_geometric.data import Batch, Data

from experiments import long_range, long_range_routes
from experiments.long_range import MODELS, make_network
from experiments.long_range_routes import EXPERIMENT, SilentAt, is_leaf, is_root, table
from experiments.networks import OURS, Network
from experiments.runner import main, parse
from experiments.training import accuracy
from groot_graph.datasets import TreeNeighborsMatch


@pytest.fixture
def small(monkeypatch):
    """Sets of a few trees."""
    tree = long_range.TASKS["tree"]._replace(num_graphs=64)
    monkeypatch.setitem(long_range.TASKS, "tree", tree)
    monkeypatch.setattr(long_range, "num_held_out", 20)


def test_leaves_and_roots_of_a_batch():
    batch = Batch.from_data_list(list(TreeNeighborsMatch(depth=2, num_graphs=2)))
    assert is_root(batch).nonzero().flatten().tolist() == [0, 7]
    assert is_leaf(batch).nonzero().flatten().tolist() == [3, 4, 5, 6, 10, 11, 12, 13]


@pytest.fixture
def network():
    """One that has not been trained, whose first layer is loud enough to change answers."""
    torch.manual_seed(0)
    network = make_network(
        MODELS[OURS], "tree", 4, TreeNeighborsMatch(depth=4, num_graphs=1)
    ).eval()
    with torch.no_grad():
        network.layers[0].conv.out_proj.weight.mul_(30)
    return network


def with_answers_of(network: Network) -> list[Data]:
    batch = Batch.from_data_list(list(TreeNeighborsMatch(depth=4, num_graphs=80)))
    batch.y = network(batch).argmax(1)
    return batch.to_data_list()


def test_silence_everywhere_is_the_network_without_its_first_layer(network):
    def everywhere(batch):
        return torch.ones(batch.num_nodes, dtype=torch.bool)

    def nowhere(batch):
        return ~everywhere(batch)

    assert accuracy(SilentAt(network, nowhere), with_answers_of(network)) == 1
    first, *others = network.layers
    network.layers = torch.nn.ModuleList(others)
    answers = with_answers_of(network)
    network.layers.insert(0, first)
    assert accuracy(SilentAt(network, everywhere), answers) == 1
    assert accuracy(SilentAt(network, nowhere), answers) < 1


def test_the_answer_of_one_layer_is_lost_with_silence_at_the_root(network):
    network.layers = network.layers[:1]
    answers = with_answers_of(network)
    assert accuracy(SilentAt(network, is_leaf), answers) == 1
    assert accuracy(SilentAt(network, is_root), answers) < 1


@pytest.mark.full
def test_a_run_is_that_of_the_long_range_benchmark(small):
    found = long_range_routes.run(depth=2, state_size=64, seed=1, steps=6)
    expected = long_range.run("tree", 2, OURS, 1, 6, long_range_routes.learning_rate)
    for name in ("validation", "steps_taken", "accuracy", "num_parameters"):
        assert found[name] == expected[name]


@pytest.mark.full
def test_the_command_goes_on_where_it_was_stopped(small, tmp_path, capsys):
    file = tmp_path / "runs.json"
    options = ["--depth", "2", "--seed", "0", "--steps", "2", "--json", str(file)]
    main(EXPERIMENT, [*options, "--state-size", "16"])
    runs = main(EXPERIMENT, [*options, "--state-size", "16", "--state-size", "2"])
    assert [run["state_size"] for run in runs] == [16, 2]
    assert json.loads(file.read_text())["runs"] == runs
    assert table(runs) in capsys.readouterr().out
    never = replace(EXPERIMENT, run=None)  # would fail if it were called
    assert main(never, [*options, "--state-size", "16", "--state-size", "2"]) == runs


def test_options_put_any_values_into_the_cells():
    args = parse(EXPERIMENT, ["--depth", "7", "--state-size", "32", "--seed", "8"])
    assert args.cells == [{"depth": 7, "state_size": 32, "seed": 8, "steps": 6000}]
    every = parse(EXPERIMENT, []).cells
    assert len(every) == 9
    assert every[0] == {"depth": 5, "state_size": 16, "seed": 0, "steps": 3000}


def test_table():
    run = {
        "depth": 5,
        "state_size": 16,
        "seed": 0,
        "steps_in_all": 1050,
        "accuracy": 1.0,
        "silent_at_leaves": 0.51,
        "silent_at_root": 0.998,
        "num_parameters": 9,
        "seconds": 1.0,
    }
    lines = table([run, {**run, "depth": 4}]).splitlines()
    assert lines[6].startswith("| 4 |")
    assert lines[7] == "| 5 | 16 | 0 | 1,050 | 100.0 | 51.0 | 99.8 |"
