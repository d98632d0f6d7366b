r"""A page on this machine to look into the trees of a photograph, a sentence or points.

python -m groot_graph.explore photo.jpg

Opens a page at http://127.0.0.1:7860 with what is given:

    PHOTO              how strongly every place is heard from the one under the pointer: along the
                       tree that the network's edge steps grow, along the published tree, and along
                       a raster; and the mask of a thing that is clicked
    --text SENTENCE    how strongly every token of a sentence is heard
    --model DIR        the network for it: a checkpoint of Mamba or GrootL with its tokenizer;
                       without it the weights are random and the tokens are words
    --points FILE      the same for the points of a CSV file, a line of coordinates each, along
                       the minimum spanning tree of their distances
    --port N           another port
    --save FILE        writes the affinities as one HTML file that works offline, and ends
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

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from groot_graph.analysis import raster_forest, scan_of_layer
from groot_graph.forest import Forest
from groot_graph.graphs import grid_edge_index
from groot_graph.models.click_segmenter import LONGER_SIDE, Click, ClickSegmenter, click_segmenter
from groot_graph.nn import TreeSSM, TreeTopology
from groot_graph.page import Scan
from groot_graph.transforms import PointsToGraph
from groot_graph.transforms.images import to_image
from groot_graph.visualization import graph_page, image_page, text_page

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
TEXT_NOTE = (
    "Point at a token: every token is as bright as it hears that one, along the tree of a layer, "
    "and along the plain text with the same transitions."
)
POINTS_NOTE = (
    "Point at a place: every point is as bright as it hears the nearest one, along the minimum "
    "spanning tree and along the order of the file; what is heard fades with the length of the "
    "way. There is no network: the slider chooses how far it reaches."
)
# In lengths of a usual edge.
REACHES = (3, 10, 30, 100)
NEIGHBORS = 8
MOST_CHANNELS = 256
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
        description="Opens a page on this machine to look into trees.",
    )
    parser.add_argument("photo", type=Path, nargs="?", metavar="PHOTO")
    parser.add_argument("--text", metavar="SENTENCE")
    parser.add_argument("--model", type=Path, metavar="DIR", help="for the sentence")
    parser.add_argument("--points", type=Path, metavar="FILE", help="a line of coordinates each")
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
    if args.photo is None and args.text is None and args.points is None:
        raise UserError("nothing to look into: give PHOTO, --text or --points")
    if args.time and args.photo is None:
        raise UserError("--time needs PHOTO")
    photo, model = None, click_segmenter()
    pages = {}
    if args.photo is not None:
        photo = load_photo(args.photo)
        if args.time:
            print(timing_of(model, photo))
            return
        pages["Affinity"] = page_of_photo(model, photo)
    if args.text is not None:
        pages["Sentence"] = page_of_text(args.text, args.model)
    if args.points is not None:
        pages["Points"] = page_of_points(load_points(args.points))
    if args.save is None:
        serve(make_app(pages, model, photo), args.port)
        return
    if len(pages) > 1:
        raise UserError("--save writes one page: give only one of PHOTO, --text and --points")
    (page,) = pages.values()
    args.save.write_text(page, encoding="utf-8")
    print(f"saved {args.save}")


def load_photo(path: Path) -> Tensor:
    r"""A photograph of shape :obj:`[3, height, width]` from 0 to 1, at most as large as shown."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        image = to_image(path)
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


def page_of_text(text: str, folder: Path | None) -> str:
    r"""The page of :func:`groot_graph.visualization.save_text_explorer`."""
    try:
        tokens, ids, model = _load_language_model(text, folder)
    except (ImportError, OSError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--model {folder}: {first}" if folder else first) from error
    weights = "The weights are random: give --model DIR." if folder is None else ""
    # Rooted at the last token as the trees are, so that every edge keeps its transition.
    last = len(tokens) - 1
    token = torch.arange(len(tokens))
    chain = Forest._of(token.flip(0), (token + 1).clamp(max=last))
    scans: dict[str, list[Scan]] = {"tree": [], "chain": []}
    for layer in range(model.config.num_hidden_layers):
        forest, transition = scan_of_layer(model, ids, layer=layer)
        # All states of a large network would make a file of gigabytes.
        step = -(-transition.size(1) // MOST_CHANNELS)
        transition = transition[:, ::step].contiguous()
        scans["tree"].append((forest, transition))
        scans["chain"].append((chain, transition))
    return text_page(tokens, scans, "How strongly every token is heard", f"{TEXT_NOTE} {weights}")


def _load_language_model(text: str, folder: Path | None) -> tuple[list[str], Tensor, Any]:
    r"""The tokens as words and numbers, and a network that reads them."""
    from groot_graph.models.grootl import GrootLConfig, GrootLForCausalLM

    if folder is None:
        tokens = text.split()
        if len(tokens) == 0:
            raise ValueError("--text: holds no word")
        known = {word: number for number, word in enumerate(dict.fromkeys(tokens), start=1)}
        torch.manual_seed(0)
        config = GrootLConfig(vocab_size=len(known) + 1, hidden_size=32, num_hidden_layers=2)
        ids = torch.tensor([[known[word] for word in tokens]])
        return tokens, ids, GrootLForCausalLM(config).eval()
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise ValueError("there is no such folder")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = GrootLForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    ids = tokenizer(text, return_tensors="pt").input_ids
    if ids.size(1) == 0:
        raise ValueError("--text: holds no token")
    return [str(tokenizer.decode([token])) for token in ids[0].tolist()], ids, model


def load_points(path: Path) -> Tensor:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        values = np.loadtxt(path, delimiter=",", ndmin=2)
    except ValueError as error:
        raise UserError(f"{path}: not a table of numbers parted by commas ({error})") from error
    if values.shape[0] < 2 or values.shape[1] < 2 or not np.isfinite(values).all():
        raise UserError(f"{path}: must hold two points or more, of two finite numbers or more each")
    return torch.from_numpy(values).float()


def page_of_points(pos: Tensor) -> str:
    r"""The page of :func:`groot_graph.visualization.save_graph_explorer`."""
    try:
        graph = PointsToGraph(k=min(NEIGHBORS, len(pos) - 1))(pos)
    except ImportError as error:
        raise UserError(str(error)) from error
    forest, length = TreeTopology("euclidean").forest_and_length(pos, graph.edge_index)
    chain = raster_forest(1, len(pos))
    step = torch.linalg.vector_norm(pos - pos[chain.parent], dim=1)
    is_child = forest.parent != torch.arange(len(pos))
    usual = float(length[is_child].median()) if bool(is_child.any()) else 1.0
    scans: dict[str, list[Scan]] = {"minimum spanning tree": [], "order of the file": []}
    for reach in REACHES:
        fading = reach * max(usual, 1e-12)
        scans["minimum spanning tree"].append((forest, torch.exp(-length / fading)))
        scans["order of the file"].append((chain, torch.exp(-step / fading)))
    return graph_page(pos, scans, "How strongly every point is heard", POINTS_NOTE, "reach")


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


def make_app(pages: dict[str, str], model: ClickSegmenter, photo: Tensor | None) -> Any:
    r"""The pages, and the mask of a photograph, as tabs of Gradio's :obj:`Blocks`."""
    gr = _import_gradio()
    with gr.Blocks(title="groot-graph", analytics_enabled=False, fill_width=True) as app:
        for name, page in pages.items():
            with gr.Tab(name):
                gr.HTML(
                    f'<iframe srcdoc="{html.escape(page)}" title="{name}" '
                    'style="width: 100%; height: 900px; border: 0"></iframe>'
                )
        if photo is not None:
            with gr.Tab("Mask"):
                _add_mask(gr, model, photo)
    return app


def _add_mask(gr: Any, model: ClickSegmenter, photo: Tensor) -> None:
    # The first one compiles; nobody is to wait for it at a click.
    mask_of(model, photo, Clicks((((0, 0), INSIDE),)))

    def answer(clicks: Clicks) -> tuple:
        return clicks, *masked(model, photo, clicks)

    def click(clicks: Clicks, side: str, event: gr.SelectData) -> tuple:
        return answer(Clicks((*clicks.places, (tuple(event.index), side))))

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
