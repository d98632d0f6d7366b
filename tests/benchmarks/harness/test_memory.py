import pytest
import torch

from benchmarks.harness import memory
from benchmarks.harness.registry import NotMeasuredError

MEGABYTES = 16
calls = []


def _ones_summed():
    return torch.ones(4, 1 << 20).sum(dim=0)


@pytest.mark.full
def test_peak_extra_memory_counts_the_temporary_and_not_the_output():
    try:
        extra = memory.in_fresh_process(memory.peak_extra_memory, _ones_summed)
    except NotMeasuredError as error:
        pytest.skip(str(error))
    assert extra == pytest.approx(MEGABYTES << 20, rel=0.25)


def _logged(size: int):
    def call() -> torch.Tensor:
        calls.append(size)
        return torch.ones(size)

    return call


def test_a_call_is_taken_after_a_small_one(monkeypatch):
    monkeypatch.setattr(memory, "peak_extra_memory", lambda call: 4 * call().numel())
    calls.clear()
    found = memory.taken(_logged, (7,), (2,))
    assert calls == [2, 7]
    assert found.extra_bytes == 28
    seconds, extra, whole = found.measurements()
    assert (seconds.unit, extra.unit, whole.unit) == ("s", "B", "B")
    assert extra.ours == [28] and extra.work == "memory it adds"


def _threads(unused: int):
    return lambda: torch.ones(torch.get_num_threads(), 1 << 18)


def test_a_fresh_process_has_the_threads_of_this_one(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(memory, "in_fresh_process", lambda function, *args: args)
    assert memory.taken_alone(_threads, (1,), (1,)) == (threads, _threads, (1,), (1,))
