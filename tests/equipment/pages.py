"""Pages of the explorer, read as a browser does."""

import base64
import json
import math
import re
import shutil
import subprocess

import numpy as np

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def data_of(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(text)


def affinity_in_python(page: str, panel: int, block: int, node: int) -> np.ndarray:
    """From the numbers that the page holds, by the way between two nodes."""
    data = data_of(page)
    scan = data["panels"][panel]["scans"][block]
    parent = np.frombuffer(base64.b64decode(scan["parent"]), "<i4")
    transition = transition_of(data["transitions"][scan["transition"]])
    heard = np.zeros(transition.shape)
    ways = [way_up(parent, other) for other in range(len(parent))]
    for other, way in enumerate(ways):
        if way[-1] == ways[node][-1]:
            between = set(way[:-1]) ^ set(ways[node][:-1])
            heard[other] = transition[sorted(between)].prod(axis=0)
    return heard.mean(axis=1)


def transition_of(encoded: dict) -> np.ndarray:
    codes = np.frombuffer(base64.b64decode(encoded["codes"]), "<u2").astype(float)
    step = math.log(encoded["greatest"] / encoded["least"]) / 65534
    decay = np.where(codes == 0, 0, encoded["least"] * np.exp((codes - 1) * step))
    return np.exp(-decay).reshape(-1, encoded["channels"])


def way_up(parent: np.ndarray, node: int) -> list[int]:
    way = [node]
    while parent[way[-1]] != way[-1]:
        way.append(int(parent[way[-1]]))
    return way


def affinity_in_node(page: str, panel: int, block: int, node: int) -> np.ndarray:
    """By the page's own script, in Node.js."""
    (script,) = re.findall(r'<script id="scan">(.*?)</script>', page, re.S)
    script += f"""
        const scan = scansOf(JSON.parse(process.argv[2]))[{panel}][{block}];
        console.log(JSON.stringify(Array.from(affinityOf(scan, {node}))));
    """
    command = ["node", "-", json.dumps(data_of(page))]
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=True)
    return np.array(json.loads(done.stdout))


def browser() -> str | None:
    """The first one that is installed."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)
