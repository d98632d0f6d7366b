"""Launches and calls are counts that depend on sizes alone, so they are tested."""

import pytest

from benchmarks import launches
from benchmarks.launches import GOALS, Counts, calls_of, count


@pytest.mark.parametrize("operation", GOALS)
def test_no_more_launches_and_calls_than_the_goal(operation):
    found, goal = count(calls_of()[operation]), GOALS[operation]
    assert 0 < found.launches <= goal.launches
    assert 0 < found.calls <= goal.calls


def test_every_count_is_printed_beside_its_goal(capsys, monkeypatch):
    small = {name: lambda: None for name in GOALS}
    monkeypatch.setattr(launches, "calls_of", lambda: small)
    monkeypatch.setattr(launches, "GOALS", dict.fromkeys(GOALS, Counts(7, 9)))
    monkeypatch.setattr(launches, "SAMPLES", 1)
    launches.main()
    *_, first, second, _, launch = capsys.readouterr().out.splitlines()
    assert first == "| minimum_spanning_forest | 0 | 7 | 0 | 9 |"
    assert second == "| root_forest | 0 | 7 | 0 | 9 |"
    assert "8 tensors and 4 numbers" in launch and "goal: 3 µs" in launch
