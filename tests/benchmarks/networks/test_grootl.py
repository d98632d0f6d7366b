import json

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.harness import gpu
from benchmarks.harness.registry import rows_of
from benchmarks.networks import grootl
from benchmarks.networks.grootl import MODELS, PEER, SMOKE, Size

SIZE = Size(**SMOKE, device="cpu")


@pytest.fixture
def results(monkeypatch, tmp_path, capsys):
    """Of every row at its smoke size; a fresh process for every model would take seconds."""
    monkeypatch.setattr(gpu, "peak_memory", lambda *args: 12345)
    path = tmp_path / "results.json"
    assert main(["--smoke", "--op", "grootl", "--repeats", "1", "--json", str(path)]) == 0
    return json.loads(path.read_text())["results"]


def of_row(results, text):
    return [result for result in results if text in result["row"]]


@pytest.mark.full
def test_every_row_is_measured(results):
    for text in ("16, forward, 8 tokens", "training step, 8 tokens"):
        found = of_row(results, text)
        assert [result["work"].split(", ")[-1] for result in found] == ["tree", "causal tree"]
        assert {result["peer"] for result in found} == {"chain"}
    beside = of_row(results, "forward beside transformers, 8 tokens")
    assert [result["work"].split(", ")[-1] for result in beside] == list(MODELS)
    assert {result["peer"] for result in beside} == {PEER}
    for name in MODELS:
        lengths = [
            result["work"].split("after ")[1] for result in of_row(results, f"token, {name}")
        ]
        assert lengths == [f"{8 * 2**power:,} tokens" for power in range(6)]
    assert len(of_row(results, f"token, {PEER}")) == 1
    memory = of_row(results, "peak extra memory")
    assert [result["ours"] for result in memory] == [12345] * 3
    # 8 tokens, 2 * 16 channels, 16 states, 4 bytes each.
    assert {result["peer_value"] for result in memory} == {8 * 32 * 16 * 4}


def test_the_tree_is_judged_against_chain_and_transformers():
    rows = {row.title: row for row in grootl_rows()}
    steps = {"chain": [2.0], "tree": [3.0], "causal tree": [5.0]}
    tree, causal = judged(rows["{layers} layers of {hidden_size}, forward, {tokens} tokens"], steps)
    assert (tree.ratio, tree.met) == (1.5, True)
    assert (causal.ratio, causal.met) == (2.5, None)


def grootl_rows():
    return [row for row in rows_of("networks") if row.op == "grootl" and row.device == "cpu"]


def judged(row, seconds):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grootl, "interleave", lambda *args: seconds)
        measured = grootl.against("chain", seconds, 1, "cpu")
    return [row._result("row", row.goal, one) for one in measured]


def test_dearest_and_cheapest_history_are_told(monkeypatch):
    times = dict(zip((8, 16, 32), ([2.0], [3.0], [2.5]), strict=True))
    monkeypatch.setattr(grootl, "interleave", lambda *args: times)
    monkeypatch.setattr(grootl, "make_next_token", lambda *args: None)
    first, *_ = grootl.generation(1, 8, "tree", 2, **SIZE._asdict())
    assert first.note == "dearest / cheapest history: 1.50"


def test_one_more_token_follows_what_the_cache_holds():
    step = grootl.make_next_token("tree", 8, SIZE)
    first, second = step(), step()
    # The same token at two places of a text.
    assert first.shape == second.shape == (1, 1, 50)
    assert not first.equal(second)


def test_last_logits_are_those_of_all():
    every, last = (
        make("tree", 8, SIZE)() for make in (grootl.make_forward, grootl.make_last_logits)
    )
    torch.testing.assert_close(last, every[:, -1:])


def test_too_few_tokens_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--smoke", "--op", "grootl", "--set", "tokens=3"])
    assert "tokens must be at least 4, got 3" in capsys.readouterr().err
