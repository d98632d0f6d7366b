r"""A page on this machine to look into the trees of a photograph.

python -m groot_graph.explore photo.jpg

Opens a page at http://127.0.0.1:7860 with what is given:

    PHOTO              how strongly every place is heard from the one under the pointer: along the
                       tree that the network's edge steps grow, along the published tree, and along
                       a raster; and the mask of a thing that is clicked
    --port N           another port
    --save FILE        writes the first of these as one HTML file that works offline, and ends
    --time             prints how long the network takes for a mask, and ends

Needs the extra `explore`; --save and --time do without. The page is served to this machine alone.
"""

import argparse
import html
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from groot_graph.analysis import raster_forest
from groot_graph.forest import Forest
from groot_graph.graphs import grid_edge_index
from groot_graph.models.click_segmenter import LONGER_SIDE, Click, ClickSegmenter, click_segmenter
from groot_graph.nn import TreeSSM, TreeTopology
from groot_graph.page import Scan
from groot_graph.transforms.image_to_graph import read_image, to_float
from groot_graph.visualization import image_page

# Of a photograph on the page, in pixels.
SHOWN_SIDE = 768
TIMED_RUNS = 15
INSIDE, OUTSIDE = "inside", "outside"
CYAN, RED = (23, 190, 207), (214, 39, 40)

NOTE = (
    "Move over a picture: every place is as bright as it hears the place under the pointer, which "
    "the tree below is drawn around. The network is the trained ClickSegmenter, whose states pass "
    "along edge steps; the published tree and the raster pass the same states with the steps of "
    "their nodes alone, for which the network was not trained."
)
HOW_TO_CLICK = "Click inside of a thing, and where it went too far, choose outside and click there."


class UserError(Exception):
    r"""Something that the user can put right: told in one line."""


class Clicks(NamedTuple):
    r"""The places that were clicked, and on which side of the outline, in the order of time."""

    places: tuple[tuple[Click, str], ...] = ()

    def on(self, side: str) -> list[Click]:
        return [place for place, of_side in self.places if of_side == side]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m groot_graph.explore",
        description="Opens a page on this machine to look into the trees of a photograph.",
    )
    parser.add_argument("photo", type=Path, metavar="PHOTO")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="(default: 7860)")
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="write the page as one HTML file, and end"
    )
    parser.add_argument("--time", action="store_true", help="print how long a mask takes, and end")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    try:
        run(args)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def run(args: argparse.Namespace) -> None:
    photo, model = load_photo(args.photo), click_segmenter()
    if args.time:
        print(timing_of(model, photo))
    elif args.save is not None:
        args.save.write_text(page_of_photo(model, photo), encoding="utf-8")
        print(f"saved {args.save}")
    else:
        serve(make_app(model, photo), args.port)


def load_photo(path: Path) -> Tensor:
    r"""A photograph of shape :obj:`[3, height, width]` from 0 to 1, at most as large as shown."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        image = to_float(read_image(path))
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"{path}: {error}") from error
    # Gray has one channel for all three, and the last of two or four is its opacity.
    image = image[:1].expand(3, -1, -1) if len(image) < 3 else image[:3]
    height, width = image.shape[1:]
    scale = min(1, SHOWN_SIDE / max(height, width))
    size = max(1, round(scale * height)), max(1, round(scale * width))
    return resized(image, size)


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)


# How strongly every place is heard. ---------------------------------------------------------------


def page_of_photo(model: ClickSegmenter, photo: Tensor) -> str:
    r"""The page of :func:`groot_graph.visualization.save_explorer`."""
    height, width = photo.shape[1:]
    scale = min(1, LONGER_SIDE / max(height, width))
    rows, columns = max(1, round(scale * height)), max(1, round(scale * width))
    colors = F.interpolate(photo[None], (rows, columns), mode="area")[0]
    patch_size = SHOWN_SIDE // LONGER_SIDE
    shown = resized(photo, (patch_size * rows, patch_size * columns))
    return image_page(
        shown, scans_of_photo(model, colors), patch_size, "How strongly every place is heard", NOTE
    )


@torch.no_grad()
def scans_of_photo(model: ClickSegmenter, colors: Tensor) -> dict[str, list[Scan]]:
    r"""What every block passes states along: the published tree and the raster, with the steps of
    their nodes, and the network's own edge steps. Before anything is clicked.

    Args:
        model (ClickSegmenter): The network.
        colors (Tensor): The photograph, of shape :obj:`[3, height, width]` from 0 to 1.
    """
    height, width = colors.shape[1:]
    node = torch.arange(height * width).view(height, width)
    # The weights have seen all photographs lying.
    turns = 1 if height > width else 0
    upright = torch.rot90(node, turns).flatten()
    seen = _inputs_of_scans(model, torch.rot90(colors, turns, (1, 2)))
    position = upright.argsort()
    scans: dict[str, list[Scan]] = {"published tree": [], "edge steps": [], "raster": []}
    for ssm, u, forest, edge_length in seen:
        u, edge_length = u[position], edge_length[position]
        own = Forest._of(upright[forest.order], upright[forest.parent][position])
        scans["edge steps"].append(ssm.forest_and_transition(u, own, edge_length))
        of_nodes = ssm.transition(u, torch.zeros_like(edge_length)).flatten(1)
        published = TreeTopology()(u, grid_edge_index(height, width))
        scans["published tree"].append((published, of_nodes))
        scans["raster"].append((raster_forest(height, width), of_nodes))
    return scans


def _inputs_of_scans(model: ClickSegmenter, colors: Tensor) -> list[tuple]:
    r"""Of every block: its :class:`~groot_graph.nn.TreeSSM` and what that is called with."""
    seen: list[tuple] = []

    def look(ssm: torch.nn.Module, args: tuple) -> None:
        seen.append((ssm, *args))

    scanning = [module for module in model.modules() if isinstance(module, TreeSSM)]
    hooks = [ssm.register_forward_pre_hook(look) for ssm in scanning]
    try:
        model(colors[None], colors.new_zeros(1, 2, *colors.shape[1:]))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


# The mask of a thing. -----------------------------------------------------------------------------


def masked(model: ClickSegmenter, photo: Tensor, clicks: Clicks) -> tuple[Any, str]:
    r"""The photograph, dark where the thing is not, with the clicks on it, and a line about it."""
    if len(clicks.on(INSIDE)) == 0:
        return _drawn(photo, clicks), HOW_TO_CLICK
    start = time.perf_counter()
    is_inside = mask_of(model, photo, clicks)
    seconds = time.perf_counter() - start
    share = 100 * float(is_inside.float().mean())
    line = f"The thing covers {share:.1f} % of the picture; found in {seconds:.2f} s."
    return _drawn(photo * (0.25 + 0.75 * is_inside), clicks), line


def mask_of(model: ClickSegmenter, photo: Tensor, clicks: Clicks) -> Tensor:
    # Several threads would wait for one another; each thread of a server has a number of its own.
    torch.set_num_threads(1)
    return model.segment(photo, clicks.on(INSIDE), clicks.on(OUTSIDE)) > 0.5


def _drawn(photo: Tensor, clicks: Clicks) -> Any:
    from PIL import Image, ImageDraw

    pixels = (255 * photo).round().byte().permute(1, 2, 0)
    image = Image.fromarray(pixels.numpy())
    draw = ImageDraw.Draw(image)
    radius = max(3, max(image.size) // 90)
    for (x, y), side in clicks.places:
        box = (x - radius, y - radius, x + radius, y + radius)
        if side == INSIDE:
            draw.ellipse(box, fill=CYAN, outline="black")
        else:
            draw.line(box, fill=RED, width=radius // 2)
            draw.line((box[0], box[3], box[2], box[1]), fill=RED, width=radius // 2)
    return image


def timing_of(model: ClickSegmenter, photo: Tensor) -> str:
    height, width = photo.shape[1:]
    clicks = Clicks((((width / 2, height / 2), INSIDE), ((0.1 * width, 0.1 * height), OUTSIDE)))
    times = []
    for _ in range(1 + TIMED_RUNS):
        start = time.perf_counter()
        mask_of(model, photo, clicks)
        times.append(time.perf_counter() - start)
    return (
        f"a mask of {width} x {height} pixels takes {median(times[1:]):.3f} s, the median of "
        f"{TIMED_RUNS}, at most {max(times[1:]):.3f} s; the first, which the page runs at its "
        f"start, {times[0]:.1f} s"
    )


# The page. ----------------------------------------------------------------------------------------


def make_app(model: ClickSegmenter, photo: Tensor) -> Any:
    r"""The page as Gradio's :obj:`Blocks`."""
    gr = _import_gradio()
    # The first one compiles; nobody is to wait for it at a click.
    mask_of(model, photo, Clicks((((0, 0), INSIDE),)))

    def answer(clicks: Clicks) -> tuple:
        return clicks, *masked(model, photo, clicks)

    def click(clicks: Clicks, side: str, event: gr.SelectData) -> tuple:  # type: ignore[name-defined]
        return answer(Clicks((*clicks.places, (tuple(event.index), side))))

    with gr.Blocks(title="groot-graph", analytics_enabled=False, fill_width=True) as app:
        with gr.Tab("Affinity"):
            page = html.escape(page_of_photo(model, photo))
            gr.HTML(
                f'<iframe srcdoc="{page}" title="affinity" style="width: 100%; height: 900px; '
                'border: 0"></iframe>'
            )
        with gr.Tab("Mask"):
            clicks = gr.State(Clicks())
            side = gr.Radio([INSIDE, OUTSIDE], value=INSIDE, label="The next click is")
            picture, line = masked(model, photo, Clicks())
            picture = gr.Image(
                picture, format="png", type="pil", show_label=False, interactive=False, buttons=[],
                elem_id="photo",
            )  # fmt: skip
            told = gr.Markdown(line)
            with gr.Row():
                undo, restart = gr.Button("Take the last click back"), gr.Button("Start again")
            shown = [clicks, picture, told]
            picture.select(click, [clicks, side], shown, show_progress="hidden")
            undo.click(lambda clicks: answer(Clicks(clicks.places[:-1])), clicks, shown)
            restart.click(lambda: answer(Clicks()), None, shown)
    return app


def serve(app: Any, port: int) -> None:
    r"""Serves the page to this machine until it is stopped."""
    try:
        app.launch(**launch_options(port), prevent_thread_lock=True)
    except OSError as error:
        raise UserError(f"port {port} is taken: choose another one by --port") from error
    print(f"http://127.0.0.1:{port} (end by Ctrl+C)", flush=True)
    app.block_thread()


def launch_options(port: int) -> dict[str, Any]:
    return {
        "server_name": "127.0.0.1",
        "server_port": port,
        "share": False,
        "quiet": True,
        "ssr_mode": False,
        "footer_links": [],
        "enable_monitoring": False,
    }


def _import_gradio() -> Any:
    # Read when it is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise UserError(
            'the page needs gradio: pip install "groot-graph[explore]" (--save does without)'
        ) from error
    return gradio


if __name__ == "__main__":
    main()
