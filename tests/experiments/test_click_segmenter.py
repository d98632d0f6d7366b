import torch

from experiments import click_segmenter, regions
from groot_graph.models import ClickSegmenter
from tests.equipment.photographs import write_photographs


def test_writes_weights_that_the_network_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(regions, "steps_per_check", 2)
    monkeypatch.setattr(regions, "most_steps", 2)
    write_photographs(tmp_path / "data", False)
    weights = tmp_path / "made" / "weights.pt"
    found = click_segmenter.main(["--data", str(tmp_path / "data"), "--weights", str(weights)])
    assert list(found) == [1, 3, 5] and all(0 <= iou <= 1 for iou in found.values())
    model = ClickSegmenter()
    model.load_state_dict(torch.load(weights, weights_only=True))
    assert "25,913 parameters" in capsys.readouterr().out
