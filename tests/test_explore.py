import re
import socket
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from groot_graph import explore
from groot_graph.analysis import affinity_map, scan_of_layer
from groot_graph.explore import INSIDE, OUTSIDE, Clicks, main, masked, scans_of_photo
from groot_graph.models import ClickSegmenter, GrootLForCausalLM, click_segmenter
from groot_graph.models.grootl import GrootLConfig
from tests.equipment.pages import affinity_in_python, data_of, transition_of

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


@pytest.mark.full
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


def saved(tmp_path, *arguments) -> str:
    main([*map(str, arguments), "--save", str(tmp_path / "page.html")])
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_sentence_without_a_network_says_that_weights_are_random(tmp_path):
    page = saved(tmp_path, "--text", "the cat sat on the mat")
    data = data_of(page)
    assert data["words"] == ["the", "cat", "sat", "on", "the", "mat"] and data["blocks"] == 2
    assert "The weights are random" in data["note"]
    # The chain carries from every token to the next what the plain scan does.
    heard = affinity_in_python(page, panel=1, block=0, node=5)
    transition = transition_of(data["transitions"][0])
    assert heard[3] == pytest.approx((transition[3] * transition[4]).mean())


def test_a_sentence_is_read_by_a_checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    vocabulary = {"[UNK]": 0, "the": 1, "cat": 2, "sat": 3}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder)
    config = GrootLConfig(vocab_size=4, hidden_size=32, num_hidden_layers=1, state_size=16)
    model = GrootLForCausalLM(config).eval()
    model.save_pretrained(folder)
    page = saved(tmp_path, "--text", "the cat sat the cat", "--model", folder)
    data = data_of(page)
    assert data["words"] == ["the", "cat", "sat", "the", "cat"] and "random" not in data["note"]
    forest, transition = scan_of_layer(model, torch.tensor([[1, 2, 3, 1, 2]]))
    wanted = affinity_map(forest, transition[:, ::4].contiguous(), 4)
    assert affinity_in_python(page, 0, 0, 4) == pytest.approx(wanted.numpy(), abs=2e-4)


def test_points_are_heard_within_their_cluster(tmp_path):
    generator = np.random.default_rng(0)
    clusters = [center + 0.1 * generator.standard_normal((20, 2)) for center in (0, 3)]
    np.savetxt(tmp_path / "points.csv", np.concatenate(clusters), delimiter=",")
    page = saved(tmp_path, "--points", tmp_path / "points.csv")
    data = data_of(page)
    assert data["slider"] == "reach" and data["blocks"] == len(explore.REACHES)
    heard = affinity_in_python(page, panel=0, block=2, node=5)
    assert heard[:20].min() > 10 * heard[20:].max()


@pytest.mark.parametrize("rows", ["1,2", "1,2\n3,4", "1,1\n1,1\n1,1", "1,2,3\n4,5,6\n7,8,10"])
def test_few_and_equal_points(tmp_path, rows, capsys):
    (tmp_path / "points.csv").write_text(rows)
    if rows.count("\n") == 0:
        with pytest.raises(SystemExit):
            saved(tmp_path, "--points", tmp_path / "points.csv")
        assert "two points or more" in capsys.readouterr().err
    else:
        page = saved(tmp_path, "--points", tmp_path / "points.csv")
        assert affinity_in_python(page, 0, 0, 0)[0] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to look into"),
        (["--time"], "nothing to look into"),
        (["--time", "--text", "a b"], "--time needs PHOTO"),
        (["--text", " "], "--text: holds no word"),
        (["--text", "a b", "--model", "no folder"], "there is no such folder"),
        (["--points", "no file"], "there is no such file"),
        (["--points", "setup.cfg"], "not a table of numbers"),
    ],
)
def test_what_cannot_be_shown_is_told_in_one_line(tmp_path, arguments, message, capsys):
    with pytest.raises(SystemExit):
        saved(tmp_path, *arguments)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_one_page_is_saved_at_a_time(file, tmp_path, capsys):
    with pytest.raises(SystemExit):
        saved(tmp_path, file, "--text", "a b")
    assert "--save writes one page" in capsys.readouterr().err
