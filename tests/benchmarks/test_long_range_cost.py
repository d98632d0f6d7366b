import json

import pytest

from benchmarks.long_range_cost import cost_table, growth_table, main
from benchmarks.peers import MODELS, OURS


@pytest.mark.full
def test_the_command_writes_what_it_prints(tmp_path, capsys):
    file = tmp_path / "results.json"
    options = ["--task", "tree", "--distance", "2", "--nodes", "1000", "--repeats", "1"]
    results = main([*options, "--json", str(file)])
    assert json.loads(file.read_text()) == results
    assert [cost["model"] for cost in results["costs"]] == list(MODELS)
    assert all(cost["seconds"] > 0 and cost["bytes"] >= 0 for cost in results["costs"])
    printed = capsys.readouterr().out
    assert cost_table(results["costs"], "tree") in printed
    assert growth_table(results["growth"]) in printed


def test_tables():
    costs = [
        {"task": "tree", "distance": depth, "model": OURS, "seconds": depth / 1000, "bytes": 3e6}
        for depth in (3, 2)
    ]
    lines = cost_table(costs, "tree").splitlines()
    assert lines[0] == "| step on tree, distance | 2 | 3 |"
    assert lines[2] == f"| {OURS} | 2 ms, 3 MB | 3 ms, 3 MB |"
    growth = [{"num_nodes": 1000, "seconds": 0.0125}]
    assert growth_table(growth).splitlines()[2] == "| step, per node | 12.5 µs |"


@pytest.mark.parametrize("options", [["--repeats", "0"], ["--nodes", "9"]])
def test_bad_options_are_refused(options, capsys):
    with pytest.raises(SystemExit):
        main(options)
    assert "must be at least 1" in capsys.readouterr().err
