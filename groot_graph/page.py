r"""The page that shows what every node hears, as one HTML file that works without Python."""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, TypeAlias

import torch
from torch import Tensor

from groot_graph.forest import Forest

# What a block passes states along, as groot_graph.analysis.scan_of_layer returns it.
Scan: TypeAlias = tuple[Forest, Tensor]

# Of -log(transition): shorter ones count for nothing, longer ones leave nothing in float32.
LEAST_DECAY, GREATEST_DECAY = 1e-9, 100.0
GREATEST_CODE = 2**16 - 1


def page_of(
    content: Mapping[str, Any],
    sizes: Sequence[tuple[int, int]],
    scans: Mapping[str, Sequence[Scan]],
    title: str,
    note: str,
) -> str:
    r"""The page of a picture, a text or points, as HTML."""
    transitions: dict[int, int] = {}
    encoded: list[dict] = []
    panels = []
    for name, of_blocks in scans.items():
        found = []
        for block, (forest, transition) in enumerate(of_blocks):
            # Several scans along the same transitions share them in the file, too.
            if id(transition) not in transitions:
                transitions[id(transition)] = len(encoded)
                encoded.append(encode_transition(transition))
            found.append(
                {
                    "block": block,
                    "order": _numbers(forest.order),
                    "parent": _numbers(forest.parent),
                    "transition": transitions[id(transition)],
                }
            )
        panels.append({"name": name, "scans": found})
    data = {
        "title": title,
        "note": note,
        "slider": "block",
        "blocks": len(sizes),
        "sizes": [list(size) for size in sizes],
        "panels": panels,
        "transitions": encoded,
        **content,
    }
    # A browser ends a script at the first such mark, also within a text.
    text = json.dumps(data).replace("<", "\\u003c")
    template = files("groot_graph").joinpath("page.html").read_text(encoding="utf-8")
    return template.replace("__DATA__", text)


def encode_transition(transition: Tensor) -> dict[str, Any]:
    r"""Transitions from 0 to 1 as 16 bits each: the logarithm of :math:`-\log a`, so that the
    relative error of every decay is the same, and with it that of their sum along a path.
    """
    transition = transition.detach().cpu().double()
    decay = -transition.reshape(len(transition), -1).log()
    is_felt = decay >= LEAST_DECAY
    felt = decay[is_felt].clamp(max=GREATEST_DECAY)
    least = float(felt.min()) if len(felt) > 0 else LEAST_DECAY
    greatest = float(felt.max()) if len(felt) > 0 else LEAST_DECAY
    step = math.log(greatest / least) / (GREATEST_CODE - 1) or 1.0
    codes = torch.zeros_like(decay, dtype=torch.int64)
    codes[is_felt] = 1 + ((felt / least).log() / step).round().long()
    return {
        "channels": decay.size(1),
        "least": least,
        "greatest": greatest,
        "codes": _text_of(codes.numpy().astype("<u2").tobytes()),
    }


def picture_of(image: Tensor) -> str:
    r"""An image with its channels last, or gray, as a URL that holds it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("the page of an image needs Pillow: pip install pillow") from error
    image = image.double() / (255 if image.dtype == torch.uint8 else 1)
    if image.dim() == 2:
        lowest, highest = image.aminmax()
        image = (image - lowest) / (highest - lowest).clamp(min=1e-12)
    image = (255 * image.clamp(0, 1)).round()
    file = io.BytesIO()
    Image.fromarray(image.byte().numpy()).convert("RGB").save(file, "jpeg", quality=90)
    return f"data:image/jpeg;base64,{_text_of(file.getvalue())}"


def points_of(pos: Tensor) -> dict[str, Any]:
    r"""Positions from 0 to 1 with a margin, the second coordinate downwards as on a screen, and how
    many times as wide as high they lie.
    """
    pos = pos[:, :2].detach().cpu().double()
    lowest, extent = pos.amin(dim=0), (pos.amax(dim=0) - pos.amin(dim=0)).clamp(min=1e-12)
    # Neither a line nor a point fills a page.
    extent = extent.clamp(min=float(extent.max()) / 3)
    place = 0.04 + 0.92 * (pos - lowest) / extent
    place[:, 1] = 1 - place[:, 1]
    return {
        "points": _text_of(place.numpy().astype("<f4").tobytes()),
        "aspect": float(extent[0] / extent[1]),
    }


def _numbers(nodes: Tensor) -> str:
    return _text_of(nodes.cpu().numpy().astype("<i4").tobytes())


def _text_of(values: bytes) -> str:
    return base64.b64encode(values).decode("ascii")
