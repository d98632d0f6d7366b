import json

import pytest

from benchmarks import grootv
from benchmarks.grootv import is_core, main, profile_line
from groot_graph.models import GrootV


@pytest.fixture
def small(monkeypatch):
    """A network of seconds in place of GrootV-T; a fresh process would build the real one."""
    network = lambda: GrootV(channels=8, depths=(1, 1, 1, 1), num_classes=5)  # noqa: E731
    monkeypatch.setattr(grootv, "NETWORKS", {"tiny": network})
    monkeypatch.setattr(grootv, "peak_memory", lambda *args: 5_000_000)
    return network()


def test_every_mode_is_measured_and_told(small, tmp_path, capsys):
    path = tmp_path / "results.json"
    results = main(["--size", "32", "--batch", "2", "--repeats", "2", "--json", str(path)])
    assert [result["mode"] for result in results] == ["inference", "training"]
    for result in results:
        assert result["num_parameters"] == sum(weight.numel() for weight in small.parameters())
        assert len(result["samples"]["eager"]) == 2
        assert result["images_per_second"]["eager"] > 0
        assert sum(result["parts"].values()) == pytest.approx(1)
        assert "groot_graph::tree_scan" in result["parts"]
    assert "groot_graph::tree_scan_backward" in results[1]["parts"]
    assert json.loads(path.read_text())["results"] == results
    printed = capsys.readouterr().out
    assert "batches of 2 images of 32 x 32, float32, median of 2" in printed
    assert "| GrootV-tiny | " in printed and "GrootV-tiny, training: " in printed


def test_compiled_takes_turns_with_eager(small, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        grootv.torch, "compile", lambda model, fullgraph: compiled.append(model) or model
    )
    options = ["--size", "32", "--batch", "2", "--repeats", "1", "--mode", "inference"]
    (result,) = main([*options, "--compile"])
    assert len(compiled) == 1
    assert result["samples"].keys() == result["images_per_second"].keys() == {"eager", "compiled"}


@pytest.mark.full
def test_memory_of_a_step_is_measured_in_a_fresh_process():
    args = grootv.parse(["--size", "64", "--batch", "2"])
    memory = grootv.peak_memory("tiny", "inference", args)
    # At least one map of the first stage's MLP: 2 images, 16 x 16 nodes, 320 channels.
    assert memory > 2 * 16 * 16 * 320 * 4
    assert memory < 300_000_000


def test_profile_names_the_five_dearest_and_the_dearest_other():
    parts = {"aten::mm": 0.4, "groot_graph::tree_scan": 0.2, "aten::mul": 0.1, "a": 0.09, "b": 0.08}
    line = profile_line({"model": "tiny", "mode": "inference", "parts": {**parts, "c": 0.07}})
    assert "aten::mm 40%, groot_graph::tree_scan 20%, aten::mul 10%, a 9%, b 8%; " in line
    assert line.endswith("product: aten::mul 10%")
    assert is_core("aten::convolution_backward") and not is_core("aten::gelu")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--size", "31"], "--size at least 32"),
        (["--batch", "0"], "--batch and --repeats must be at least 1"),
        (["--model", "huge"], "invalid choice: 'huge'"),
        (["--json", "no/such/file.json"], "is not a directory"),
    ],
)
def test_bad_options_are_refused(capsys, options, message):
    with pytest.raises(SystemExit):
        main(options)
    assert message in capsys.readouterr().err
