from examples.custom_gnn import main


def test_both_models_are_trained_and_compared(capsys):
    accuracy = main(["--epochs", "1", "--num-graphs", "8"])
    printed = capsys.readouterr().out
    assert "8 trees of 255 nodes, 2 held out" in printed
    assert "accuracy in % at distance     0     1     2" in printed
    assert accuracy.keys() == {"TreeSSMConv", "GCNConv"}
    assert all(0 <= value <= 1 for value in accuracy.values())


def test_the_same_seed_gives_the_same_bits():
    options = ["--epochs", "1", "--num-graphs", "4"]
    assert main(options) == main(options)
