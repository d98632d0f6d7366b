r"""Training runs written down one by one, so that a benchmark goes on where it was stopped."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

from tqdm import tqdm


def complete(path: Path, machine: dict, wanted: list[dict], run: Callable[..., dict]) -> list[dict]:
    """All runs in the file at `path`, after `run(**key)` has added those of the wanted ones that it
    lacked. A run holds the entries of its key.
    """
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    for key in tqdm([key for key in wanted if not _is_among(key, runs)], desc="runs"):
        runs.append(run(**key))
        write(path, {"machine": machine, "runs": runs})
    return runs


def _is_among(key: dict, runs: list[dict]) -> bool:
    return any(all(run[name] == value for name, value in key.items()) for run in runs)


def write(path: Path, results: dict) -> None:
    """Puts results into a file, which is whole at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(temporary, path)


def spread(values: list[float], form: str) -> str:
    """Mean and standard deviation, with the decimals of `form`."""
    deviation = stdev(values) if len(values) > 1 else math.nan
    return f"{mean(values):{form}} ± {deviation:{form.lstrip('+')}}"


def gains(runs: list[dict], reference: list[dict]) -> list[float]:
    """Points by which runs are above the reference's run of the same seed, where it has one."""
    accuracy = {run["seed"]: run["accuracy"] for run in reference}
    return [
        100 * (run["accuracy"] - accuracy[run["seed"]]) for run in runs if run["seed"] in accuracy
    ]


def draw_scores(ax, row: int, scores: list[float], is_reference: bool) -> None:
    """A dot per seed, a bar at the mean."""
    color = "tab:orange" if is_reference else "tab:blue"
    ax.plot(scores, [row] * len(scores), "o", color=color, alpha=0.5, markeredgewidth=0)
    ax.plot(mean(scores), row, "|", color=color, markersize=18, markeredgewidth=3)
