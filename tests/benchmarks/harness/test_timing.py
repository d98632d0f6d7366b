import pytest
import torch

from benchmarks.harness import timing
from benchmarks.harness.registry import ResultsDifferError


def test_interleave_takes_turns_with_an_untimed_call_before_each_timed_one(monkeypatch):
    monkeypatch.setattr(timing, "LEAD_IN_SECONDS", 0.0)
    calls = []
    samples = timing.interleave(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2
    )
    assert "".join(calls) == "aabbaabb"
    assert {name: len(times) for name, times in samples.items()} == {"a": 2, "b": 2}


def test_interleave_takes_the_time_from_another_clock(monkeypatch):
    monkeypatch.setattr(timing, "LEAD_IN_SECONDS", 0.0)
    samples = timing.interleave({"a": lambda: 3.0}, repeats=2, seconds=lambda call: call() + 1)
    assert samples == {"a": [4.0, 4.0]}


def test_lead_in_goes_on_for_its_time(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(timing, "LEAD_IN_SECONDS", 3)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    calls = []
    timing._lead_in(lambda: calls.append("untimed"))
    assert len(calls) == 3


def test_interleave_stops_early_but_not_below_the_least(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS_PER_ROW", -1.0)
    samples = timing.interleave({"a": lambda: None}, repeats=100)
    assert len(samples["a"]) == timing.MIN_REPEATS


@pytest.mark.parametrize("wrong", [1.1, float("nan")], ids=["off", "nan"])
def test_check_close_refuses(wrong):
    right = torch.tensor([1.0, -2.0])
    timing.check_close("same", right, right.clone(), 1e-6)
    with pytest.raises(ResultsDifferError, match="^what: largest difference"):
        timing.check_close("what", torch.tensor([wrong, -2.0]), right, 1e-2)


def test_per_node_is_against_the_base_and_judges_what_is_larger(monkeypatch):
    monkeypatch.setattr(timing, "interleave", lambda calls, repeats: {1: [2.0], 2: [12.0]})
    small, large = timing.per_node({1: None, 2: None}, {1: 4, 2: 6}, base=1, repeats=1)
    assert (small.ours, small.judged, small.num_nodes) == ([0.5], False, 4)
    assert (large.ours, large.judged, large.num_nodes) == ([2.0], True, 6)
    assert large.peers == {"ours, 4 nodes": [0.5]}


def test_num_threads_holds_inside_alone():
    before = torch.get_num_threads()
    with timing.num_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
