from pathlib import Path

import pytest

from benchmarks.registry import (
    OPERATIONS,
    SUBJECTS,
    Measurement,
    NotMeasuredError,
    Row,
    all_rows,
    at_least,
    at_most,
    cost,
    speedup,
)

ROOT = Path(__file__).parents[2]


def make_row(function, goal=None):
    goal = goal or speedup(goal=2)
    return Row("tree_scan", "{size} nodes", function, goal, {"size": 9}, {"size": 3})


def test_every_operation_has_a_file_and_rows():
    folders = {path.parent.name for path in (ROOT / "groot_graph" / "ops").glob("*/api.py")}
    assert set(OPERATIONS) == folders
    assert {row.op for row in all_rows()} == set(SUBJECTS)
    for device in ("cpu", "cuda"):
        assert {row.op for row in all_rows() if row.device == device} >= folders


@pytest.mark.parametrize("smoke", [True, False])
def test_row_names_are_unique(smoke):
    names = [(row.device, row.op, row.name(smoke)) for row in all_rows()]
    assert len(set(names)) == len(names)


def test_goals_on_a_gpu():
    rows = [row for row in all_rows() if row.device == "cuda"]
    assert [(row.op, row.name(smoke=False), str(row.goal)) for row in rows] == [
        ("minimum_spanning_forest", "128 grids of 56x56", "<= 300 us"),
        ("minimum_spanning_forest", "one 4096x4096 grid", ">= 1 G edges/s"),
        (
            "minimum_spanning_forest",
            "random graph of 10,000,000 nodes and 40,000,000 edges",
            ">= 1 G edges/s",
        ),
        (
            "root_forest",
            "128 trees of 56x56 nodes, with what the scans walk along",
            "<= 500 us",
        ),
        ("tree_scan", "128x56x56 nodes, 160 channels, both, forward", "<= 1.5"),
        ("tree_scan", "128x56x56 nodes, 160 channels, both, forward and backward", "<= 3"),
        (
            "selective_tree_scan",
            "8 chains of 8192 tokens, 1536 channels, 16 states, up, forward",
            "<= 2",
        ),
        (
            "tree_ssm_conv",
            "TreeSSMConv(96, 96), 128 images of 56x56, forward and backward",
            "-",
        ),
    ]


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
    row = make_row(lambda repeats, size: [Measurement([ours], {}, unit=unit)], limit)
    (result,) = row.run(repeats=1, smoke=False)
    assert (result.ours, result.met, result.goal) == (ours, met, text)
    assert (result.peer, result.peer_value, result.ratio, result.ratio_kind) == (None,) * 4
    (smoke_result,) = row.run(repeats=1, smoke=True)
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
    row = make_row(lambda repeats, size: [Measurement([1.0], {"peer": [3.0]})])
    (result,) = row.run(repeats=1, smoke=True)
    assert (result.row, result.ratio, result.goal, result.met) == ("3 nodes", 3.0, "-", None)


def test_row_without_its_peer_says_so():
    def function(repeats, size):
        raise NotMeasuredError("needs the peer")

    (result,) = make_row(function).run(repeats=1, smoke=False)
    assert (result.ours, result.met, result.goal) == (None, None, ">= 2")
    assert result.note == "not measured: needs the peer"
