import numpy as np
import pandas as pd
import pytest
from PIL import Image

pytest.importorskip("fast_hdbscan")

from examples.clusters import main  # noqa: E402


@pytest.fixture
def photo(tmp_path):
    values = np.random.default_rng(0).integers(0, 20, (40, 64, 3), dtype=np.uint8)
    values[:, 32:] += 200
    Image.fromarray(values).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_groups_and_a_photograph(photo, tmp_path, capsys):
    single, dense, graph = main(["--image", photo, "--output", str(tmp_path)])
    assert single.max() + 1 == 5 and single.min() == 0
    assert dense.max() + 1 == 4 and 30 < (dense < 0).sum() < 60
    assert (graph.height, graph.width) == (40, 64)
    for name in ("clusters.png", "superpixels.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "HDBSCAN: clusters of" in capsys.readouterr().out


def test_points_of_a_file(photo, tmp_path):
    points = np.random.default_rng(0).normal(size=(60, 2))
    points[30:] += 9
    pd.DataFrame(points, columns=["x", "y"]).to_csv(tmp_path / "points.csv", index=False)
    options = [str(tmp_path / "points.csv"), "--image", photo, "--output", str(tmp_path)]
    _, dense, _ = main(options)
    assert set(dense[:30]) - {-1} == {0} and set(dense[30:]) - {-1} == {1}


@pytest.mark.parametrize(
    ("content", "message"),
    [("x,y\n1,2\n", "25 or more points of two columns are drawn, got [1, 2]"), ("", "a readable")],
)
def test_what_cannot_be_drawn_is_told(content, message, tmp_path, capsys):
    (tmp_path / "points.csv").write_text(content)
    with pytest.raises(SystemExit):
        main([str(tmp_path / "points.csv"), "--output", str(tmp_path)])
    assert message in capsys.readouterr().err
