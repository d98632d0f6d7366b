"""The one way an experiment is run: its cells, their runs in a file, a table and a picture."""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness.machine import describe
from benchmarks.harness.report import machine_lines
from benchmarks.harness.units import positive, positive_float
from experiments.store import complete

NAMES = (
    "vision",
    "digits",
    "text",
    "text_edge_steps",
    "long_range",
    "long_range_routes",
    "real_graphs",
    "regions",
    "regions_peers",
    "segmentation",
    "heterophilous",
)


@dataclass(frozen=True)
class Experiment:
    """A comparison of networks that are trained alike.

    Args:
        name (str): That of its module, and of the files that it writes if not told otherwise.
        about (str): What is compared, and how.
        cells (list): What is trained, each as arguments of :obj:`run`. An option of every name
            leaves the cells that hold one of its values.
        settings (dict): More arguments of :obj:`run`, by name, each a function of the cell. An
            option of every name takes their place.
        run (Callable): One training of a cell, for a seed: what is measured, as plain values, with
            `num_parameters`, `accuracy` on the test set and, where learning rates are chosen,
            `validation`.
        table (Callable): What is printed of all runs.
        plot (Callable, optional): Draws all runs into a file.
        free (tuple): The names whose option puts any numbers into all cells.
        seeds (int): The number of seeds of every cell. 0: a cell holds its own.
        learning_rates (tuple): From which each cell gets the one that is best on the validation
            set of the first seed. Without any, a cell is run as it is.
        parameters_within (float): By which share the networks' parameters may differ.
        data (str): What the folder holds that `--data` names, which :obj:`run` then gets as `data`;
            nothing where none is needed.
    """

    name: str
    about: str
    cells: list[dict]
    settings: dict[str, Callable[[dict], float]]
    run: Callable[..., dict]
    table: Callable[[list[dict]], str]
    plot: Callable[[list[dict], Path], None] | None = None
    free: tuple[str, ...] = ()
    seeds: int = 5
    learning_rates: tuple[float, ...] = ()
    parameters_within: float = 0.02
    data: str = ""


def main(experiment: Experiment, argv: list[str]) -> list[dict]:
    args = parse(experiment, argv)
    torch.set_num_threads(1)  # Gains little from more at this size; the same bits everywhere.
    machine = describe("cpu")
    if experiment.data:
        experiment = replace(experiment, run=with_data(experiment, args.data))
    runs = complete_cells(experiment, args.json, machine, args.cells, args.seeds)
    check_parameters(runs, experiment.parameters_within)
    if experiment.plot:
        args.plot.parent.mkdir(parents=True, exist_ok=True)
        experiment.plot(runs, args.plot)
    print("\n".join([*machine_lines(machine), experiment.table(runs)]))
    return runs


def with_data(experiment: Experiment, folder: Path | None) -> Callable[..., dict]:
    """Its `run` for the data of a folder, without which a file of results can only be shown."""

    def refuse(**_) -> dict:
        raise SystemExit(f"--data FOLDER is needed, as runs are missing: {experiment.data}")

    return refuse if folder is None else partial(experiment.run, data=folder)


def parse(experiment: Experiment, argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments {experiment.name}",
        description=experiment.about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(name: str, help: str, **arguments) -> None:
        parser.add_argument(f"--{name.replace('_', '-')}", help=help, **arguments)

    for name, first in experiment.cells[0].items():
        kind, values = type(first), list(dict.fromkeys(cell[name] for cell in experiment.cells))
        if name in experiment.free:
            kind, values = int if name == "seed" else positive, None
        add(name, "only this one, or these", action="append", type=kind, choices=values)
    for name, of in experiment.settings.items():
        kind = positive if isinstance(of(experiment.cells[0]), int) else positive_float
        add(name, "of every run (that of the cell)", type=kind, metavar="N")
    if experiment.seeds:
        add("seeds", f"runs per cell ({experiment.seeds})", type=positive, metavar="N")
    if experiment.data:
        add("data", experiment.data, type=Path, metavar="FOLDER")
    file, written = Path("outputs") / experiment.name, {"type": Path, "metavar": "FILE"}
    about_runs = "write every run here as it ends, and go on where the file ends"
    add("json", about_runs, default=file.with_suffix(".json"), **written)
    if experiment.plot:
        add("plot", "draw all runs here", default=file.with_suffix(".png"), **written)
    parser.set_defaults(seeds=experiment.seeds)
    args = parser.parse_args(argv)
    args.cells = cells_of(experiment, vars(args))
    if not args.cells:
        parser.error("no cell holds all of these")
    return args


def cells_of(experiment: Experiment, options: dict) -> list[dict]:
    """The cells that the options leave, with their settings."""
    cells = experiment.cells
    for name in experiment.cells[0]:
        values = options[name]
        if values and name in experiment.free:
            changed = [{**cell, name: value} for cell in cells for value in values]
            cells = [cell for index, cell in enumerate(changed) if cell not in changed[:index]]
        elif values:
            cells = [cell for cell in cells if cell[name] in values]
    return [
        {**cell, **{name: options[name] or of(cell) for name, of in experiment.settings.items()}}
        for cell in cells
    ]


def complete_cells(
    experiment: Experiment, path: Path, machine: dict, cells: list[dict], seeds: int
) -> list[dict]:
    """The runs of the cells in the file at `path`, after those that it lacked were added."""
    if experiment.learning_rates:
        first = [
            {**cell, "seed": 0, "learning_rate": rate}
            for cell in cells
            for rate in experiment.learning_rates
        ]
        runs = complete(path, machine, first, experiment.run)
        best = [{"learning_rate": chosen(runs, **cell)[0]["learning_rate"]} for cell in cells]
        keys = [{**cell, **rate} for cell, rate in zip(cells, best, strict=True)]
    else:
        keys = cells
    wanted = [{**key, "seed": seed} for seed in range(seeds) for key in keys] if seeds else keys
    runs = complete(path, machine, wanted, experiment.run)
    return [run for run in runs if any(cell.items() <= run.items() for cell in cells)]


def chosen(runs: list[dict], **cell) -> list[dict]:
    """A cell's runs with the learning rate that was best on the validation set of the first seed;
    the lowest of those that were equally good.
    """
    runs = [run for run in runs if cell.items() <= run.items()]
    first = [run for run in runs if run["seed"] == 0]
    if not first:
        return []
    best = min(first, key=lambda run: (-run["validation"], run["learning_rate"]))
    return [run for run in runs if run["learning_rate"] == best["learning_rate"]]


def by_variant(runs: list[dict], variants: Iterable[str]) -> dict[str, list[dict]]:
    """The runs of each variant with its chosen learning rate."""
    found = {name: chosen(runs, variant=name) for name in variants}
    return {name: runs for name, runs in found.items() if runs}


def check_parameters(runs: list[dict], within: float) -> None:
    """Refuses to compare networks of other sizes."""
    least, most = (f(run["num_parameters"] for run in runs) for f in (min, max))
    if most > (1 + within) * least:
        raise ValueError(
            f"networks must have the same parameters within {within:.0%}, got {least:,} to {most:,}"
        )
