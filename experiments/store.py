"""Runs in a file, written down one by one, so that an experiment goes on where it was stopped."""

import json
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from benchmarks.harness.report import write


def read(path: Path) -> list[dict]:
    return json.loads(path.read_text())["runs"] if path.exists() else []


def complete(path: Path, machine: dict, wanted: list[dict], run: Callable[..., dict]) -> list[dict]:
    """All runs in the file at `path`, after `run(**key)` has added those of the wanted ones that it
    lacked. A run holds the entries of its key.
    """
    runs = read(path)
    for key in tqdm([key for key in wanted if not is_among(key, runs)], desc="runs"):
        runs.append({**key, **run(**key)})
        write(path, {"machine": machine, "runs": runs})
    return runs


def is_among(key: dict, runs: list[dict]) -> bool:
    return any(key.items() <= run.items() for run in runs)
