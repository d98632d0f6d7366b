"""The code of the guides runs and prints what stands beside it."""

import contextlib
import io
import re
from pathlib import Path

import matplotlib
import pytest

pytest.importorskip("transformers", minversion="5.5")

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [*sorted((DOCS / "guides").glob("*.md")), DOCS / "why_a_tree.md"]
# What a page needs that the extra `test` does not bring.
NEEDED = {"lightning": "lightning"}


@pytest.mark.full
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_runs_and_prints_what_is_told(page, tmp_path, monkeypatch):
    pytest.importorskip(NEEDED.get(page.stem, "torch"))
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    names: dict = {"__name__": "guide"}
    for block in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, str(page), "exec"), names)
        told = re.findall(r"^ *print\(.*\)  # (.*)$", block, re.MULTILINE)
        if told:
            assert printed.getvalue().splitlines() == told
