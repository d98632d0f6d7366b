import math
import shutil

import pytest
import torch

from groot_graph import Forest
from groot_graph.analysis import affinity_map, raster_forest
from groot_graph.page import encode_transition
from groot_graph.visualization import save_explorer, save_graph_explorer, save_text_explorer
from tests.equipment.pages import (
    affinity_in_node,
    affinity_in_python,
    data_of,
    transition_of,
)

AGREES = {"rtol": 0, "atol": 2e-4}
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")


def random_forest(num_nodes: int, num_trees: int, seed: int) -> Forest:
    """Trees whose numbers stand in any order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(num_nodes, generator=generator)
    parent = torch.empty(num_nodes, dtype=torch.long)
    for place, node in enumerate(order.tolist()):
        above = int(torch.randint(max(place, 1), (), generator=generator))
        parent[node] = order[above] if place >= num_trees else node
    return Forest(order, parent)


def scans_of(height: int, width: int) -> dict:
    num_nodes = height * width
    torch.manual_seed(0)
    # From what leaves nothing to what forgets nothing.
    transition = torch.rand(num_nodes, 3) ** torch.logspace(-4, 1, 3)
    one_channel = torch.rand(num_nodes)
    one_channel[:2] = torch.tensor([0.0, 1.0])[: min(2, num_nodes)]
    forests = [random_forest(num_nodes, min(2, num_nodes), seed) for seed in (0, 1)]
    raster = raster_forest(height, width)
    return {
        "tree": [(forests[0], transition), (forests[1], one_channel)],
        "raster": [(raster, transition), (raster, one_channel)],
    }


def page_of_image(folder, height: int, width: int) -> tuple[str, dict]:
    scans = scans_of(height, width)
    path = folder / "page.html"
    save_explorer(path, torch.rand(3, 2 * height, 2 * width), scans, patch_size=2)
    return path.read_text(encoding="utf-8"), scans


def cases(scans: dict):
    for panel, of_blocks in enumerate(scans.values()):
        for block, scan in enumerate(of_blocks):
            last = scan[0].num_nodes - 1
            for node in sorted({0, last // 2, last}):
                yield panel, block, node, affinity_map(*scan, node)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 2), (5, 7), (6, 4)])
def test_the_page_holds_what_the_library_computes(tmp_path, height, width):
    page, scans = page_of_image(tmp_path, height, width)
    for panel, block, node, wanted in cases(scans):
        found = torch.from_numpy(affinity_in_python(page, panel, block, node)).float()
        torch.testing.assert_close(found, wanted, **AGREES)


@needs_node
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7)])
def test_the_script_computes_what_the_library_does(tmp_path, height, width):
    page, scans = page_of_image(tmp_path, height, width)
    for panel, block, node, wanted in cases(scans):
        found = torch.from_numpy(affinity_in_node(page, panel, block, node)).float()
        torch.testing.assert_close(found, wanted, **AGREES)


def test_long_paths_stay_as_near(tmp_path):
    chain = raster_forest(1, 4000)
    transition = torch.exp(-torch.logspace(-7, -1, 4000))
    path = tmp_path / "page.html"
    save_text_explorer(path, ["a"] * 4000, {"chain": [(chain, transition)]})
    codes = transition_of(data_of(path.read_text())["transitions"][0])
    found = torch.from_numpy(codes[1:].cumprod(axis=0)).flatten()
    torch.testing.assert_close(found, transition[1:].double().cumprod(0), **AGREES)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3, 1e-30, math.nextafter(1.0, 0.0)])
def test_equal_transitions_are_encoded(value):
    encoded = encode_transition(torch.full((5,), value, dtype=torch.float64))
    assert transition_of(encoded) == pytest.approx(value, abs=1e-7)


def test_the_same_transitions_are_held_once(tmp_path):
    page, _ = page_of_image(tmp_path, 3, 4)
    assert len(data_of(page)["transitions"]) == 2


def test_no_text_ends_a_script(tmp_path):
    forest, transition = raster_forest(1, 2), torch.rand(2)
    words = ["</script>", "<!-- ünï \u2028"]
    path = tmp_path / "page.html"
    save_text_explorer(path, words, {"</script>": [(forest, transition)]}, note="<b>__DATA__")
    data = data_of(path.read_text(encoding="utf-8"))
    assert data["words"][0] == words[0] and data["note"] == "<b>__DATA__"
    assert path.read_text(encoding="utf-8").count("</script>") == 3


def test_a_page_asks_for_nothing(tmp_path):
    page, _ = page_of_image(tmp_path, 3, 4)
    assert "http:" not in page and "https:" not in page and 'src="' not in page


def test_positions_keep_their_shape(tmp_path):
    pos = torch.tensor([[0.0, 0.0, 9.0], [4.0, 0.0, 9.0], [0.0, 2.0, 9.0]])
    path = tmp_path / "page.html"
    save_graph_explorer(path, pos, {"tree": [(raster_forest(1, 3), torch.rand(3))]})
    assert data_of(path.read_text())["aspect"] == 2


@pytest.mark.parametrize("image", [torch.rand(8, 8), torch.randint(255, (4, 8, 8)).byte()])
def test_patches_of_several_sizes(tmp_path, image):
    scans = {"tree": [(raster_forest(4, 4), torch.rand(16)), (raster_forest(2, 2), torch.rand(4))]}
    save_explorer(tmp_path / "page.html", image, scans, patch_size=[2, 4])
    assert data_of((tmp_path / "page.html").read_text())["sizes"] == [[4, 4], [2, 2]]


def good() -> dict:
    return {"image": torch.rand(3, 2, 3), "scans": {"tree": [(raster_forest(2, 3), torch.rand(6))]}}


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"scans": [1]}, TypeError, "'scans' must be a dict of names, got list"),
        ({"scans": {}}, ValueError, "'scans' must hold as many blocks"),
        ({"scans": {"tree": []}}, ValueError, "and at least one, got {'tree': 0}"),
        ({"scans": {"tree": [(raster_forest(2, 2), torch.rand(4))]}}, ValueError, "'image'"),
        (
            {"scans": {"tree": [(raster_forest(2, 3), torch.rand(4))]}},
            ValueError,
            r"'scans' must hold transitions of shape \[6\] or .* got \[4\] for 'tree'",
        ),
        (
            {"scans": {"tree": [(raster_forest(2, 3), torch.full((6,), 1.5))]}},
            ValueError,
            "'scans' must hold transitions from 0 to 1",
        ),
        (
            {"scans": {"tree": [(raster_forest(2, 3), torch.full((6,), math.nan))]}},
            ValueError,
            "'scans' must hold transitions from 0 to 1",
        ),
        ({"patch_size": [1, 1]}, ValueError, "'patch_size' must be one for each of the 1 blocks"),
        ({"patch_size": 3}, ValueError, "'patch_size' must not exceed"),
        ({"patch_size": 1.0}, TypeError, "'patch_size'"),
    ],
)
def test_refuses_what_makes_no_sense(tmp_path, changed, error, message):
    with pytest.raises(error, match=message):
        save_explorer(tmp_path / "page.html", **(good() | changed))
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("pos", "error"),
    [
        (torch.rand(3, 1), ValueError),
        (torch.rand(0, 2), ValueError),
        (torch.full((3, 2), math.nan), ValueError),
        (torch.ones(3, 2).long(), TypeError),
    ],
)
def test_refuses_positions_that_are_none(tmp_path, pos, error):
    scans = {"tree": [(raster_forest(1, 3), torch.rand(3))]}
    with pytest.raises(error, match="'pos' must"):
        save_graph_explorer(tmp_path / "page.html", pos, scans)
