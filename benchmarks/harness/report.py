"""Results as one table for the terminal, as a file, and as a plot of cost against size."""

import json
import os
import statistics
from itertools import groupby
from pathlib import Path

from benchmarks.harness.registry import Result
from benchmarks.harness.units import quantity

HEADER = ("work", "ours", "peer", "peer's", "ratio", "goal", "met")
VERDICT = {True: "met", False: "MISSED", None: "-"}


def table(machine: dict, results: list[Result]) -> str:
    """The machine, the rows of each operation, and the rows' notes below."""
    lines = machine_lines(machine) + [""]
    body = [(result.op, _cells(result)) for result in results]
    columns = zip(HEADER, *(cells for _, cells in body), strict=True)
    widths = [max(map(len, column)) for column in columns]
    lines.append(_line(HEADER, widths))
    for op, rows in groupby(body, key=lambda row: row[0]):
        lines += [f"-- {op} ".ljust(len(_line(HEADER, widths)), "-")]
        lines += [_line(cells, widths) for _, cells in rows]
    notes = [f"{result.op}, {result.work}: {note}" for result in results if (note := _note(result))]
    if notes:
        lines += ["", "Notes", *notes]
    judged = [result.met for result in results if result.met is not None]
    if judged:
        lines += ["", f"{sum(judged)} of {len(judged)} goals met."]
    return "\n".join(lines)


def _note(result: Result) -> str:
    """The row's own note and, where it has several peers, the medians of them all."""
    peers = [name for name in result.samples if name != "ours"]
    medians = [(name, statistics.median(result.samples[name])) for name in peers]
    all_peers = [f"{name} {quantity(median, result.unit)}" for name, median in medians]
    return "; ".join(filter(None, [", ".join(all_peers) if len(peers) > 1 else "", result.note]))


def machine_lines(machine: dict) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    load = machine["load_before"]
    busy = "" if load is None else f", load before the run {load:.2f}"
    return [
        *([_gpu_line(machine["gpu"])] if "gpu" in machine else []),
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['system']}{busy}",
        f"Python {machine['python']}, {versions}",
    ]


def _gpu_line(gpu: dict) -> str:
    bandwidth = quantity(gpu["copy_bandwidth"], "B/s")
    return (
        f"{gpu['name']}, {quantity(gpu['memory'], 'B')}, driver {gpu['driver']}, "
        f"CUDA {gpu['cuda']}, CuPy {gpu['cupy']}, copy bandwidth {bandwidth}"
    )


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    first, *rest = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return "  ".join([first, *rest]).rstrip()


def _cells(result: Result) -> tuple[str, ...]:
    if result.ours is None:
        return (result.work, "-", "-", "-", "-", result.goal, "-")
    return (
        result.work,
        quantity(result.ours, result.unit),
        result.peer or "-",
        "-" if result.peer is None else quantity(result.peer_value, result.unit),
        "-" if result.ratio is None else f"{result.ratio:.3g} {result.ratio_kind}",
        result.goal,
        VERDICT[result.met],
    )


def write(path: Path, content: dict) -> None:
    """Puts plain values into a JSON file, which is whole at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(beside, path)


def read(path: Path) -> tuple[dict, list[Result]]:
    """The machine and the results of a file of these benchmarks."""
    content = json.loads(path.read_text())
    return content["machine"], [Result(**result) for result in content["results"]]


def plot(results: list[Result], path: Path) -> None:
    """Nanoseconds per node against the number of nodes, one line per operation, log-log."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    sized = [result for result in results if result.num_nodes]
    for op, of_op in groupby(sized, key=lambda result: result.op):
        nodes, seconds = zip(*((result.num_nodes, result.ours) for result in of_op), strict=True)
        axes.plot(nodes, [time * 1e9 for time in seconds], marker="o", label=op)
    axes.set(xscale="log", yscale="log", xlabel="nodes", ylabel="nanoseconds per node")
    axes.set_title("Cost against size, square grids")
    axes.set_ylim(1, 3 * axes.get_ylim()[1])
    axes.grid(which="major", alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
