"""The one list of benchmark rows: what is run, at which sizes, against which goal."""

import importlib
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from benchmarks.harness.units import quantity

FOLDER = Path(__file__).parents[1]
GROUPS = ("ops", "networks")

ROWS: list["Row"] = []


class NotMeasuredError(Exception):
    """What a row needs is missing on this machine; its text says what."""


class ResultsDifferError(Exception):
    """Ours and a peer disagree, so their times must not be compared."""


@dataclass(frozen=True)
class Goal:
    """How ours is judged, and the bound to keep. Without a bound it is only printed.

    ``peer/ours`` says how many times faster ours is (at least the bound), ``ours/peer`` how many
    times dearer (at most the bound). Without a kind ours alone is judged, in its unit.
    """

    kind: str | None
    bound: float | None = None
    is_least: bool = False
    unit: str | None = None

    def value(self, ours: float, peer: float | None) -> float | None:
        if self.kind is None:
            return ours
        if peer is None:
            return None
        return peer / ours if self.kind == "peer/ours" else ours / peer

    def is_met(self, value: float | None) -> bool | None:
        if self.bound is None or value is None:
            return None
        return value >= self.bound if self.is_least else value <= self.bound

    def without_bound(self) -> "Goal":
        return replace(self, bound=None)

    def __str__(self) -> str:
        if self.bound is None:
            return "-"
        bound = f"{self.bound:.3g}" if self.unit is None else quantity(self.bound, self.unit)
        return f"{'>=' if self.is_least else '<='} {bound}"


def speedup(goal: float | None = None) -> Goal:
    return Goal("peer/ours", goal, is_least=True)


def cost(goal: float | None = None) -> Goal:
    return Goal("ours/peer", goal)


def at_most(goal: float | None = None, unit: str = "s") -> Goal:
    return Goal(None, goal, unit=unit)


def at_least(goal: float | None = None, unit: str = "s") -> Goal:
    return Goal(None, goal, is_least=True, unit=unit)


@dataclass
class Measurement:
    """What one row measured: samples of ours and of every peer, in ``unit``."""

    ours: list[float]
    peers: dict[str, list[float]]
    unit: str = "s"
    work: str = ""
    note: str = ""
    judged: bool = True
    num_nodes: int | None = None
    details: dict = field(default_factory=dict)  # plain values for the JSON file alone


@dataclass
class Result:
    """One line of the table and one entry of the JSON file."""

    op: str
    row: str
    work: str
    goal: str
    unit: str = "s"
    ours: float | None = None
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    ratio_kind: str | None = None
    met: bool | None = None
    repeats: int = 0
    note: str = ""
    num_nodes: int | None = None
    samples: dict[str, list[float]] = field(default_factory=dict)
    details: dict = field(default_factory=dict)

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Row:
    """One registered piece of work; ``smoke`` are the sizes of a quick check, never judged."""

    op: str
    title: str
    function: Callable[..., list[Measurement]]
    goal: Goal
    full: dict
    smoke: dict
    plotted: bool = False
    device: str = "cpu"
    least: dict = field(default_factory=dict)

    def name(self, smoke: bool) -> str:
        return self.title.format(**(self.smoke if smoke else self.full))

    def with_sizes(self, sizes: dict) -> "Row":
        """The row with those of the sizes that it has.

        Numbers, tuples and flags can be changed, to the same type. What is a text tells rows apart.
        """
        changed = {name: value for name, value in sizes.items() if name in self.full}
        for name, value in changed.items():
            wanted, least = type(self.full[name]), self.least.get(name, 1)
            if wanted is str or type(value) is not wanted:
                raise ValueError(f"{name} must be of type {wanted.__name__}, got {value!r}")
            if wanted is int and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        return replace(self, full=self.full | changed, smoke=self.smoke | changed)

    def run(self, repeats: int, smoke: bool) -> list[Result]:
        sizes = self.smoke if smoke else self.full
        goal = self.goal.without_bound() if smoke else self.goal
        name = self.name(smoke)
        try:
            measurements = self.function(repeats, **sizes)
        except NotMeasuredError as error:
            note = f"not measured: {error}"
            return [Result(self.op, name, name, str(goal), note=note)]
        return [self._result(name, goal, measurement) for measurement in measurements]

    def _result(self, name: str, goal: Goal, measured: Measurement) -> Result:
        medians = {peer: statistics.median(times) for peer, times in measured.peers.items()}
        peer = min(medians, key=medians.get, default=None)
        ours = statistics.median(measured.ours)
        goal = goal if measured.judged else goal.without_bound()
        value = goal.value(ours, medians.get(peer))
        return Result(
            op=self.op,
            row=name,
            work=f"{name}, {measured.work}" if measured.work else name,
            goal=str(goal),
            unit=measured.unit,
            ours=ours,
            peer=peer,
            peer_value=medians.get(peer),
            ratio=value if goal.kind else None,
            ratio_kind=goal.kind if peer else None,
            met=goal.is_met(value),
            repeats=len(measured.ours),
            note=measured.note,
            num_nodes=measured.num_nodes,
            samples={"ours": measured.ours, **measured.peers},
            details=measured.details,
        )


def row(
    title: str,
    goal: Goal,
    full: dict,
    smoke: dict,
    plotted: bool = False,
    device: str = "cpu",
    least: dict | None = None,
):
    """Registers the decorated function as a row of the subject its file is named after.

    The function gets ``repeats`` and one set of sizes by name and returns its measurements; the
    title is filled in from the same sizes, of which ``least`` are the smallest that make sense.
    """

    def register(function):
        op = function.__module__.rpartition(".")[2]
        ROWS.append(Row(op, title, function, goal, full, smoke, plotted, device, least or {}))
        return function

    return register


def subjects(group: str) -> list[str]:
    """Whatever has rows, in the sequence of the table: a file of the group's folder each."""
    files = sorted((FOLDER / group).glob("*.py"))
    return [file.stem for file in files if not file.stem.startswith("_")]


def rows_of(group: str, subject: str | None = None) -> list[Row]:
    """The rows of a group, or of one of its subjects, which alone needs what its peers need."""
    names = subjects(group) if subject is None else [subject]
    for name in names:
        importlib.import_module(f"benchmarks.{group}.{name}")
    return sorted((row for row in ROWS if row.op in names), key=lambda row: names.index(row.op))
