import pytest

from examples import custom_gnn


@pytest.fixture(autouse=True)
def small_trees(monkeypatch):
    monkeypatch.setattr(custom_gnn, "tree_depth", 4)


def test_both_models_learn_and_are_compared(capsys, monkeypatch):
    monkeypatch.setattr(custom_gnn, "batch_size", 5)
    accuracy = custom_gnn.main(["--epochs", "8", "--num-graphs", "60"])
    printed = capsys.readouterr().out
    assert "60 trees of 31 nodes, 15 held out" in printed
    assert "accuracy in % at distance     0     1     2" in printed
    assert accuracy.keys() == {"TreeSSMConv", "GCNConv"}
    # A quarter of the nodes has the most frequent distance.
    assert all(value > 0.35 for value in accuracy.values())
    for name, value in accuracy.items():
        row = next(line for line in printed.splitlines() if line.startswith(f"{name}  "))
        # All infected nodes are found, which are at distance 0.
        assert row.split()[1] == "100.0"
        assert f"epoch  8  accuracy {100 * value:5.1f} %" in printed


def test_the_same_seed_gives_the_same_bits():
    options = ["--epochs", "1", "--num-graphs", "4"]
    assert custom_gnn.main(options) == custom_gnn.main(options)
