import pytest
import torch

pytest.importorskip("transformers", minversion="5.5")

from groot_graph.models.grootl import CACHE_NAME, GrootLCache  # noqa: E402
from tests.equipment.grootl import MODES, cache_of, close, grootl, tokens  # noqa: E402


@pytest.fixture(autouse=True)
def no_gradient():
    with torch.no_grad():
        yield


@pytest.fixture(params=MODES)
def model(request):
    return grootl(tree_mode=request.param)


def first_logits(model, input_ids, **kwargs) -> torch.Tensor:
    """Those that generation chooses its first new token by."""
    output = model.generate(
        input_ids,
        max_new_tokens=1,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **kwargs,
    )
    return output.logits[0]


# Masks. -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_places", [8, 10, 18])
def test_a_mask_of_more_or_fewer_places_than_the_text(model, num_places):
    mask = torch.ones(2, num_places).long()
    mask[0, 0] = 0
    with pytest.raises(ValueError, match=rf"= \[2, 9\], got \[2, {num_places}\]"):
        model(tokens(2, 9), mask)
    with pytest.raises(ValueError, match=rf"= \[2, 9\], got \[2, {num_places}\]"):
        model.generate(tokens(2, 9), attention_mask=mask, max_new_tokens=1)


def test_after_a_cache_a_mask_is_of_the_new_places_or_of_all(model):
    input_ids, mask = tokens(2, 9), torch.ones(2, 9).long()
    mask[1, :3] = 0

    def following(mask) -> torch.Tensor:
        cache = cache_of(model(input_ids[:, :6], mask_of_all[:, :6], use_cache=True))
        return model(input_ids[:, 6:], mask, past_key_values=cache).logits

    mask_of_all = mask
    expected = following(None)
    assert following(mask).equal(expected) and following(mask[:, 6:]).equal(expected)
    with pytest.raises(ValueError, match=r"= \[2, 3\], or \[2, 9\] with its past, got \[2, 7\]"):
        following(mask[:, 2:])


def test_a_padding_token_inside_a_prompt_is_a_token_of_it(model):
    input_ids = tokens(2, 9)
    input_ids[0, 4] = input_ids[1, 7] = 0
    found = first_logits(model, input_ids, pad_token_id=0)
    assert found.equal(first_logits(model, input_ids, attention_mask=torch.ones_like(input_ids)))


def test_padding_tokens_before_a_prompt_are_padding(model):
    input_ids = tokens(2, 9)
    input_ids[1, :3] = input_ids[1, 6] = 0
    found = first_logits(model, input_ids, pad_token_id=0)
    close(found[1:], first_logits(model, input_ids[1:, 3:], pad_token_id=None))


def test_a_prompt_that_ends_with_a_padding_token_needs_a_mask(model):
    input_ids = tokens(2, 9)
    input_ids[1, -1] = 0
    with pytest.raises(ValueError, match="'attention_mask' must be given where .* for text 1"):
        model.generate(input_ids, pad_token_id=0, max_new_tokens=1)
    first_logits(model, input_ids, attention_mask=torch.ones_like(input_ids), pad_token_id=0)


def test_generate_goes_on_from_the_last_place_alone(model):
    mask = torch.ones(2, 9).long()
    mask[1, 6:] = 0
    with pytest.raises(ValueError, match="must be 1 at the last place .* for text 1: pad on the"):
        model.generate(tokens(2, 9), attention_mask=mask, max_new_tokens=1)


# Going on from a cache. ---------------------------------------------------------------------------


@pytest.mark.parametrize("place", [-3, -1])
def test_generate_refuses_padding_among_the_tokens_that_follow_a_cache(model, place):
    text = model.generate(tokens(2, 5), max_new_tokens=4, return_dict_in_generate=True)
    input_ids = torch.cat([text.sequences, tokens(2, 3)], dim=1)
    mask = torch.ones_like(input_ids)
    mask[0, place] = 0
    with pytest.raises(ValueError, match="'attention_mask' must be 1 at all tokens that follow"):
        model.generate(input_ids, attention_mask=mask, **{CACHE_NAME: cache_of(text)})


def test_generate_refuses_a_context_of_texts_that_have_theirs_behind_them(model):
    cache = cache_of(model(tokens(1, 5), use_cache=True))
    with pytest.raises(ValueError, match="'context_lengths' must be left out with a filled"):
        model.generate(tokens(1, 9), context_lengths=2, max_new_tokens=1, **{CACHE_NAME: cache})


def test_labels_of_tokens_that_follow_a_cache(model):
    input_ids = tokens(2, 9)
    cache = cache_of(model(input_ids[:, :4], use_cache=True))
    output = model(input_ids[:, 4:], labels=input_ids[:, 4:], past_key_values=cache)
    close(output.logits, model(input_ids, context_lengths=4).logits[:, 4:])
    assert output.loss.isfinite()


# Contexts. ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("lengths", [None, [9, 4]])
def test_tokens_that_others_put_before_a_prompt_belong_to_its_context(lengths, use_cache):
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=5,
        num_layers=3,
        token_dim=32,
        num_attention_heads=1,
    )
    model = grootl(tree_scale=1.0)
    tuned, input_ids = peft.get_peft_model(model, config).eval(), tokens(2, 9)
    before = tuned.get_prompt(2)
    text, embed, chosen = input_ids, model.get_input_embeddings(), []
    context_lengths = None if lengths is None else [5 + length for length in lengths]
    for _ in range(4):
        x = torch.cat([before, embed(text)], dim=1)
        contexts = 14 if context_lengths is None else context_lengths
        chosen.append(model(inputs_embeds=x, context_lengths=contexts).logits[:, -1])
        text = torch.cat([text, chosen[-1].argmax(dim=-1, keepdim=True)], dim=1)

    found = tuned.generate(
        input_ids=input_ids,
        context_lengths=lengths,
        max_new_tokens=4,
        min_new_tokens=4,
        use_cache=use_cache,
        output_logits=True,
        return_dict_in_generate=True,
    )
    for step, logits in enumerate(found.logits):
        close(logits, chosen[step])


def test_a_prompt_in_chunks_is_refused_where_its_tree_is_grown_over_all_of_it():
    model = grootl()
    cache = GrootLCache(len(model.backbone.layers))
    with pytest.raises(ValueError, match="'prefill_chunk_size' must be None .* got chunks of 4"):
        model.generate(tokens(1, 10), prefill_chunk_size=4, max_new_tokens=2, **{CACHE_NAME: cache})


# One text per row. --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2]])}, "begins at place 4"),
        ({"position_ids": torch.tensor([[5, 6, 7, 7, 8, 9, 10]])}, "begins at place 3"),
        ({"seq_idx": torch.tensor([[0, 0, 0, 1, 1, 2, 2]]).int()}, "begins at place 3"),
        ({"sequence_ids": torch.tensor([[0, 0, 0, 1, 1, 2, 2]])}, "begins at place 3"),
        ({"cu_seqlens": torch.tensor([0, 3, 7])}, "tell of one text, got 2"),
        ({"cu_seq_lens_q": torch.tensor([0, 3, 7])}, "tell of one text, got 2"),
        ({"cu_seq_lens_k": torch.tensor([0, 3, 5, 7])}, "tell of one text, got 3"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 2, 2, 3, 3]])}, "hold 0 and 1"),
    ],
)
def test_texts_that_are_packed_into_one_row_are_refused(model, told, message):
    (name,) = told
    input_ids = tokens(1, 7)
    for network in (model, model.backbone):
        with pytest.raises(ValueError, match=f"'{name}' must .*{message}.*a row of its own"):
            network(input_ids, **told)


def test_positions_that_tell_of_one_text_change_nothing(model):
    input_ids, mask = tokens(2, 7), torch.ones(2, 7).long()
    mask[0, :3] = mask[1, 5:] = 0
    position = (mask.cumsum(dim=1) - 1).clamp(min=0)
    told = {"position_ids": position, "seq_idx": torch.zeros_like(mask)}
    told["cu_seq_lens_q"] = torch.tensor([0, 7])
    assert model(input_ids, mask, **told).logits.equal(model(input_ids, mask).logits)


def test_a_flattened_batch_of_a_collator_is_refused():
    from transformers import DataCollatorWithFlattening

    rows = [{"input_ids": row} for row in tokens(3, 5).tolist()]
    with pytest.raises(ValueError, match="'position_ids' must be left out"):
        grootl()(**DataCollatorWithFlattening()(rows))


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        ([-torch.inf, -torch.inf, 0.0, 0.0], "-inf"),  # added to scores, as attention has it
        ([-1, -1, 1, 1], "-1"),
        ([0.5, 0.5, 1.0, 1.0], "0.5"),
        ([torch.nan, 1.0, 1.0, 1.0], "nan"),
    ],
)
def test_a_mask_of_other_numbers_is_refused(model, mask, found):
    with pytest.raises(ValueError, match=f"'attention_mask' must hold 0 and 1, got {found}$"):
        model(tokens(1, 4), attention_mask=torch.tensor([mask]))


def test_a_mask_of_any_dtype(model):
    input_ids, mask = tokens(1, 4), torch.tensor([[0, 1, 1, 1]])
    expected = model(input_ids, attention_mask=mask).logits
    for same in (mask.float(), mask.bool(), mask.to(torch.uint8)):
        assert model(input_ids, attention_mask=same).logits.equal(expected)


@pytest.mark.parametrize("name", ["context_length", "contexts"])
def test_a_mistyped_name_of_the_contexts_is_told(model, name):
    """It would be swallowed by what others may tell a model."""
    for call in (model, model.generate):
        with pytest.raises((TypeError, ValueError), match=f"context_lengths.* got '{name}'|{name}"):
            call(tokens(2, 8), **{name: [4, 4]})


def test_padding_between_virtual_tokens_and_a_text_names_the_way_out(model):
    mask = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 1], [1] * 8])
    with pytest.raises(ValueError, match="inside text 0; pad on the right where .* prompt tuning"):
        model(tokens(2, 8), attention_mask=mask)


@pytest.mark.parametrize("shape", [(1, 0), (0, 4), (4,)])
def test_texts_without_a_token_are_refused(model, shape):
    with pytest.raises(ValueError, match="'input_ids' must have shape .* and hold a token"):
        model(torch.zeros(shape).long())
    with pytest.raises(ValueError, match="'inputs_embeds' must have shape .* and hold a token"):
        model(inputs_embeds=torch.zeros(*shape, 32))


def test_generate_refuses_an_empty_prompt(model):
    with pytest.raises(ValueError, match="'input_ids' must have shape .* and hold a token"):
        model.generate(torch.zeros(1, 0).long(), max_new_tokens=2)
