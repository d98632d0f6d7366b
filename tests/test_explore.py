import re
import socket
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from groot_graph import explore
from groot_graph.analysis import affinity_map, scan_of_layer
from groot_graph.explore import INSIDE, OUTSIDE, Clicks, main, masked, scans_of_photo
from groot_graph.models import ClickSegmenter, click_segmenter

needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio")


@pytest.fixture(scope="module")
def photo():
    """A bright thing on a dark ground, which is no mirror image of itself."""
    image = torch.full((3, 40, 60), 0.1)
    image[0, 8:30, 10:35] = 0.9
    return image + 0.05 * torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def file(tmp_path, photo):
    path = tmp_path / "photo.png"
    Image.fromarray((255 * photo).byte().permute(1, 2, 0).numpy()).save(path)
    return path


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ClickSegmenter(channels=8, depth=2, mlp_channels=16).eval()


def test_edge_steps_are_those_of_the_network(model):
    colors = torch.rand(3, 6, 9)
    found = scans_of_photo(model, colors)["edge steps"]
    for block, scan in enumerate(found):
        wanted = scan_of_layer(model, colors[None], torch.zeros(1, 2, 6, 9), layer=block)
        for node in (0, 20, 53):
            torch.testing.assert_close(affinity_map(*scan, node), affinity_map(*wanted, node))


def test_a_standing_photograph_is_the_lying_one_turned(model):
    colors = torch.rand(3, 9, 6)
    lying = scans_of_photo(model, torch.rot90(colors, 1, (1, 2)))["edge steps"]
    standing = scans_of_photo(model, colors)["edge steps"]
    turned = torch.rot90(torch.arange(54).view(9, 6)).flatten()
    for of_lying, of_standing in zip(lying, standing, strict=True):
        for node in (0, 20, 53):
            wanted = affinity_map(*of_lying, node)
            found = affinity_map(*of_standing, int(turned[node]))
            torch.testing.assert_close(found[turned], wanted)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (1, 1)])
def test_all_panels_show_every_block(model, shape):
    scans = scans_of_photo(model, torch.rand(3, *shape))
    assert {name: len(blocks) for name, blocks in scans.items()} == {
        "published tree": 2, "edge steps": 2, "raster": 2,
    }  # fmt: skip
    for blocks in scans.values():
        for forest, transition in blocks:
            assert forest.num_nodes == len(transition) == shape[0] * shape[1]
            assert forest.num_trees == 1


def test_a_mask_needs_a_click_inside(photo):
    picture, line = masked(click_segmenter(), photo, Clicks())
    assert picture.size == (60, 40) and "Click inside" in line
    _, line = masked(click_segmenter(), photo, Clicks((((50, 35), OUTSIDE),)))
    assert "Click inside" in line


def test_the_mask_of_a_thing(photo):
    clicks = Clicks((((20, 20), INSIDE), ((50, 35), OUTSIDE)))
    picture, line = masked(click_segmenter(), photo, clicks)
    pixels = torch.from_numpy(np.array(picture))
    before = (255 * photo).round().permute(1, 2, 0)
    assert torch.equal(pixels[12, 30], before[12, 30].byte())
    assert (pixels[4, 50] < 0.3 * before[4, 50]).all()
    share = float(re.search(r"([0-9.]+) %", line).group(1))
    assert share == pytest.approx(100 * 22 * 25 / 2400, rel=0.15)


def test_gray_and_clear_photographs_are_read(tmp_path, file):
    image = Image.open(file)
    for mode in ("L", "LA", "RGBA", "CMYK"):
        path = tmp_path / f"{mode}.tif"
        image.convert(mode).save(path)
        assert explore.load_photo(path).shape == (3, 40, 60)


def test_large_photographs_are_reduced(tmp_path):
    path = tmp_path / "large.png"
    Image.new("RGB", (1537, 300)).save(path)
    assert explore.load_photo(path).shape == (3, 150, 768)


def test_saves_a_page(file, tmp_path, capsys):
    main([str(file), "--save", str(tmp_path / "tree.html")])
    text = (tmp_path / "tree.html").read_text()
    assert "published tree" in text and "edge steps" in text and "raster" in text
    assert capsys.readouterr().out == f"saved {tmp_path / 'tree.html'}\n"


def test_tells_the_time(file, capsys):
    main([str(file), "--time"])
    assert re.match(r"a mask of 60 x 40 pixels takes [0-9.]+ s", capsys.readouterr().out)


@pytest.mark.parametrize("name", ["none.png", "text.png"])
def test_a_file_that_is_no_photograph_is_told_in_one_line(name, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / name)])
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and name in lines[0]


def test_gradio_missing_is_told_in_one_line(file, monkeypatch, capsys):
    monkeypatch.setitem(explore.sys.modules, "gradio", None)
    with pytest.raises(SystemExit):
        main([str(file)])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and 'pip install "groot-graph[explore]"' in error


@needs_gradio
def test_a_port_that_is_taken_is_told_in_one_line(file, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit):
            main([str(file), "--port", str(port)])
    error = capsys.readouterr().err
    assert error == f"error: port {port} is taken: choose another one by --port\n"


def test_serves_to_this_machine_alone():
    options = explore.launch_options(7860)
    assert options["server_name"] == "127.0.0.1" and options["share"] is False
