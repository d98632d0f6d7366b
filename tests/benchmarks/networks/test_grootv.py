import json

import pytest

from benchmarks.__main__ import main
from benchmarks.harness import gpu
from benchmarks.networks import grootv
from benchmarks.networks.grootv import Setting, dearest, is_core
from groot_graph.models import GrootV


@pytest.fixture
def small(monkeypatch):
    """A network of seconds in place of GrootV-T; a fresh process would build the real one."""
    network = lambda: GrootV(channels=8, depths=(1, 1, 1, 1), num_classes=5)  # noqa: E731
    monkeypatch.setitem(grootv.NETWORKS, "tiny", network)
    monkeypatch.setattr(gpu, "peak_memory", lambda *args: 5_000_000)
    return network()


SMALL = ["--smoke", "--op", "grootv", "--row", "tiny", "--repeats", "2"]


@pytest.mark.full
def test_every_mode_is_measured_and_told(small, tmp_path, capsys):
    path = tmp_path / "results.json"
    assert main([*SMALL, "--set", "batch=2", "--json", str(path)]) == 0
    inference, memory, training, _ = json.loads(path.read_text())["results"]
    assert memory["ours"] == 5_000_000 and memory["unit"] == "B"
    for result in (inference, training):
        found = result["details"]
        assert found["num_parameters"] == sum(weight.numel() for weight in small.parameters())
        assert len(result["samples"]["ours"]) == 2
        assert f"{1 / result['ours']:.3g} images/s, ours; " in result["note"]
        assert sum(found["parts"].values()) == pytest.approx(1)
        assert "groot_graph::tree_scan" in found["parts"]
    assert "groot_graph::tree_scan_backward" in training["details"]["parts"]
    assert "GrootV-tiny, training, batches of 2 images of 32x32" in capsys.readouterr().out


def test_compiled_takes_turns_with_eager(small, monkeypatch, tmp_path):
    compiled = []
    monkeypatch.setattr(
        grootv.torch, "compile", lambda model, fullgraph: compiled.append(model) or model
    )
    path = tmp_path / "results.json"
    options = ["--row", "tiny, inference", "--set", "compiled=True", "--json", str(path)]
    assert main([*SMALL, *options]) == 0
    assert len(compiled) == 1
    result = json.loads(path.read_text())["results"][0]
    assert result["samples"].keys() == {"ours", "torch.compile"}
    assert result["ratio_kind"] == "peer/ours"


@pytest.mark.full
def test_memory_of_a_step_is_measured_in_a_fresh_process():
    of = Setting("tiny", "inference", "cpu", bfloat16=False, batch=2, size=64)
    memory = gpu.peak_memory("cpu", grootv.make_warm_step, (of,), (of._replace(size=64),))
    # At least one map of the first stage's MLP: 2 images, 16 x 16 nodes, 320 channels.
    assert memory > 2 * 16 * 16 * 320 * 4
    assert memory < 300_000_000


def test_profile_names_the_five_dearest_and_the_dearest_other():
    parts = {"aten::mm": 0.4, "groot_graph::tree_scan": 0.2, "aten::mul": 0.1, "a": 0.09, "b": 0.08}
    line = dearest({**parts, "c": 0.07})
    assert line.startswith("aten::mm 40%, groot_graph::tree_scan 20%, aten::mul 10%, a 9%, b 8%; ")
    assert line.endswith("product: aten::mul 10%")
    assert is_core("aten::convolution_backward") and not is_core("aten::gelu")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--set", "size=31"], "size must be at least 32, got 31"),
        (["--set", "batch=0"], "batch must be at least 1, got 0"),
        (["--set", "model='huge'"], "model must be of type str"),
    ],
)
def test_bad_sizes_are_refused(capsys, options, message):
    with pytest.raises(SystemExit):
        main([*SMALL, *options])
    assert message in capsys.readouterr().err
