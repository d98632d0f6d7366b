"""The script for the first run on a GPU, as far as it goes without one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "gpu" / "first_run.sh"


def first_run(*arguments, tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "OUT": str(tmp_path / "out"), "PYTHON": sys.executable}
    return subprocess.run(
        [SCRIPT, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path
    )


@pytest.mark.parametrize("arguments", [(), ("everything",)])
def test_its_parts_are_told(tmp_path, arguments):
    done = first_run(*arguments, tmp_path=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "usage: tests/gpu/first_run.sh measure|tests|counters\n"


@pytest.mark.full
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_failed_is_listed_at_the_end(tmp_path):
    done = first_run("measure", tmp_path=tmp_path)
    assert done.returncode == 1
    steps = done.stdout.partition("\nfailed:\n")[2].splitlines()
    assert len(steps) >= 4 and "nvidia-smi" in steps[0]
    assert "--device cuda needs a GPU" in (tmp_path / "out" / "measure.log").read_text()


@pytest.mark.full
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_tests_are_found_in_a_checkout(tmp_path):
    done = first_run("tests", tmp_path=tmp_path)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(" skipped in ") == 2
