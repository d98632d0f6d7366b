r"""python -m sphinx -W --keep-going -b html docs docs/_build/html"""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import groot_graph

project = "groot-graph"
author = "The groot-graph authors"
copyright = author
version = release = groot_graph.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"groot-graph {version}"

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_mock_imports = [name for name in ("lm_eval", "timm") if find_spec(name) is None]
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shapes", "Source"]

nitpicky = True
# What other projects document, by its full name or as docstrings call it.
projects = (
    "collections|lm_eval|matplotlib|networkx|numpy|os|pandas|PIL|scipy|skimage|sklearn|timm|torch"
    "|torch_geometric|transformers"
)
types = (
    r"\w*Tensor|Aggregation|array-like|Axes|DiGraph|EdgeIndex|PathLike|iterable|ndarray|optional"
    r"|\w+Output\w*"
)
nitpick_ignore_regex = [
    ("py:.*", rf"({projects})\..*"),
    ("py:class", types),
    # In PyG's style these are plain code and Python's own exceptions.
    ("py:obj|py:exc", ".*"),
]
