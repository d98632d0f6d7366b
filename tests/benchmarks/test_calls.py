"""The calls that layers and models take are a count, not a time, so they are tested."""

import pytest

from benchmarks.calls import GOALS, Calls, count, main, tree_ssm_conv
from groot_graph import checks


@pytest.mark.parametrize("make", GOALS, ids=lambda make: make.__name__)
def test_no_more_calls_than_the_goal(make):
    assert count(make()).all <= GOALS[make]


def test_checks_are_told_apart_and_a_first_call_is_not_counted():
    filled = []

    def function():
        if not filled:
            filled.append(checks.check_int("x", 1))
        checks.check_int("x", 1)

    assert count(function) == Calls(1, 1)


def test_every_goal_is_printed(capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.calls.GOALS", {tree_ssm_conv: 80})
    main()
    assert capsys.readouterr().out.splitlines()[-1].endswith("| 80 |")
