import pytest
import torch

from benchmarks import measure
from benchmarks.registry import NotMeasuredError, ResultsDifferError


def test_interleave_takes_turns_with_an_untimed_call_before_each_timed_one(monkeypatch):
    monkeypatch.setattr(measure, "LEAD_IN_SECONDS", 0.0)
    calls = []
    samples = measure.interleave(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2
    )
    assert "".join(calls) == "aabbaabb"
    assert {name: len(times) for name, times in samples.items()} == {"a": 2, "b": 2}


def test_interleave_takes_the_time_from_another_clock(monkeypatch):
    monkeypatch.setattr(measure, "LEAD_IN_SECONDS", 0.0)
    samples = measure.interleave({"a": lambda: 3.0}, repeats=2, seconds=lambda call: call() + 1)
    assert samples == {"a": [4.0, 4.0]}


def test_lead_in_goes_on_for_its_time(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(measure, "LEAD_IN_SECONDS", 3)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    calls = []
    measure._lead_in(lambda: calls.append("untimed"))
    assert len(calls) == 3


def test_interleave_stops_early_but_not_below_the_least(monkeypatch):
    monkeypatch.setattr(measure, "SECONDS_PER_ROW", -1.0)
    samples = measure.interleave({"a": lambda: None}, repeats=100)
    assert len(samples["a"]) == measure.MIN_REPEATS


@pytest.mark.parametrize("wrong", [1.1, float("nan")], ids=["off", "nan"])
def test_check_close_refuses(wrong):
    right = torch.tensor([1.0, -2.0])
    measure.check_close("same", right, right.clone(), 1e-6)
    with pytest.raises(ResultsDifferError, match="^what: largest difference"):
        measure.check_close("what", torch.tensor([wrong, -2.0]), right, 1e-2)


def _ones_summed():
    return torch.ones(4, 1 << 20).sum(dim=0)


def test_peak_extra_memory_counts_the_temporary_and_not_the_output():
    try:
        extra = measure.in_fresh_process(measure.peak_extra_memory, _ones_summed)
    except NotMeasuredError as error:
        pytest.skip(str(error))
    assert extra == pytest.approx(16 << 20, rel=0.25)
