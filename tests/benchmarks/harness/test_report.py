import re

import pytest

from benchmarks.harness.registry import Result
from benchmarks.harness.report import read, table, write
from benchmarks.harness.units import quantity

MACHINE = {
    "cpu": "a CPU",
    "cores": 2,
    "threads": 2,
    "system": "Linux",
    "load_before": None,
    "python": "3.11",
    "versions": {"torch": "2.13"},
}


def make_result(**values):
    samples = {"ours": [1.0], "slow": [8.0], "fast": [6.0]}
    values = {"ours": 1.0, "peer": "fast", "peer_value": 6.0, "ratio": 6.0} | values
    return Result(
        "tree_scan", "row", "work", ">= 7", ratio_kind="peer/ours", samples=samples, **values
    )


def test_table_has_machine_header_and_rows_with_notes():
    lines = table(MACHINE, [make_result(met=True, note="a note")]).splitlines()
    assert lines[:2] == ["a CPU, 2 cores, 2 threads, Linux", "Python 3.11, torch 2.13"]
    assert lines[3].split() == ["work", "ours", "peer", "peer's", "ratio", "goal", "met"]
    assert lines[4].startswith("-- tree_scan --")
    assert re.sub(" +", " ", lines[5]) == "work 1 s fast 6 s 6 peer/ours >= 7 met"
    assert "tree_scan, work: slow 8 s, fast 6 s; a note" in lines


def test_missed_goal_is_printed_as_missed():
    lines = table(MACHINE, [make_result(met=True), make_result(met=False)]).splitlines()
    assert [line.split()[-1] for line in lines if line.startswith("work ")][1:] == ["met", "MISSED"]
    assert lines[-1] == "1 of 2 goals met."


def test_limit_has_no_peer_in_the_table():
    result = Result("tree_ssm_conv", "row", "work", "<= 2 s", ours=1.0, met=True)
    lines = table(MACHINE, [result]).splitlines()
    assert lines[4].startswith("-- tree_ssm_conv --")
    assert re.sub(" +", " ", lines[5]) == "work 1 s - - - <= 2 s met"


def test_gpu_stands_above_the_cpu():
    gpu = {
        "name": "a GPU",
        "memory": 80 * 10**9,
        "driver": "580.1",
        "cuda": "13.0",
        "cupy": "14.0",
        "copy_bandwidth": 2.9e12,
    }
    lines = table(MACHINE | {"gpu": gpu}, []).splitlines()
    assert lines[0] == ("a GPU, 80 GB, driver 580.1, CUDA 13.0, CuPy 14.0, copy bandwidth 2.9 TB/s")
    assert lines[1].startswith("a CPU")


def test_row_that_was_not_measured_has_its_goal_and_the_reason():
    result = Result("tree_scan", "row", "work", ">= 2", note="not measured: needs the peer")
    lines = table(MACHINE, [result]).splitlines()
    assert lines[5].split() == ["work", "-", "-", "-", "-", ">=", "2", "-"]
    assert lines[-1] == "tree_scan, work: not measured: needs the peer"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.5, "s", "1.5 s"),
        (0.0123, "s", "12.3 ms"),
        (4.5e-6, "s", "4.5 us"),
        (1.234e-6, "s/node", "1,234 ns/node"),
        (201_326_592, "B", "201 MB"),
        (512, "B", "0.512 kB"),
        (2.9e12, "B/s", "2.9 TB/s"),
        (2.5e9, "edges/s", "2.5 G edges/s"),
    ],
)
def test_quantity(value, unit, text):
    assert quantity(value, unit) == text


def test_a_file_is_whole_at_any_time_and_read_as_it_was_written(tmp_path, monkeypatch):
    file, result = tmp_path / "new" / "results.json", make_result(met=True, details={"parts": 2})
    write(file, {"machine": MACHINE, "results": [result.to_dict()]})
    assert read(file) == (MACHINE, [result])

    def interrupted(self, text):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(file, {"machine": {}, "results": []})
    assert read(file) == (MACHINE, [result])
