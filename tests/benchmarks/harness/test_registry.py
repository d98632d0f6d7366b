from pathlib import Path

import pytest

from benchmarks.harness.registry import (
    GROUPS,
    ROWS,
    Measurement,
    NotMeasuredError,
    Row,
    at_least,
    at_most,
    cost,
    row,
    rows_of,
    speedup,
    subjects,
)

ROOT = Path(__file__).parents[3]


def make_row(function, goal=None):
    goal = goal or speedup(goal=2)
    return Row("tree_scan", "{size} nodes", function, goal, {"size": 9}, {"size": 3})


def test_every_operation_has_a_file_and_rows():
    folders = {path.parent.name for path in (ROOT / "groot_graph" / "ops").glob("*/api.py")}
    assert folders and folders <= set(subjects("ops"))
    for device in ("cpu", "cuda"):
        assert {row.op for row in rows_of("ops") if row.device == device} >= folders


@pytest.mark.parametrize("group", GROUPS)
def test_every_file_of_a_group_has_rows_in_its_sequence(group):
    names = [row.op for row in rows_of(group)]
    assert list(dict.fromkeys(names)) == subjects(group)


@pytest.mark.parametrize("smoke", [True, False])
def test_row_names_are_unique(smoke):
    rows = [row for group in GROUPS for row in rows_of(group)]
    names = [(row.device, row.op, row.name(smoke)) for row in rows]
    assert len(set(names)) == len(names)


def test_a_row_is_registered_by_its_decorator_alone(monkeypatch):
    monkeypatch.setattr("benchmarks.harness.registry.ROWS", rows := [])

    @row("{size} nodes", at_most(2e-3), {"size": 9}, {"size": 3}, device="cuda")
    def function(repeats, size):
        return [Measurement([size / 1000] * repeats, {})]

    (registered,) = rows
    assert (registered.op, registered.device) == ("test_registry", "cuda")
    (result,) = registered.run(repeats=4, smoke=False)
    assert (result.row, result.goal, result.met) == ("9 nodes", "<= 2 ms", False)
    assert result.samples == {"ours": [0.009] * 4}


def test_every_row_on_a_gpu_with_a_goal_is_judged_by_what_it_says():
    """A time by seconds, a rate by so many per second, a share by its peer."""
    goals = [row.goal for row in ROWS if row.device == "cuda" and row.goal.bound is not None]
    for goal in goals:
        assert goal.is_met(goal.bound)
        worse = goal.bound * (0.9 if goal.is_least else 1.1)
        assert not goal.is_met(worse)
        assert (goal.unit is None) == (goal.kind is not None)


def test_sizes_can_be_changed_to_the_same_type():
    sizes = {"size": 9, "kind": "a", "wide": False, "many": (1, 2)}
    entry = Row("tree_scan", "{kind} {size}", None, cost(), sizes, sizes, least={"size": 4})
    changed = entry.with_sizes({"size": 5, "wide": True, "many": (3,), "other": 1})
    assert changed.full == {"size": 5, "kind": "a", "wide": True, "many": (3,)}
    assert changed.name(smoke=True) == "a 5"
    for name, value, message in [
        ("size", 3, "size must be at least 4, got 3"),
        ("size", 5.0, "size must be of type int, got 5.0"),
        ("wide", 1, "wide must be of type bool, got 1"),
        ("kind", "b", "kind must be of type str, got 'b'"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}$"):
            entry.with_sizes({name: value})


def test_a_ratio_without_a_peer_is_not_judged():
    (result,) = make_row(lambda repeats, size: [Measurement([1.0], {})]).run(1, smoke=False)
    assert (result.ours, result.ratio, result.ratio_kind, result.met) == (1.0, None, None, None)


@pytest.mark.parametrize(
    ("ratio", "ours", "peer", "value", "met"),
    [
        (speedup(goal=2), 1.0, 2.0, 2.0, True),
        (speedup(goal=2), 1.0, 1.9, 1.9, False),
        (cost(goal=4), 4.0, 1.0, 4.0, True),
        (cost(goal=4), 4.1, 1.0, 4.1, False),
        (cost(), 9.0, 1.0, 9.0, None),
    ],
)
def test_ratio(ratio, ours, peer, value, met):
    assert ratio.value(ours, peer) == pytest.approx(value)
    assert ratio.is_met(ratio.value(ours, peer)) is met


@pytest.mark.parametrize(
    ("limit", "ours", "met", "text"),
    [
        (at_most(0.3e-3), 0.3e-3, True, "<= 300 us"),
        (at_most(0.3e-3), 0.31e-3, False, "<= 300 us"),
        (at_least(1e9, "edges/s"), 1e9, True, ">= 1 G edges/s"),
        (at_least(1e9, "edges/s"), 9e8, False, ">= 1 G edges/s"),
        (at_most(), 9.0, None, "-"),
    ],
)
def test_limit_looks_at_ours_alone(limit, ours, met, text):
    unit = limit.unit
    entry = make_row(lambda repeats, size: [Measurement([ours], {}, unit=unit)], limit)
    (result,) = entry.run(repeats=1, smoke=False)
    assert (result.ours, result.met, result.goal) == (ours, met, text)
    assert (result.peer, result.peer_value, result.ratio, result.ratio_kind) == (None,) * 4
    (smoke_result,) = entry.run(repeats=1, smoke=True)
    assert (smoke_result.met, smoke_result.goal) == (None, "-")


def test_only_what_is_judged_has_the_goal():
    def function(repeats, size):
        return [Measurement([5.0], {}), Measurement([1.0], {}, work="part", judged=False)]

    judged, printed = make_row(function, at_most(2.0)).run(repeats=1, smoke=False)
    assert (judged.goal, judged.met) == ("<= 2 s", False)
    assert (printed.work, printed.goal, printed.met) == ("9 nodes, part", "-", None)


def test_row_takes_medians_and_the_fastest_peer():
    def function(repeats, size):
        peers = {"slow": [8.0, 8.0, 8.0], "fast": [9.0, 3.0, 6.0]}
        return [Measurement([9.0, 1.0, 2.0], peers, work="part")]

    (result,) = make_row(function).run(repeats=3, smoke=False)
    assert (result.work, result.ours, result.repeats) == ("9 nodes, part", 2.0, 3)
    assert (result.peer, result.peer_value) == ("fast", 6.0)
    assert (result.ratio, result.met) == (3.0, True)
    assert result.samples["slow"] == [8.0, 8.0, 8.0]


def test_smoke_sizes_are_not_judged():
    entry = make_row(lambda repeats, size: [Measurement([1.0], {"peer": [3.0]})])
    (result,) = entry.run(repeats=1, smoke=True)
    assert (result.row, result.ratio, result.goal, result.met) == ("3 nodes", 3.0, "-", None)


def test_row_without_its_peer_says_so():
    def function(repeats, size):
        raise NotMeasuredError("needs the peer")

    (result,) = make_row(function).run(repeats=1, smoke=False)
    assert (result.ours, result.met, result.goal) == (None, None, ">= 2")
    assert result.note == "not measured: needs the peer"
