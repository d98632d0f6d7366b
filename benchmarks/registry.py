"""The one list of benchmark rows: what is run, at which sizes, against which goal."""

import importlib
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from benchmarks.units import quantity

OPERATIONS = ("minimum_spanning_forest", "root_forest", "tree_scan", "selective_tree_scan")
LAYERS = ("tree_ssm_conv",)
# Whatever has rows, in the sequence of the table.
SUBJECTS = OPERATIONS + LAYERS

ROWS: list["Row"] = []


class NotMeasuredError(Exception):
    """What a row needs is missing on this machine; its text says what."""


class ResultsDifferError(Exception):
    """Ours and a peer disagree, so their times must not be compared."""


@dataclass(frozen=True)
class Ratio:
    """How ours and the peer are set against each other, and the bound the ratio has to keep.

    ``peer/ours`` says how many times faster ours is (at least the goal), ``ours/peer`` how many
    times dearer (at most the goal). Without a goal the ratio is only printed.
    """

    kind: str
    goal: float | None = None

    def value(self, ours: float, peer: float) -> float:
        return peer / ours if self.kind == "peer/ours" else ours / peer

    def is_met(self, value: float) -> bool | None:
        if self.goal is None:
            return None
        return value >= self.goal if self.kind == "peer/ours" else value <= self.goal

    def without_goal(self) -> "Ratio":
        return Ratio(self.kind)

    def __str__(self) -> str:
        if self.goal is None:
            return "-"
        return f"{'>=' if self.kind == 'peer/ours' else '<='} {self.goal:g}"


@dataclass(frozen=True)
class Limit:
    """The bound that ours alone has to keep, in the row's unit. Without a goal it is only printed.

    Has what :class:`Ratio` has, but looks at no peer.
    """

    goal: float | None = None
    unit: str = "s"
    is_least: bool = False
    kind: None = None

    def value(self, ours: float, peer: float | None) -> float:
        return ours

    def is_met(self, value: float) -> bool | None:
        if self.goal is None:
            return None
        return value >= self.goal if self.is_least else value <= self.goal

    def without_goal(self) -> "Limit":
        return Limit(None, self.unit, self.is_least)

    def __str__(self) -> str:
        if self.goal is None:
            return "-"
        return f"{'>=' if self.is_least else '<='} {quantity(self.goal, self.unit)}"


def speedup(goal: float | None = None) -> Ratio:
    return Ratio("peer/ours", goal)


def cost(goal: float | None = None) -> Ratio:
    return Ratio("ours/peer", goal)


def at_most(goal: float | None = None, unit: str = "s") -> Limit:
    return Limit(goal, unit)


def at_least(goal: float | None = None, unit: str = "s") -> Limit:
    return Limit(goal, unit, is_least=True)


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

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Row:
    """One registered piece of work; ``smoke`` are the sizes of a quick check, never judged."""

    op: str
    title: str
    function: Callable[..., list[Measurement]]
    goal: Ratio | Limit
    full: dict
    smoke: dict
    plotted: bool = False
    device: str = "cpu"

    def name(self, smoke: bool) -> str:
        return self.title.format(**(self.smoke if smoke else self.full))

    def run(self, repeats: int, smoke: bool) -> list[Result]:
        sizes = self.smoke if smoke else self.full
        goal = self.goal.without_goal() if smoke else self.goal
        name = self.name(smoke)
        try:
            measurements = self.function(repeats, **sizes)
        except NotMeasuredError as error:
            note = f"not measured: {error}"
            return [Result(self.op, name, name, str(goal), note=note)]
        return [self._result(name, goal, measurement) for measurement in measurements]

    def _result(self, name: str, goal: Ratio | Limit, measured: Measurement) -> Result:
        medians = {peer: statistics.median(times) for peer, times in measured.peers.items()}
        peer = min(medians, key=medians.get, default=None)
        ours = statistics.median(measured.ours)
        goal = goal if measured.judged else goal.without_goal()
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
            ratio_kind=goal.kind,
            met=goal.is_met(value),
            repeats=len(measured.ours),
            note=measured.note,
            num_nodes=measured.num_nodes,
            samples={"ours": measured.ours, **measured.peers},
        )


def row(
    title: str,
    goal: Ratio | Limit,
    full: dict,
    smoke: dict,
    plotted: bool = False,
    device: str = "cpu",
):
    """Registers the decorated function as a row of the subject its file is named after.

    The function gets ``repeats`` and one set of sizes by name and returns its measurements; the
    title is filled in from the same sizes.
    """

    def register(function):
        op = function.__module__.rpartition(".")[2]
        ROWS.append(Row(op, title, function, goal, full, smoke, plotted, device))
        return function

    return register


def all_rows() -> list[Row]:
    for op in SUBJECTS:
        importlib.import_module(f"benchmarks.{op}")
    return sorted(ROWS, key=lambda entry: SUBJECTS.index(entry.op))
