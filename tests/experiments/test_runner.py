import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import runner
from experiments.__main__ import command
from experiments.runner import NAMES, Experiment, check_parameters, main, parse

ROOT = Path(__file__).parents[2]


def run(task, seed, steps, learning_rate=0.0):
    """Learns best at a rate of 2; the seed is its accuracy."""
    return {
        "accuracy": float(seed),
        "validation": -abs(learning_rate - 2),
        "num_parameters": 100,
        "seconds": 1.0,
    }


TOY = Experiment(
    name="toy",
    about="Nothing.",
    cells=[{"task": "a"}, {"task": "b"}],
    settings={"steps": lambda cell: {"a": 3, "b": 4}[cell["task"]]},
    run=run,
    table=lambda runs: f"{len(runs)} runs",
    seeds=2,
)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "folder" / "runs.json"


def test_every_cell_has_every_seed_and_its_settings(file, capsys):
    runs = main(TOY, ["--json", str(file)])
    assert [(run["task"], run["seed"], run["steps"]) for run in runs] == [
        ("a", 0, 3), ("b", 0, 4), ("a", 1, 3), ("b", 1, 4)
    ]  # fmt: skip
    assert json.loads(file.read_text())["runs"] == runs
    assert capsys.readouterr().out.splitlines()[-1] == "4 runs"


def test_options_leave_cells_and_take_the_place_of_settings(file):
    runs = main(TOY, ["--json", str(file), "--task", "b", "--steps", "9", "--seeds", "1"])
    assert [(run["task"], run["seed"], run["steps"]) for run in runs] == [("b", 0, 9)]


def test_only_runs_of_the_cells_are_told(file):
    main(TOY, ["--json", str(file), "--steps", "9"])
    runs = main(TOY, ["--json", str(file)])
    assert {run["steps"] for run in runs} == {3, 4}
    assert len(json.loads(file.read_text())["runs"]) == 8


def test_the_rate_is_chosen_with_the_first_seed_and_the_others_have_it_alone(file):
    experiment = replace(TOY, learning_rates=(1.0, 2.0, 3.0))
    runs = main(experiment, ["--json", str(file), "--task", "a"])
    assert [(run["seed"], run["learning_rate"]) for run in runs] == [
        (0, 1.0), (0, 2.0), (0, 3.0), (1, 2.0)
    ]  # fmt: skip


def test_an_interrupted_command_keeps_the_runs_that_ended(file):
    def interrupted(**key):
        if key["seed"] == 1:
            raise KeyboardInterrupt
        return run(**key)

    with pytest.raises(KeyboardInterrupt):
        main(replace(TOY, run=interrupted), ["--json", str(file), "--task", "a"])
    (kept,) = json.loads(file.read_text())["runs"]
    assert kept["seed"] == 0
    assert main(TOY, ["--json", str(file), "--task", "a"])[0] == kept


def test_networks_of_other_sizes_are_not_compared():
    check_parameters([{"num_parameters": 100}, {"num_parameters": 102}], 0.02)
    with pytest.raises(ValueError, match="same parameters within 2%, got 100 to 103"):
        check_parameters([{"num_parameters": 103}, {"num_parameters": 100}], 0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "--seeds: must be at least 1, got 0"),
        (["--steps", "0"], "--steps: must be at least 1, got 0"),
        (["--steps", "2.5"], "--steps: invalid positive value: '2.5'"),
        (["--rate", "nan"], "--rate: must be above 0 and finite, got nan"),
        (["--depth", "0"], "--depth: must be at least 1, got 0"),
        (["--task", "c"], "invalid choice: 'c'"),
    ],
)
def test_bad_options_are_refused(options, message, capsys):
    cells = [{"task": "a", "depth": 1}]
    settings = {**TOY.settings, "rate": lambda cell: 0.1}
    with pytest.raises(SystemExit):
        parse(replace(TOY, cells=cells, settings=settings, free=("depth",)), options)
    assert message in capsys.readouterr().err


def test_every_experiment_is_named_and_found():
    files = {path.stem for path in (ROOT / "experiments").glob("*.py")}
    assert set(NAMES) <= files
    for name in NAMES:
        assert importlib.import_module(f"experiments.{name}").EXPERIMENT.name == name


# Those that are still being run are beside it, in `unfinished`.
PUBLISHED = [path.stem for path in sorted((ROOT / "experiments" / "results").glob("*.json"))]


@pytest.mark.parametrize("name", PUBLISHED)
def test_nothing_is_left_to_run_of_the_published_results(name, tmp_path, capsys, monkeypatch):
    """And every row that is printed stands in a document."""
    assert name in NAMES
    experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
    monkeypatch.setattr(runner, "describe", lambda device: None)
    monkeypatch.setattr(runner, "machine_lines", lambda machine: [])
    results = ROOT / "experiments" / "results" / f"{name}.json"
    main(replace(experiment, run=None, plot=None), ["--json", str(results)])
    documents = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) > 5
    assert [row for row in rows if row not in documents] == []


def test_the_command_names_the_experiments(capsys):
    assert command([]) == 0
    assert command(["nothing"]) == 2
    usage = capsys.readouterr().out.splitlines()[0]
    assert all(name in usage for name in NAMES)
