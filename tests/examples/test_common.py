import importlib
import subprocess
import sys

import pytest
import torch

from tests.equipment.examples import EXAMPLES
from tests.equipment.failing import fails_at_once

from common import UserError, check_same, replacing, split, told_errors, write


@told_errors("--resume goes on")
def run(error=None):
    if error is not None:
        raise error
    return 7


def test_a_run_without_an_error_returns_what_it_returns():
    assert run() == run() == 7


@pytest.mark.parametrize("error", [UserError("no such folder"), OSError("no such folder")])
def test_errors_are_told_in_one_line(capsys, error):
    fails_at_once(capsys, lambda: run(error), "error: no such folder")


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run(ZeroDivisionError())


def test_an_interruption_tells_how_to_go_on(capsys):
    with pytest.raises(SystemExit) as exit_info:
        run(KeyboardInterrupt())
    assert exit_info.value.code == 130
    assert capsys.readouterr().err == "\nstopped; --resume goes on\n"


def test_an_interruption_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write(path, "old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    write(path, "new")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_settings_that_differ_are_named(tmp_path):
    check_same(tmp_path, {"epochs": 2, "seed": 0}, {"epochs": 2})
    with pytest.raises(UserError, match="made with epochs 2, this run has 3; another --output"):
        check_same(tmp_path, {"epochs": 2}, {"epochs": 3})


@pytest.mark.full
@pytest.mark.parametrize("name", [
    "affinity_map", "custom_gnn", "image_classification", "image_segmentation", "image_training",
    "object_detection", "text_finetune", "text_generation",
])  # fmt: skip
def test_every_example_starts_as_a_script(name, tmp_path):
    command = [sys.executable, EXAMPLES / f"{name}.py", "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: {name}.py")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "sizes"), [(1, [1]), (8, [8]), (9, [9]), (10, [8, 2]), (16, [8, 8]), (17, [8, 9])]
)
def test_no_batch_holds_one_image_beside_others(number, sizes):
    batches = split(torch.arange(number), 8)
    assert [len(batch) for batch in batches] == sizes
    assert torch.cat(batches).equal(torch.arange(number))


SEEDED = [
    "affinity_map",
    "image_classification",
    "image_segmentation",
    "image_training",
    "object_detection",
    "text_generation",
]


@pytest.mark.parametrize("seed", [-1, 99999999999999999999])
@pytest.mark.parametrize("name", SEEDED)
def test_an_impossible_seed_is_told_in_one_line(capsys, name, seed):
    main = importlib.import_module(f"examples.{name}").main
    fails_at_once(capsys, lambda: main(["--seed", str(seed)]), "--seed must lie from 0 to", seed)
