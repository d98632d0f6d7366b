import json

import pytest

from benchmarks import grootl
from benchmarks.grootl import MODELS, PEER, main, parse

SMALL = ["--tokens", "64", "--layers", "1", "--hidden-size", "16", "--vocabulary", "50"]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """A fresh process for every model would take seconds."""
    monkeypatch.setattr(grootl, "in_fresh_process", lambda function, *args: function(*args))


@pytest.mark.full
def test_every_part_is_measured_and_told(tmp_path, capsys):
    path = tmp_path / "results.json"
    results = main([*SMALL, "--repeats", "1", "--json", str(path)])
    assert json.loads(path.read_text())["results"] == results
    rows = {result["row"]: result for result in results}
    assert rows["long"]["seconds"].keys() == rows["training"]["seconds"].keys() == MODELS.keys()
    assert rows["short"]["seconds"].keys() == {*MODELS, PEER}
    for name in MODELS:
        assert list(rows[name]["seconds"]) == ["4", "8", "16", "32", "64", "128"]
    assert list(rows[PEER]["seconds"]) == ["4"]
    assert rows["memory"]["bytes"]["[tokens, channels, states]"] == 64 * 32 * 16 * 4
    printed = capsys.readouterr().out
    assert "1 layers, hidden size 16, vocabulary 50, " in printed
    assert "| forward, 64 tokens | chain | tree | causal tree |" in printed
    assert "tree takes" in printed and "goal 2: " in printed and "goal 0.333: " in printed
    assert "| one more token, causal tree, by the tokens so far | 4 | 8 |" in printed
    assert "dearest / cheapest history: " in printed


def test_one_more_token_follows_what_the_cache_holds():
    args = parse(SMALL)
    step = grootl.make_next_token("tree", 8, args)
    first, second = step(), step()
    # The same token at two places of a text.
    assert first.shape == second.shape == (1, 1, 50)
    assert not first.equal(second)


def test_verdicts():
    line = grootl._verdict({"row": "long", "seconds": {"tree": 3.0, "chain": 2.0}})[1]
    assert line == "tree takes 1.5 times what chain takes; goal 2: met"
    line = grootl._verdict({"row": "short", "seconds": {"tree": 3.0, PEER: 2.0}})[1]
    assert line == "tree takes 1.5 times what transformers takes; goal 0.333: MISSED"
    line = grootl._verdict({"row": "tree", "seconds": {"128": 1.0, "256": 1.5}})[1]
    assert line == "dearest / cheapest history: 1.50"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", "15"], "--tokens must be at least 16, got 15"),
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--part", "training_step"], "invalid choice: 'training_step'"),
        (["--json", "no/such/file.json"], "is not a directory"),
    ],
)
def test_bad_options_are_refused(capsys, options, message):
    with pytest.raises(SystemExit):
        main(options)
    assert message in capsys.readouterr().err
