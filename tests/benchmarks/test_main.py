import json

import pytest
import torch

import groot_graph
from benchmarks.__main__ import main
from benchmarks.harness.registry import rows_of


@pytest.fixture(scope="module")
def smoke_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    return folder / "results.json", folder / "size.png"


@pytest.fixture(scope="module")
def smoke_json(smoke_files):
    results, plot = smoke_files
    argv = ["--smoke", "--repeats", "1", "--json", str(results), "--plot", str(plot)]
    assert main(argv) == 0
    return json.loads(results.read_text())


@pytest.mark.full
def test_smoke_run_has_every_row(smoke_json):
    found = {(result["op"], result["row"]) for result in smoke_json["results"]}
    rows = [row for row in rows_of("ops") if row.device == "cpu"]
    assert found == {(row.op, row.name(smoke=True)) for row in rows}


@pytest.mark.full
def test_smoke_run_measures_and_judges_nothing(smoke_json):
    assert {"cpu", "cores", "threads", "versions"} <= smoke_json["machine"].keys()
    for result in smoke_json["results"]:
        assert result["met"] is None
        assert result["note"].startswith("not measured") or len(result["samples"]["ours"]) == 1


@pytest.mark.full
def test_smoke_run_draws_the_plot(smoke_json, smoke_files):
    assert smoke_files[1].read_bytes().startswith(b"\x89PNG")


def test_selected_rows_are_in_the_table(capsys):
    argv = ["--smoke", "--repeats", "1", "--op", "tree_scan", "--row", "up, forward"]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines if "addcmul" in line] == [
        "2x7x7 nodes, 5 channels, up, forward"
    ]
    assert f"torch {torch.__version__}" in lines[1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--op", "nothing"], "invalid choice: 'nothing'"),
        (["--row", "nothing"], "--row 'nothing' matches no row"),
        (["--repeats", "0"], "must be at least 1, got 0"),
        (["--op", "root_forest", "--plot", "size.png"], "--plot needs"),
        (["--json", "no/such/folder.json"], "is not a directory"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--set", "side=two"], "must be NAME=VALUE"),
        (["--set", "side=0"], "side must be at least 1, got 0"),
        (["--op", "tree_scan", "--set", "token=9"], "no row that is selected has a size of this"),
        (["--show", "no/such/file.json"], "no such file"),
    ],
)
def test_bad_arguments_end_before_the_run(argv, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_device_without_rows_ends_before_the_run(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SystemExit):
        main(["--op", "large_graph", "--device", "cuda"])
    assert "--op large_graph has no row for --device cuda" in capsys.readouterr().err


def test_wrong_result_ends_the_run(monkeypatch, capsys):
    right = groot_graph.minimum_spanning_forest
    monkeypatch.setattr(groot_graph, "minimum_spanning_forest", lambda *args: ~right(*args))
    assert main(["--smoke", "--op", "minimum_spanning_forest"]) == 1
    captured = capsys.readouterr()
    assert "total weight of the forest, ours and SciPy" in captured.err
    assert captured.out == ""


def test_a_size_is_changed_and_a_file_shown_again(tmp_path, capsys):
    file = tmp_path / "results.json"
    argv = ["--smoke", "--repeats", "1", "--op", "tree_scan", "--row", "up", "--set", "channels=3"]
    assert main([*argv, "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "2x7x7 nodes, 3 channels, up, forward" in printed
    assert main(["--show", str(file)]) == 0
    assert capsys.readouterr().out == printed
