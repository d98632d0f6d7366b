from pathlib import Path

import pytest

from benchmarks.registry import (
    OPERATIONS,
    Measurement,
    NotMeasuredError,
    Row,
    all_rows,
    cost,
    speedup,
)

ROOT = Path(__file__).parents[2]


def make_row(function):
    return Row("tree_scan", "{size} nodes", function, speedup(goal=2), {"size": 9}, {"size": 3})


def test_every_operation_has_a_file_and_rows():
    folders = {path.parent.name for path in (ROOT / "groot_graph" / "ops").glob("*/api.py")}
    assert set(OPERATIONS) == folders
    assert {row.op for row in all_rows()} == folders


def test_row_names_are_unique():
    names = [(row.op, row.name(smoke=False)) for row in all_rows()]
    assert len(set(names)) == len(names)


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
