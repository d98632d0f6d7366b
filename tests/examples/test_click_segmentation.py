import numpy as np
import pytest
from PIL import Image

from examples.click_segmentation import main


def test_finds_the_coffee_in_the_cup(tmp_path, capsys):
    found = main(["--output", str(tmp_path)]) > 0.5
    assert found[150, 250] and found[160, 300]
    assert not found[240, 300] and not found[100, 400]
    assert 0.02 < found.float().mean() < 0.15
    assert "coffee: " in capsys.readouterr().out
    assert (tmp_path / "click_segmentation.png").read_bytes().startswith(b"\x89PNG")


def test_takes_a_file_and_clicks(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 30:] = 230
    Image.fromarray(pixels).save(tmp_path / "halves.png")
    clicks = ["--inside", "10", "20", "--outside", "50", "20"]
    found = main([str(tmp_path / "halves.png"), *clicks, "--output", str(tmp_path)]) > 0.5
    assert found[:, 3].all() and not found[:, 57].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--outside", "1", "1"], "'inside' must hold a click"),
        (["--inside", "9999", "1"], "'inside' must lie in the 600 x 400 pixels"),
        (["nothing", "--inside", "1", "1"], "neither an image file nor a photograph"),
    ],
)
def test_tells_what_is_wrong(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*options, "--output", str(tmp_path)])
    assert message in capsys.readouterr().err
