import sys

from experiments import regions, regions_affinity
from experiments.regions_affinity import main, shown
from tests.equipment.photographs import write_photographs


def test_photographs_are_cut_to_the_middle():
    for name in regions_affinity.SHOWN:
        colors = shown(name)
        assert colors.shape == (3, 32, 48) and 0 <= colors.min() < colors.max() <= 1


def test_the_command_draws(tmp_path, monkeypatch, capsys):
    data = tmp_path / "data"
    write_photographs(data, in_archive=False)
    monkeypatch.setattr(regions, "steps_per_check", 1)
    monkeypatch.setattr(regions, "most_steps", 1)
    path = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", ["", "--data", str(data), "--plot", str(path)])
    main()
    assert path.read_bytes().startswith(b"\x89PNG")
    assert f"saved {path}" in capsys.readouterr().out
