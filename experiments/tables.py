"""What several runs are like, in Markdown and in pictures."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev


def markdown(header: Iterable, rows: Iterable[Iterable]) -> str:
    lines = [" | ".join(map(str, cells)) for cells in (header, *rows)]
    rule = f"|{lines[0].count(' | ') * ' --- |'} --- |"
    first, *others = (f"| {line} |" for line in lines)
    return "\n".join([first, rule, *others])


def summary(runs: list[dict]) -> str:
    """How many runs, how long they took, and how large the networks are."""
    sizes = sorted(run["num_parameters"] for run in runs)
    hours = sum(run["seconds"] for run in runs) / 3600
    return f"{len(runs)} runs, {hours:.1f} hours; {sizes[0]:,} to {sizes[-1]:,} parameters"


def spread(values: list[float], form: str) -> str:
    """Mean and standard deviation, with the decimals of `form`; of one value, itself."""
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{mean(values):{form}} ± {stdev(values):{form.lstrip('+')}}"


def percents(runs: list[dict]) -> list[float]:
    return [100 * run["accuracy"] for run in runs]


def accuracy_cell(runs: list[dict]) -> str:
    """Right answers on the test set in percent; nothing where there are no runs."""
    return spread(percents(runs), ".1f") if runs else ""


def gains(runs: list[dict], reference: list[dict]) -> list[float]:
    """Points by which runs are above the reference's run of the same seed, where it has one."""
    accuracy = {run["seed"]: run["accuracy"] for run in reference}
    return [
        100 * (run["accuracy"] - accuracy[run["seed"]]) for run in runs if run["seed"] in accuracy
    ]


def against(runs: list[dict], reference: list[dict], form: str) -> str:
    """The paired difference to the reference; nothing for the reference itself."""
    points = [] if runs == reference else gains(runs, reference)
    return spread(points, form) if points else ""


def sizes(runs: list[dict]) -> str:
    return "/".join(sorted({f"{run['num_parameters']:,}" for run in runs}))


@contextmanager
def figure(path: Path, *grid: int, **settings) -> Iterator:
    """Axes of a picture that is written to the path afterwards, in an array."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    drawn, axes = plt.subplots(*grid, squeeze=False, layout="constrained", **settings)
    yield axes
    drawn.savefig(path, dpi=110)
    plt.close(drawn)


def plot_variants(found: dict[str, list[dict]], reference: str, what: str, path: Path) -> None:
    """One row per variant: a dot per seed, a bar at the mean."""
    with figure(path, figsize=(8, 0.42 * len(found) + 1.2)) as ((ax,),):
        for row, (variant, runs) in enumerate(found.items()):
            draw_scores(ax, row, runs, variant == reference)
        ax.set_yticks(range(len(found)), found)
        ax.invert_yaxis()
        ax.grid(axis="x", alpha=0.3)
        ax.set_xlabel(f"{what}, % (a dot per seed, a bar at the mean)")


def draw_scores(ax, row: int, runs: list[dict], is_reference: bool) -> None:
    """A dot per seed, a bar at the mean."""
    scores = percents(runs)
    color = "tab:orange" if is_reference else "tab:blue"
    ax.plot(scores, [row] * len(scores), "o", color=color, alpha=0.5, markeredgewidth=0)
    ax.plot(mean(scores), row, "|", color=color, markersize=18, markeredgewidth=3)
