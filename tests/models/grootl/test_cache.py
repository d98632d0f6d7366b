from copy import deepcopy

import pytest
import torch

pytest.importorskip("transformers", minversion="5.5")

from transformers import DynamicCache  # noqa: E402

from groot_graph.models.grootl import CACHE_NAME, GrootLCache  # noqa: E402
from tests.equipment.grootl import MODES, cache_of, close, grootl, tokens  # noqa: E402


@pytest.fixture(autouse=True)
def no_gradient(request):
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


@pytest.fixture(params=MODES)
def model(request):
    return grootl(tree_mode=request.param)


@pytest.mark.parametrize("name", ["past_key_values", "cache", "cache_params"])
def test_every_name_of_a_cache_is_read(model, name):
    input_ids = tokens(2, 9)
    whole = model(input_ids, context_lengths=6).logits
    cache = cache_of(model(input_ids[:, :6], use_cache=True))
    found = model(input_ids[:, 6:8], **{name: cache}).logits
    close(found, whole[:, 6:8])
    hidden = model.backbone(input_ids[:, 8:], **{name: cache}).last_hidden_state
    close(model.lm_head(hidden), whole[:, 8:])
    assert cache.num_tokens == 9


@pytest.mark.parametrize("name", ["past_key_values", "cache", "cache_params"])
def test_generate_goes_on_from_a_cache_of_every_name(model, name):
    input_ids = tokens(2, 9)
    cache = cache_of(model(input_ids[:, :6], use_cache=True))
    found = model.generate(input_ids, max_new_tokens=4, do_sample=False, **{name: cache})
    assert found.equal(
        model.generate(input_ids, context_lengths=6, max_new_tokens=4, do_sample=False)
    )


def test_two_names_at_once(model):
    cache = cache_of(model(tokens(2, 9), use_cache=True))
    with pytest.raises(ValueError, match="'cache_params' must be left out with 'past_key_values'"):
        model.backbone(tokens(2, 1), past_key_values=cache, cache_params=cache)


@pytest.mark.parametrize(
    "way",
    [
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 3, "early_stopping": True},
        {"num_return_sequences": 3, "do_sample": True},
    ],
    ids=str,
)
def test_copies_of_the_texts_of_a_cache(model, way):
    model = model.double()
    input_ids, texts = tokens(2, 9), []
    cache = cache_of(model(input_ids[:, :7], use_cache=True))
    before = deepcopy(cache.layers)
    for past in ({CACHE_NAME: cache}, {"context_lengths": 7}):
        torch.manual_seed(1)
        texts.append(
            model.generate(input_ids, max_new_tokens=5, **{"do_sample": False} | way, **past)
        )
    assert texts[0].equal(texts[1])
    # Of the texts that it was of, so that others can go on from it too.
    assert cache.num_tokens == 7
    for layer, values in zip(cache.layers, before, strict=True):
        assert all(layer[name].equal(value) for name, value in values.items())


@pytest.mark.parametrize("num_texts", [1, 6])
def test_a_cache_of_other_texts(model, num_texts):
    cache = cache_of(model(tokens(num_texts, 4), use_cache=True))
    message = f"'past_key_values' must be of as many texts as are given, 2, got {num_texts}"
    with pytest.raises(ValueError, match=message):
        model(tokens(2, 1), past_key_values=cache)
    with pytest.raises(ValueError, match=f"{message}.*beams"):
        model.generate(tokens(2, 5), num_beams=3, max_new_tokens=1, **{CACHE_NAME: cache})


@pytest.mark.parametrize("other", [DynamicCache(), (), {"state": 1}], ids=type)
def test_a_cache_of_another_kind(model, other):
    message = f"'past_key_values' must be a GrootLCache, got {type(other).__name__}"
    with pytest.raises(TypeError, match=message):
        model(tokens(1, 3), past_key_values=other)


def test_generate_from_a_dynamic_cache(model):
    with pytest.raises(TypeError, match="must be a GrootLCache, got DynamicCache: leave it out"):
        model.generate(tokens(1, 3), past_key_values=DynamicCache(), max_new_tokens=1)


def test_a_cache_of_a_model_of_other_depth(model):
    with pytest.raises(ValueError, match="of a model of 3 layers, got 2 layers"):
        model(tokens(1, 3), past_key_values=GrootLCache(2))


# Checkpointing. -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [{}, {"num_beams": 2}, {"use_cache": False}], ids=str)
def test_generate_in_training_with_gradient_checkpointing(model, way):
    input_ids = tokens(2, 7)
    expected = model.generate(input_ids, max_new_tokens=5, do_sample=False, **way)
    model.train().gradient_checkpointing_enable()
    assert model.generate(input_ids, max_new_tokens=5, do_sample=False, **way).equal(expected)
    model(input_ids, labels=input_ids).loss.backward()


def test_a_filled_cache_is_refused_where_checkpoints_take_a_gradient(model):
    with torch.no_grad():
        cache = cache_of(model(tokens(1, 4), use_cache=True))
    model.train().gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="'past_key_values' left out"):
        model(tokens(1, 3), past_key_values=cache, labels=tokens(1, 3))
