import json

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from experiments import heterophilous
from experiments.heterophilous import (
    EXPERIMENT,
    LAYERS,
    Network,
    budget,
    load_graph,
    make_network,
    run,
    score,
)
from experiments.runner import main
from experiments.training import num_parameters


@pytest.fixture
def data(tmp_path):
    """Small graphs in the files' form: a ring whose nodes tell their class."""
    draw = np.random.default_rng(0)
    for name, num_classes in (("minesweeper", 2), ("actor", 5)):
        labels = np.arange(60) % num_classes
        features = np.eye(num_classes, dtype=np.float32)[labels]
        part = np.stack([draw.permutation(60) % 3 for _ in range(10)])
        np.savez(
            tmp_path / f"{name}.npz",
            node_features=features,
            node_labels=labels,
            edges=np.stack([np.arange(60), (np.arange(60) + 1) % 60], axis=1),
            train_masks=part == 0,
            val_masks=part == 1,
            test_masks=part == 2,
        )
    return tmp_path


def test_a_graph_has_both_directions_and_ten_splits(data):
    graph = load_graph(data, "actor")
    assert graph.is_undirected() and graph.num_edges == 120
    masks = torch.stack([graph.train_mask, graph.val_mask, graph.test_mask])
    assert masks.shape == (3, 60, 10) and masks.sum(dim=0).eq(1).all()


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="minesweeper.npz"):
        load_graph(tmp_path, "minesweeper")


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, marks=() if model.endswith("edge steps") else pytest.mark.full)
        for model in LAYERS
    ],
)
def test_every_model_runs_within_the_budget(model, data):
    network = make_network(model, load_graph(data, "actor"))
    count = num_parameters(network.blocks)
    assert budget / (1 + EXPERIMENT.parameters_within) <= count <= budget
    assert network(load_graph(data, "actor")).shape == (60, 5)


def test_scores_by_hand(data):
    class Certain(torch.nn.Module):
        """Answers with the features, but for one node of the first class."""

        def forward(self, graph):
            x = graph.x.clone()
            x[0] = x[0].roll(1)
            return x

    everywhere = torch.ones(60, dtype=torch.bool)
    assert_close(score(Certain(), load_graph(data, "actor"), everywhere), 59 / 60)
    # One of thirty pairs of classes is tied with all of one, and told wrong with all of the other.
    assert_close(score(Certain(), load_graph(data, "minesweeper"), everywhere), 59 / 60)


@pytest.mark.full
def test_a_run_learns_and_follows_its_seed(data, monkeypatch):
    monkeypatch.setattr(heterophilous, "steps_per_check", 10)
    monkeypatch.setattr(heterophilous, "most_steps", 40)
    monkeypatch.setattr(heterophilous, "budget", 4000)
    results = [run("actor", "SAGE + TreeSSMConv, edge steps", seed, 1e-2, data) for seed in (0, 0)]
    for result in results:
        assert result.pop("seconds") > 0
    assert results[0] == results[1]
    assert results[0]["accuracy"] > 0.5  # chance: 0.2


def test_the_command_goes_through_the_splits(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(heterophilous, "steps_per_check", 1)
    monkeypatch.setattr(heterophilous, "most_steps", 1)
    path = tmp_path / "runs.json"
    options = ["--data", str(data), "--dataset", "minesweeper", "--model", "GCN"]
    runs = main(EXPERIMENT, [*options, "--seeds", "2", "--json", str(path)])
    assert len(runs) == len(heterophilous.learning_rates) + 1
    assert json.loads(path.read_text())["runs"] == runs
    assert "| GCN | " in capsys.readouterr().out


def test_a_block_adds_to_what_it_was_given(data):
    network = Network("GCN", 5, 5, 8, 16).eval()
    for block in network.blocks:
        torch.nn.init.zeros_(block.mlp[3].weight), torch.nn.init.zeros_(block.mlp[3].bias)
    graph = load_graph(data, "actor")
    assert_close(network(graph), network.answer(network.norm(network.encoder(graph.x))))
