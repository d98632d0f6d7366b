"""The pages in a real browser: what is drawn is what the library computes."""

import socket
import subprocess
import sys
import time
from contextlib import closing
from importlib.util import find_spec
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from PIL import Image

from groot_graph.analysis import affinity_map
from groot_graph.models import click_segmenter
from groot_graph.visualization import save_explorer, save_graph_explorer, save_text_explorer
from tests.equipment.pages import browser
from tests.test_page import random_forest, scans_of

HEIGHT, WIDTH = 6, 9
SCREENS = {"desktop": (1280, 900), "phone": (390, 844)}

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(browser() is None, reason="needs a browser: apt-get install chromium"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="needs playwright"),
]
needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio")


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Root may start it only so.
        started = playwright.chromium.launch(executable_path=browser(), args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(chromium):
    """Opens a page, and fails where it does, or asks another machine for anything."""
    errors, asked, contexts = [], [], []

    def opened(url: str, screen: str = "desktop", scheme: str = "light"):
        width, height = SCREENS[screen]
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert errors == []
    own = ("file:", "data:", "blob:", "about:", "http://127.0.0.1")
    assert [url for url in asked if not url.startswith(own)] == []


@pytest.fixture
def scans():
    return scans_of(HEIGHT, WIDTH)


@pytest.fixture
def url(tmp_path, scans):
    path = tmp_path / "page.html"
    save_explorer(path, torch.rand(3, 10 * HEIGHT, 10 * WIDTH), scans, 10, note="A note.")
    return path.as_uri()


def pixels_of(canvas) -> np.ndarray:
    shape = canvas.evaluate("canvas => [canvas.height, canvas.width, 4]")
    read = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    return np.array(canvas.evaluate(read)).reshape(shape)[..., :3]


def values_of(frame, panel: int) -> torch.Tensor:
    """What is drawn, by the colors of the bar that explains them."""
    bar = pixels_of(frame.locator("#colors"))[0]
    drawn = pixels_of(frame.locator(".map").nth(panel)).reshape(-1, 3)
    distance = np.abs(drawn[:, None] - bar[None]).sum(axis=2)
    assert (distance.min(axis=1) == 0).all()
    return torch.from_numpy(distance.argmin(axis=1) / 255).float()


def move_to(frame, page, panel: int, node: int, touch: bool = False) -> None:
    stage = frame.locator(".stage").nth(panel)
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    x = box["x"] + box["width"] * (node % WIDTH + 0.5) / WIDTH
    y = box["y"] + box["height"] * (node // WIDTH + 0.5) / HEIGHT
    if touch:
        page.touchscreen.tap(x, y)
    else:
        page.mouse.move(x, y)
    page.wait_for_function(f"document.querySelector('.stage').dataset.node === '{node}'")


def assert_drawn(frame, scans, block: int, node: int) -> None:
    for panel, of_blocks in enumerate(scans.values()):
        wanted = affinity_map(*of_blocks[block], node)
        torch.testing.assert_close(values_of(frame, panel), wanted, rtol=0, atol=0.5 / 255 + 3e-4)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", list(SCREENS))
def test_what_is_drawn_under_the_pointer_is_what_the_library_computes(
    open_page, url, scans, screen, scheme
):
    page = open_page(url, screen, scheme)
    for node in (0, 22, HEIGHT * WIDTH - 1):
        for panel in (0, 1):
            move_to(page, page, panel, node)
            assert_drawn(page, scans, block=1, node=node)
    overhang = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert overhang <= 0
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


def test_a_finger_chooses_a_place(open_page, url, scans):
    page = open_page(url, "phone")
    for node in (4, 40):
        move_to(page, page, 0, node, touch=True)
        assert_drawn(page, scans, block=1, node=node)


def test_a_slider_chooses_the_block(open_page, url, scans):
    page = open_page(url)
    move_to(page, page, 0, 30)
    page.locator("#block").fill("1")
    page.wait_for_function("document.getElementById('block-value').textContent === '1 of 2'")
    page.wait_for_timeout(100)
    assert_drawn(page, scans, block=0, node=30)


def test_arrow_keys_walk(open_page, url, scans):
    page = open_page(url)
    move_to(page, page, 0, 20)
    page.locator(".stage").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"document.querySelector('.stage').dataset.node === '{20 + WIDTH + 1}'")
    assert_drawn(page, scans, block=1, node=20 + WIDTH + 1)


def test_the_tree_is_drawn_larger_with_the_zoom(open_page, url):
    page = open_page(url)
    tree = page.locator(".tree canvas").first
    orange = (255, 127, 14)
    shares = []
    for zoom in ("1", "6"):
        page.locator("#zoom").fill(zoom)
        page.wait_for_timeout(200)
        shares.append(float((pixels_of(tree) == orange).all(axis=2).mean()))
    assert shares[0] > shares[1] > 0


def test_words_are_colored(open_page, tmp_path):
    words = ["one", "two", "three", "four", "five"]
    scan = random_forest(5, 1, 0), torch.rand(5, 2)
    save_text_explorer(tmp_path / "text.html", words, {"tree": [scan]})
    page = open_page((tmp_path / "text.html").as_uri(), "phone")
    page.get_by_text("three", exact=True).hover()
    page.wait_for_function("document.querySelector('.stage').dataset.node === '2'")
    bar = pixels_of(page.locator("#colors"))[0]
    for node, value in enumerate(affinity_map(*scan, 2).tolist()):
        color = page.locator(".words span").nth(node).evaluate("s => s.style.background")
        found = [int(part) for part in color[4:-1].split(",")]
        assert np.abs(bar - found).sum(axis=1).argmin() == pytest.approx(255 * value, abs=0.6)


def test_the_nearest_node_listens(open_page, tmp_path):
    pos = torch.rand(40, 2, generator=torch.Generator().manual_seed(1))
    pos[:4] = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    scan = random_forest(40, 2, 0), torch.rand(40, 2)
    save_graph_explorer(tmp_path / "graph.html", pos, {"tree": [scan]})
    page = open_page((tmp_path / "graph.html").as_uri(), "phone", "dark")
    box = page.locator(".stage").bounding_box()
    for node in (3, 17, 39):
        x, y = (0.04 + 0.92 * pos[node]).tolist()
        page.mouse.move(box["x"] + x * box["width"], box["y"] + (1 - y) * box["height"])
        page.wait_for_function(f"document.querySelector('.stage').dataset.node === '{node}'")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The page of Gradio over a photograph, in a process of its own: its address and the file."""
    pixels = np.full((40, 60, 3), 25)
    pixels[8:32, 10:36, 0] = 230
    pixels += np.random.default_rng(0).integers(0, 13, pixels.shape)
    pixels = pixels.repeat(8, axis=0).repeat(8, axis=1)
    file = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(pixels.astype(np.uint8)).save(file)
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    points = file.with_name("points.csv")
    np.savetxt(points, np.random.default_rng(0).random((50, 2)), delimiter=",")
    command = [sys.executable, "-m", "groot_graph.explore", str(file), "--port", str(port)]
    command += ["--text", "the cat sat on the mat", "--points", str(points)]
    process = subprocess.Popen(command)
    try:
        wait_for(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}", file
    finally:
        process.terminate()
        process.wait()


def wait_for(url: str, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            urlopen(url).close()
            return
        except (URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"{url} did not open")


@needs_gradio
@pytest.mark.parametrize("screen", list(SCREENS))
def test_the_served_page_shows_affinities_and_masks(open_page, served, screen):
    url, file = served
    page = open_page(url, screen)
    frame = page.frame_locator("iframe")
    stage = frame.locator(".stage").nth(1)
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.5 * box["height"])
    page.wait_for_timeout(500)
    values = values_of(frame, 1).view(32, 48)
    # The thing is heard better than what lies around it.
    assert values[10:24, 12:26].mean() > values[:, 34:].mean() + 0.1

    page.get_by_role("tab", name="Mask").click()
    photo = page.locator("#photo img")
    photo.wait_for()
    # In the middle of nodes, as the screen's pixels are not those of the photograph.
    clicks = (("inside", 19.5 / 48, 16.5 / 32), ("outside", 43.5 / 48, 3.5 / 32))
    for side, x, y in clicks:
        page.get_by_label(side, exact=True).click()
        before = photo.get_attribute("src")
        box = photo.bounding_box()
        page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
        page.wait_for_function(
            f"document.querySelector('#photo img').getAttribute('src') !== {before!r}"
        )
    places = {side: [(480 * x, 320 * y)] for side, x, y in clicks}
    wanted = (click_segmenter().segment(file, **places) > 0.5).float().mean().item()
    share = float(page.get_by_text("The thing covers").inner_text().split()[3])
    assert share == pytest.approx(100 * wanted, abs=0.06)


@needs_gradio
@pytest.mark.parametrize("screen", list(SCREENS))
def test_every_tab_is_as_high_as_its_page(open_page, served, screen):
    page = open_page(served[0], screen)
    page.frame_locator("iframe").locator(".stage").first.wait_for()
    for name in ("Sentence", "Points", "Affinity"):
        page.get_by_role("tab", name=name).click()
        frame = page.locator(f"iframe[title={name}]")
        frame.wait_for()
        page.wait_for_timeout(300)
        inside = frame.evaluate("frame => frame.contentDocument.body.scrollHeight")
        assert 0 < inside <= frame.bounding_box()["height"]
        stage = page.frame_locator(f"iframe[title={name}]").locator(".stage").first
        assert stage.get_attribute("data-node") is not None


@needs_gradio
def test_the_served_page_opens_no_other_file(served):
    for path in ("/etc/passwd", __file__):
        with pytest.raises(OSError, match="40[34]"):
            urlopen(f"{served[0]}/gradio_api/file={path}")
