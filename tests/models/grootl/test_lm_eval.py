import importlib.util
import json
import runpy
import socket
import string
import sys
from functools import partial

import datasets
import lm_eval
import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model, model_registry
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

from groot_graph.models import GrootLForCausalLM
from groot_graph.models.grootl import GrootLConfig
from groot_graph.models.grootl import lm_eval as groot_graph_lm_eval
from groot_graph.models.grootl.lm_eval import HarnessGrootL

WORDS = list(string.ascii_lowercase)
CONTEXTS = ["a b c d e f g h i", "q r s", "w v u t s r q p o n m l k j i h", "z"]
CHOICES = [["j", "k", "l m n"], ["t u v w", "a"], ["f", "g", "h", "f a"], ["x y", "b c d e"]]
PAIRS = [
    (context, f" {choice}")
    for context, choices in zip(CONTEXTS, CHOICES, strict=True)
    for choice in choices
]
SIZES = {
    "vocab_size": 1 + len(WORDS),
    "hidden_size": 16,
    "state_size": 4,
    "num_hidden_layers": 2,
    # Steps so long that states matter with random weights, too.
    "time_step_min": 1.0,
    "time_step_max": 2.0,
    "initializer_range": 0.5,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
TASKS = {
    "choose": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    },
    "go_on": {
        "output_type": "generate_until",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["<end>"], "max_gen_toks": 6},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    """Whoever asks the network fails, and nothing is cached elsewhere."""

    def refuse(*args):
        raise AssertionError(f"asks the network for {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)


@pytest.fixture
def tokenizer():
    words = {word: number for number, word in enumerate(["<end>", *WORDS])}
    tokens = Tokenizer(WordLevel(words, unk_token="<end>"))
    tokens.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<end>", pad_token="<end>")


@pytest.fixture
def model():
    return GrootLForCausalLM(GrootLConfig(tree_scale=0.7, **SIZES)).eval()


@pytest.fixture
def harness(model, tokenizer):
    def harness(**kwargs):
        return HarnessGrootL(**{"pretrained": model, "tokenizer": tokenizer, **kwargs})

    return harness


@pytest.fixture
def task_files(tmp_path):
    """A task file of each kind over one file of data."""
    data = tmp_path / "data.json"
    lines = [
        {"context": context, "choices": choices, "answer": number % 2}
        for number, (context, choices) in enumerate(zip(CONTEXTS, CHOICES, strict=True))
    ]
    data.write_text("\n".join(map(json.dumps, lines)))
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
    for name, task in TASKS.items():
        content = {"task": name, "test_split": "test", **source, **task}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


@torch.no_grad()
def by_hand(model, tokenizer, context, continuation, **kwargs):
    """The log-likelihood of one text alone, without padding, and whether it is the likeliest."""
    context, continuation = tokenizer.encode(context), tokenizer.encode(continuation)
    tokens = torch.tensor([context + continuation])
    kwargs = {"context_lengths": len(context), **kwargs}
    logits = model(tokens[:, :-1], **kwargs).logits[0, len(context) - 1 :]
    log_probs = logits.log_softmax(-1).gather(1, tokens[0, len(context) :, None])
    return float(log_probs.sum()), logits.argmax(-1).tolist() == continuation


def all_by_hand(model, tokenizer, **kwargs):
    return [by_hand(model, tokenizer, *pair, **kwargs) for pair in PAIRS]


def ask(lm, pairs=PAIRS):
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    return lm.loglikelihood(requests, disable_tqdm=True)


def differ(found, expected):
    """By how much two lists of answers differ, at most, given that they agree on the likeliest."""
    assert [is_likeliest for _, is_likeliest in found] == [
        is_likeliest for _, is_likeliest in expected
    ]
    return distance(found, expected)


def distance(found, expected):
    return max(abs(x - y) for (x, _), (y, _) in zip(found, expected, strict=True))


def written(model, tokenizer, prompt, num_tokens=6):
    tokens = tokenizer(prompt, return_tensors="pt").input_ids
    longer = model.generate(tokens, max_new_tokens=num_tokens, do_sample=False)
    return tokenizer.decode(longer[0, tokens.size(1) :], skip_special_tokens=True)


@pytest.mark.full
def test_the_harness_runs_local_tasks(harness, model, tokenizer, task_files):
    manager = TaskManager(include_path=str(task_files), include_defaults=False)
    results = lm_eval.simple_evaluate(
        harness(batch_size=3), tasks=[*TASKS], task_manager=manager, bootstrap_iters=0
    )

    expected = all_by_hand(model, tokenizer)
    scores = iter(value for value, _ in expected)
    for number, (sample, choices) in enumerate(
        zip(samples(results, "choose"), CHOICES, strict=True)
    ):
        wanted = [next(scores) for _ in choices]
        assert [answer[0][0] for answer in sample["resps"]] == pytest.approx(wanted, abs=1e-4)
        assert sample["acc"] == (wanted.index(max(wanted)) == number % 2)
    texts = [written(model, tokenizer, context) for context in CONTEXTS]
    assert [sample["resps"] for sample in samples(results, "go_on")] == [[[text]] for text in texts]
    assert len(set(texts)) > 1


def samples(results, name):
    return sorted(results["samples"][name], key=lambda sample: sample["doc_id"])


@pytest.fixture
def command_line(monkeypatch):
    """python -m groot_graph.models.grootl.lm_eval, but not in a process of its own, and without
    reading the thousands of task files of the harness."""

    def run(*options):
        # The module registers its class a second time.
        monkeypatch.delitem(model_registry._objs, "grootl")
        monkeypatch.setattr("lm_eval.utils._LOGGING_CONFIGURED", True)
        monkeypatch.setattr(
            "lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False)
        )
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
        monkeypatch.setattr(sys, "argv", ["lm_eval", *map(str, options)])
        runpy.run_path(groot_graph_lm_eval.__file__, run_name="__main__")

    return run


def test_the_command_line(command_line, tokenizer, task_files, tmp_path, capsys):
    """The weights of a Mamba, with a tree that the arguments describe."""
    checkpoint = tmp_path / "mamba"
    MambaForCausalLM(MambaConfig(**SIZES)).save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)
    command_line(
        "--model=grootl",
        f"--model_args=pretrained={checkpoint},tree_scale=0.9,tree_window=2",
        "--tasks=choose",
        f"--include_path={task_files}",
        "--batch_size=2",
        "--log_samples",
        f"--output_path={tmp_path / 'out'}",
    )
    assert "|choose|" in capsys.readouterr().out

    (log,) = (tmp_path / "out").rglob("samples_choose*.jsonl")
    logged = sorted(map(json.loads, log.read_text().splitlines()), key=lambda line: line["doc_id"])
    found = [float(answer[0][0]) for line in logged for answer in line["resps"]]
    model = GrootLForCausalLM.from_pretrained(checkpoint, tree_scale=0.9, tree_window=2)
    assert found == pytest.approx([x for x, _ in all_by_hand(model, tokenizer)], abs=1e-4)
    model.config.tree_scale = 0
    assert found != pytest.approx([x for x, _ in all_by_hand(model, tokenizer)], abs=1e-2)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("logits_cache", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 32])
def test_every_request_has_its_own_context(harness, model, tokenizer, batch_size, logits_cache):
    found = ask(harness(batch_size=batch_size, logits_cache=logits_cache))
    assert differ(found, all_by_hand(model, tokenizer)) < 1e-4
    # Neither a tree over all that is given, nor one over nothing.
    for context_lengths in (None, 0):
        others = all_by_hand(model, tokenizer, context_lengths=context_lengths)
        assert distance(found, others) > 1e-2


@pytest.mark.full
def test_an_automatic_batch_size(harness, model, tokenizer, capsys):
    found = ask(harness(batch_size="auto", max_batch_size=2, max_length=24))
    assert "Determined largest batch size: 2" in capsys.readouterr().out
    assert differ(found, all_by_hand(model, tokenizer)) < 1e-4


def test_the_causal_tree(harness, tokenizer):
    causal = GrootLForCausalLM(GrootLConfig(tree_mode="causal", **SIZES)).eval()
    found = ask(harness(pretrained=causal, batch_size=4))
    assert differ(found, all_by_hand(causal, tokenizer)) < 1e-4


def test_without_a_tree_it_is_the_model_of_the_harness(harness, tokenizer):
    mamba = MambaForCausalLM(MambaConfig(**SIZES)).eval()
    settings = {"tokenizer": tokenizer, "max_length": 12, "batch_size": 3}
    plain = HFLM(pretrained=mamba, **settings)
    lm = harness(pretrained=GrootLForCausalLM.from_mamba(mamba, tree_scale=0), **settings)
    assert differ(ask(lm), ask(plain)) < 1e-4
    text = Instance("loglikelihood_rolling", {}, (" ".join(WORDS),), 0)
    assert lm.loglikelihood_rolling([text]) == pytest.approx(
        plain.loglikelihood_rolling([text]), abs=1e-3
    )


def test_a_model_with_an_adapter(harness, model, tokenizer):
    adapted = get_peft_model(
        model, LoraConfig(target_modules=["x_proj"], init_lora_weights=False)
    ).eval()
    found = ask(harness(pretrained=adapted, batch_size=4))
    assert differ(found, all_by_hand(adapted, tokenizer)) < 1e-4


@pytest.mark.parametrize("logits_cache, num_texts", [(True, 3), (False, 5)])
def test_one_forward_for_the_same_context_only(harness, model, tokenizer, logits_cache, num_texts):
    # The last two read the very tokens that the first three read, after other contexts.
    pairs = [
        ("a b c d", " e"),
        ("a b c d", " f"),
        ("a b c d", " g"),
        ("a b", " c d h"),
        ("a", " b c d i"),
    ]
    rows = []
    model.register_forward_pre_hook(lambda module, args: rows.extend(args[0].tolist()))
    found = ask(harness(batch_size=8, logits_cache=logits_cache), pairs)
    assert len(rows) == num_texts and len(set(map(tuple, rows))) == 1
    assert differ(found, [by_hand(model, tokenizer, *pair) for pair in pairs]) < 1e-4
    assert len({tuple(answer) for answer in found}) == 5


def test_answers_are_cached_as_the_harness_does(harness):
    stored = {}
    lm = harness(batch_size=4)
    lm.cache_hook.add_partial = lambda kind, strings, answer: stored.update({strings: answer})
    assert dict(zip(PAIRS, ask(lm), strict=True)) == stored


def test_a_long_context_loses_its_first_tokens(harness, model, tokenizer, caplog):
    pairs = [("a b c d e f g h i j", " k l"), ("p q r", " s")]
    found = ask(harness(batch_size=2, max_length=7), pairs)
    kept = [("e f g h i j", " k l"), pairs[1]]
    assert differ(found, [by_hand(model, tokenizer, *pair) for pair in kept]) < 1e-4
    (message,) = warnings(caplog)
    assert "a context of 10 and a continuation of 2 tokens exceed" in message
    assert "'max_length' of 7: the first 4 are cut off" in message


def test_what_fits_is_not_cut(harness, model, tokenizer, caplog):
    # The last token is predicted, not read.
    pairs = [("a b c d e f", " g h")]
    found = ask(harness(max_length=7), pairs)
    assert differ(found, [by_hand(model, tokenizer, *pairs[0])]) < 1e-4
    assert warnings(caplog) == []


def warnings(caplog):
    logger = groot_graph_lm_eval.__name__
    return [record.getMessage() for record in caplog.records if record.name == logger]


def test_rolling_log_likelihoods(harness, model, tokenizer):
    texts = ["b c d", "k l m n o p q r s t"]
    lm = harness(batch_size=2, max_length=4)
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    found = lm.loglikelihood_rolling(requests, disable_tqdm=True)
    windows = [("<end>", "k l m n"), ("n", "o p q r"), ("p q r", "s t")]
    expected = [by_hand(model, tokenizer, "<end>", texts[0])[0]]
    expected.append(sum(by_hand(model, tokenizer, *window)[0] for window in windows))
    assert found == pytest.approx(expected, abs=1e-4)
    # With one token before it, a text is scored along the chain.
    chain = by_hand(model, tokenizer, "<end>", texts[0], context_lengths=0)[0]
    assert found[0] == pytest.approx(chain, abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_prompt_is_the_context_of_what_is_generated(harness, model, tokenizer, batch_size):
    lm = harness(batch_size=batch_size, max_length=12)
    settings = {"until": ["<end>"], "max_gen_toks": 6}
    requests = [Instance("generate_until", {}, (text, settings), 0) for text in CONTEXTS]
    # What is too long loses its first tokens here, too.
    shortened = [" ".join(text.split()[-6:]) for text in CONTEXTS]
    expected = [written(model, tokenizer, text) for text in shortened]
    assert lm.generate_until(requests, disable_tqdm=True) == expected


def test_the_longest_text(harness, tokenizer):
    assert harness().max_length == 2048
    tokenizer.model_max_length = 99
    assert harness().max_length == 99
    assert harness(max_length=7).max_length == 7


def test_lengths_that_do_not_fit(harness):
    message = "a continuation must have 1 to 3 tokens, the 'max_length', got 4"
    with pytest.raises(ValueError, match=message):
        ask(harness(max_length=3), [("a", " b c d e")])
    with pytest.raises(ValueError, match="tokens, the 'max_length', got 0"):
        ask(harness(), [("a", " ")])
    with pytest.raises(ValueError, match="a context must have at least one token"):
        harness()._loglikelihood_tokens([(("", "a"), [], [1])])


def test_models_that_do_not_fit(harness, tmp_path, tokenizer):
    with pytest.raises(TypeError, match="must be a str or a GrootLForCausalLM, got MambaForC"):
        harness(pretrained=MambaForCausalLM(MambaConfig(**SIZES)))
    with pytest.raises(TypeError, match="must be a str or a GrootLForCausalLM, got int"):
        harness(pretrained=3)
    with pytest.raises(ValueError, match="'tree_scale' must be left out with a model"):
        harness(tree_scale=0.3)
    GPT2Config(n_layer=1, n_embd=8, n_head=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type 'mamba' or 'grootl', got 'gpt2'"):
        harness(pretrained=str(tmp_path))


def test_the_name_in_the_registry():
    assert get_model("grootl") is HarnessGrootL


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    spec = importlib.util.spec_from_file_location("copy", groot_graph_lm_eval.__file__)
    with pytest.raises(ImportError, match=r'pip install "groot-graph\[eval\]"'):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
