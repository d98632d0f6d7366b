import subprocess
import sys
from copy import deepcopy
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from packaging.version import Version

transformers = pytest.importorskip("transformers", minversion="5.5")

from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    Mamba2Config,
    MambaConfig,
    MambaForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

from groot_graph.analysis import affinity_map, scan_of_layer  # noqa: E402
from groot_graph.errors import NotANumberError  # noqa: E402
from groot_graph.models import GrootLForCausalLM  # noqa: E402
from groot_graph.models.grootl import (  # noqa: E402
    CACHE_NAME,
    GrootLCache,
    GrootLConfig,
    GrootLMixer,
)
from tests.equipment.grootl import (  # noqa: E402
    MODES,
    VOCABULARY,
    cache_of,
    close,
    grootl,
    mamba,
    tokens,
)

PUBLISHED = Path(__file__).parents[2] / "data" / "grootl.npz"


@pytest.fixture(autouse=True)
def no_gradient(request):
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


@pytest.fixture(scope="module")
def published():
    with np.load(PUBLISHED) as arrays:
        return {name: torch.tensor(arrays[name]) for name in arrays}


@pytest.fixture(params=MODES)
def model(request):
    return grootl(tree_mode=request.param)


# What the published code computes. ----------------------------------------------------------------


def test_logits_are_the_published_ones(published):
    logits = grootl()(published["input_ids"], context_lengths=12).logits
    close(logits, published["logits_context12"])


@pytest.mark.parametrize("mode", MODES)
def test_without_tree_it_is_mamba(published, mode):
    output = grootl(tree_scale=0, tree_mode=mode)(published["input_ids"], output_hidden_states=True)
    expected = mamba()(published["input_ids"], output_hidden_states=True)
    close(output.logits, published["logits_mamba"])
    close(output.logits, expected.logits)
    assert len(output.hidden_states) == len(expected.hidden_states)
    for found, wanted in zip(output.hidden_states, expected.hidden_states, strict=True):
        close(found, wanted)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"use_bias": True},
        {"use_conv_bias": False},
        {"residual_in_fp32": False},
        {"conv_kernel": 2, "expand": 3},
        pytest.param(
            {"hidden_act": "gelu"},
            marks=pytest.mark.skipif(
                Version(transformers.__version__) < Version("5.23"),
                reason="the gate of older Mambas has the activation of the convolution",
            ),
        ),
        {"tie_word_embeddings": False},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_every_mamba_configuration_is_mamba_without_tree(kwargs):
    model = mamba(**kwargs)
    input_ids = tokens(2, 15)
    close(GrootLForCausalLM.from_mamba(model, tree_scale=0)(input_ids).logits, model(input_ids)[0])


def test_without_tree_it_is_mamba_in_half_precision():
    model = mamba().to(torch.bfloat16)
    input_ids = tokens(2, 15)
    found = GrootLForCausalLM.from_mamba(model, tree_scale=0)(input_ids).logits
    exact = mamba()(input_ids).logits
    error, error_of_mamba = (found - exact).norm(), (model(input_ids).logits - exact).norm()
    assert 0 < error < 1.5 * error_of_mamba


def states_below(x: torch.Tensor, parent: list[int], step: torch.Tensor) -> torch.Tensor:
    """What every token hears of the tokens below it, path by path."""
    states = list(x)
    for token in range(len(x)):
        passed, place = x[token], token
        while parent[place] != place:
            passed, place = passed * step[place], parent[place]
            states[place] = states[place] + passed
    return torch.stack(states)


def states_above(x: torch.Tensor, parent: list[int], step: torch.Tensor) -> torch.Tensor:
    """What every token hears of those above it, which stand before it."""
    states = []
    for token, above in enumerate(parent):
        is_root = above == token
        states.append(x[token] if is_root else x[token] + step[token] * states[above])
    return torch.stack(states)


def plain_mixer(mixer: GrootLMixer, hidden_states: torch.Tensor, texts) -> torch.Tensor:
    """The equations, for one text in which every token is context."""
    u, gate = mixer.in_proj(hidden_states[0]).chunk(2, dim=-1)
    num_tokens = len(u)
    before = mixer.conv_kernel_size - 1
    u = F.silu(mixer.conv1d(F.pad(u.t(), (before, 0))[None])[0]).t()
    sizes = [mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size]
    delta, B, C = mixer.x_proj(u).split(sizes, dim=-1)
    delta = F.softplus(delta @ mixer.dt_proj.weight.t() + mixer.dt_proj.bias)
    x = (delta * u)[:, :, None] * B[:, None]
    transition = (delta[:, :, None] * -mixer.A_log.exp()).exp()
    chain = [0, *range(num_tokens - 1)]
    tree = mixer.tree((delta * u)[None], B[None], texts.layout).parent.tolist()
    if mixer.config.tree_mode == "context":
        through_tree = states_below(x, tree, transition.roll(-1, dims=0))
    else:
        through_tree = states_above(x, tree, transition)
    states = states_above(x, chain, transition)
    states = states + mixer.config.tree_scale * through_tree
    y = (states * C[:, None]).sum(dim=-1) + mixer.D * u
    return mixer.out_proj(y * F.silu(gate))[None]


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 7, 33])
@pytest.mark.parametrize("mode", MODES)
def test_it_computes_the_equations_values_and_every_gradient(monkeypatch, mode, num_tokens):
    model = grootl(tree_mode=mode, tree_scale=0.7, tree_window=4).double()
    input_ids = tokens(1, num_tokens)

    def run() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        logits = model(input_ids, use_cache=False).logits
        logits.square().mean().backward()
        grads = {
            name: torch.zeros_like(value) if value.grad is None else value.grad
            for name, value in model.named_parameters()
        }
        return logits.detach(), grads

    logits, grads = run()
    monkeypatch.setattr(GrootLMixer, "forward", plain_mixer)
    expected, expected_grads = run()
    torch.testing.assert_close(logits, expected)
    for name, grad in grads.items():
        torch.testing.assert_close(
            grad, expected_grads[name], msg=lambda text, name=name: f"{name}: {text}"
        )


# Contexts and padding. ----------------------------------------------------------------------------


def test_default_context_is_the_whole_text(model):
    input_ids = tokens(2, 9)
    assert model(input_ids).logits.equal(model(input_ids, context_lengths=9).logits)


@pytest.mark.parametrize("given", [[4, 9], torch.tensor([4, 9]), (4, 9)])
def test_a_context_for_every_text(given):
    model, input_ids = grootl(), tokens(2, 9)
    logits = model(input_ids, context_lengths=given).logits
    for text, length in enumerate((4, 9)):
        close(logits[text], model(input_ids[text : text + 1], context_lengths=length).logits[0])
    assert not logits[0].equal(model(input_ids, context_lengths=9).logits[0])


def test_context_from_labels():
    model, input_ids = grootl(), tokens(3, 9)
    labels = input_ids.clone()
    labels[0, :4] = labels[1, :] = -100
    # Only the leading run counts.
    labels[2, 5] = -100
    expected = model(input_ids, context_lengths=[4, 9, 0])
    assert model(input_ids, labels=labels).logits.equal(expected.logits)


@pytest.mark.parametrize("side", ["left", "right"])
def test_context_from_labels_leaves_out_padding(side):
    model, input_ids = grootl(), tokens(3, 9)
    mask, labels = torch.ones_like(input_ids), input_ids.clone()
    padding = slice(0, 3) if side == "left" else slice(6, 9)
    mask[:, padding], labels[:, padding] = 0, -100
    first = 3 if side == "left" else 0
    labels[0, first : first + 4] = -100
    labels[1] = -100
    expected = model(input_ids, mask, context_lengths=[4, 6, 0])
    assert model(input_ids, mask, labels=labels).logits.equal(expected.logits)


def test_loss_is_that_of_shifted_labels():
    model, input_ids = grootl(), tokens(2, 9)
    labels = input_ids.clone()
    labels[:, :4] = -100
    output = model(input_ids, labels=labels)
    expected = F.cross_entropy(output.logits[:, 3:-1].flatten(0, 1), input_ids[:, 4:].flatten())
    torch.testing.assert_close(output.loss, expected)
    assert cache_of(output) is None


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_text_gives_what_it_gives_alone(model, side):
    lengths, contexts, places = (11, 4, 1, 7), (6, 4, 1, 0), 13
    texts = [tokens(1, length) for length in lengths]
    input_ids, mask = tokens(4, places), torch.zeros(4, places, dtype=torch.long)
    kept = [slice(places - n, places) if side == "left" else slice(0, n) for n in lengths]
    for text, place in enumerate(kept):
        input_ids[text, place], mask[text, place] = texts[text][0], 1

    output = model(input_ids, mask, context_lengths=contexts, use_cache=True)
    following = tokens(4, 3)
    after = model(following, past_key_values=cache_of(output)).logits
    for text, place in enumerate(kept):
        alone = model(texts[text], context_lengths=contexts[text], use_cache=True)
        close(output.logits[text, place], alone.logits[0])
        after_alone = model(following[text : text + 1], past_key_values=cache_of(alone))
        close(after[text], after_alone.logits[0])


# Who hears whom. ----------------------------------------------------------------------------------


def first_change(model: GrootLForCausalLM, changed: int, num_tokens: int = 24, **kwargs) -> int:
    """The first token whose logits change with that of number `changed`."""
    input_ids = tokens(1, num_tokens)
    other = input_ids.clone()
    other[0, changed] = input_ids[0, changed] % (VOCABULARY - 1) + 1
    difference = model(input_ids, **kwargs).logits - model(other, **kwargs).logits
    return int(difference[0].abs().amax(dim=-1).gt(0).nonzero()[0])


@pytest.mark.full
def test_no_token_hears_a_later_one_in_causal_mode_and_some_do_inside_the_context():
    causal = grootl(tree_mode="causal", tree_scale=1.0)
    for _ in range(5):
        assert [first_change(causal, token) for token in range(24)] == list(range(24))

    published = grootl(tree_scale=1.0)
    first = [first_change(published, token, context_lengths=12) for token in range(24)]
    assert any(seen < token for token, seen in enumerate(first[:12]))
    assert first[12:] == list(range(12, 24))


# Generation. --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt_length", [1, 2, 3, 16])
def test_every_step_with_a_cache_gives_the_logits_of_the_whole_text(model, prompt_length):
    input_ids = tokens(3, prompt_length + 64)
    whole = model(input_ids, context_lengths=prompt_length).logits
    output = model(input_ids[:, :prompt_length], use_cache=True)
    close(output.logits, whole[:, :prompt_length])
    for token in range(prompt_length, prompt_length + 64):
        output = model(input_ids[:, token : token + 1], past_key_values=cache_of(output))
        close(output.logits[:, 0], whole[:, token])


def test_several_tokens_at_once_go_on_from_a_cache(model):
    input_ids = tokens(2, 30)
    whole = model(input_ids, context_lengths=9).logits
    cache = cache_of(model(input_ids[:, :9], use_cache=True))
    close(model(input_ids[:, 9:22], past_key_values=cache).logits, whole[:, 9:22])
    mask = torch.ones_like(input_ids)
    close(model(input_ids[:, 22:], mask, past_key_values=cache).logits, whole[:, 22:])
    assert cache.get_seq_length() == 30


def test_the_cache_does_not_grow(model):
    def size(cache: GrootLCache) -> int:
        values = [value for layer in cache.layers for value in layer.values()]
        return sum(value.untyped_storage().nbytes() for value in values)

    output = model(tokens(2, 5), use_cache=True)
    before = size(cache_of(output))
    for _ in range(4):
        model(tokens(2, 7), past_key_values=cache_of(output))
    assert size(cache_of(output)) == before
    assert size(cache_of(model(tokens(2, 50), use_cache=True))) == before


WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 20},
    "beams": {"num_beams": 4, "num_return_sequences": 2},
    "sampled_beams": {"num_beams": 3, "do_sample": True},
    "several_samples": {"do_sample": True, "num_return_sequences": 3},
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("way", WAYS)
def test_generate_gives_the_same_with_and_without_cache(model, way):
    input_ids, mask = tokens(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    # Doubles, so that rounding does not decide between texts of equal scores.
    model, texts = model.double(), []
    for use_cache in (True, False):
        set_seed(3)
        texts.append(
            model.generate(
                input_ids,
                attention_mask=mask,
                max_new_tokens=12,
                use_cache=use_cache,
                pad_token_id=0,
                **WAYS[way],
            )
        )
    assert texts[0].shape[1] == 21
    assert texts[0].equal(texts[1])


def test_generate_takes_the_best_token_of_every_step(model):
    input_ids = text = tokens(2, 9)
    model = model.double()
    for _ in range(8):
        logits = model(text, context_lengths=9).logits[:, -1]
        text = torch.cat([text, logits.argmax(dim=-1, keepdim=True)], dim=1)
    assert model.generate(input_ids, max_new_tokens=8).equal(text)


def test_generate_scans_the_tree_of_the_prompt_once(monkeypatch):
    model, calls = grootl(), []
    tree = type(model.backbone.layers[0].mixer.tree)
    scan = tree.scan
    monkeypatch.setattr(tree, "scan", lambda self, *args: calls.append(1) or scan(self, *args))
    model.generate(tokens(2, 9), max_new_tokens=8)
    assert len(calls) == len(model.backbone.layers)


@pytest.mark.parametrize("lengths", [5, [5, 3], torch.tensor([5, 3])])
@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_generate_with_a_context_shorter_than_the_prompt(lengths, way):
    model, input_ids = grootl(tree_scale=2.0).double(), tokens(2, 9)
    texts = [
        model.generate(
            input_ids, context_lengths=lengths, max_new_tokens=8, use_cache=cached, **WAYS[way]
        )
        for cached in (True, False)
    ]
    assert texts[0].equal(texts[1])


def test_generate_goes_on_from_a_cache(model):
    prompt, more, mask = tokens(2, 9), tokens(2, 5), torch.ones(2, 20, dtype=torch.long)
    mask[1, :4] = 0
    model = model.double()
    cache = GrootLCache(len(model.backbone.layers))
    text = model.generate(
        prompt, attention_mask=mask[:, :9], max_new_tokens=6, **{CACHE_NAME: cache}
    )
    text = torch.cat([text, more], dim=1)
    found = model.generate(text, **{CACHE_NAME: cache}, max_new_tokens=6)
    expected = model.generate(text, attention_mask=mask, context_lengths=[9, 5], max_new_tokens=6)
    assert found.equal(expected)


def test_a_cache_goes_by_two_names(model):
    output, following = model(tokens(2, 9), use_cache=True), tokens(2, 1)
    cache = cache_of(output)
    found = model(following, cache=deepcopy(cache)).logits
    assert found.equal(model(following, past_key_values=deepcopy(cache)).logits)
    with pytest.raises(ValueError, match="'cache' must be left out with 'past_key_values'"):
        model(following, past_key_values=cache, cache=cache)


def test_generate_from_embeddings(model):
    prompt = tokens(2, 9)
    found = model.generate(inputs_embeds=model.get_input_embeddings()(prompt), max_new_tokens=6)
    assert found.equal(model.generate(prompt, max_new_tokens=6)[:, 9:])


def test_cache_is_reordered(model):
    input_ids = tokens(3, 9)
    cache = cache_of(model(input_ids, use_cache=True))
    cache.reorder_cache(torch.tensor([2, 2, 0]))
    following = tokens(3, 1)
    expected = cache_of(model(input_ids[[2, 2, 0]], use_cache=True))
    close(
        model(following, past_key_values=cache).logits,
        model(following, past_key_values=expected).logits,
    )


@pytest.mark.parametrize("kept", [1, 3, torch.tensor([0, 5])])
def test_logits_to_keep(model, kept):
    input_ids = tokens(2, 9)
    logits = model(input_ids, logits_to_keep=kept).logits
    index = kept if isinstance(kept, torch.Tensor) else slice(-kept, None)
    close(logits, model(input_ids).logits[:, index])


# Checkpoints. -------------------------------------------------------------------------------------


def test_a_mamba_checkpoint_loads_unchanged(tmp_path, published):
    mamba().save_pretrained(tmp_path)
    model, info = GrootLForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert model.config.model_type == "grootl"
    logits = model(published["input_ids"], context_lengths=12).logits
    close(logits, published["logits_context12"])
    assert model.lm_head.weight is model.backbone.embeddings.weight


def test_settings_of_the_tree_beside_a_mamba_checkpoint(tmp_path):
    mamba().save_pretrained(tmp_path)
    model = GrootLForCausalLM.from_pretrained(tmp_path, tree_window=5, tree_mode="causal")
    assert (model.config.tree_window, model.config.tree_mode) == (5, "causal")
    assert model.backbone.layers[0].mixer.tree.window == 5


def test_a_saved_model_comes_back(tmp_path, model):
    model.config.tree_scale = 0.5
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, GrootLForCausalLM)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), GrootLConfig)
    assert again.config.tree_scale == 0.5
    assert again.config.tree_mode == model.config.tree_mode
    input_ids = tokens(2, 9)
    assert again(input_ids).logits.equal(model(input_ids).logits)


@pytest.mark.full
def test_a_saved_model_is_known_in_a_new_process(tmp_path):
    grootl().save_pretrained(tmp_path)
    code = (
        "import sys; from groot_graph.models import GrootLForCausalLM;"
        "from transformers import AutoModelForCausalLM;"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1]);"
        "sys.exit(type(model) is not GrootLForCausalLM)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)


def test_from_mamba_copies():
    model = mamba().train()
    copy = GrootLForCausalLM.from_mamba(model, tree_window=2)
    assert copy.training and copy.config.tree_window == 2
    copy.lm_head.weight.zero_()
    assert model.lm_head.weight.abs().sum() > 0
    assert copy.backbone.embeddings.weight.abs().sum() == 0
    assert model.config.model_type == "mamba"


def test_from_mamba_keeps_dtype_and_untied_weights():
    model = mamba(tie_word_embeddings=False).to(torch.bfloat16)
    copy = GrootLForCausalLM.from_mamba(model)
    assert copy.dtype == torch.bfloat16
    for name, value in model.state_dict().items():
        assert copy.state_dict()[name].equal(value), name


def test_new_weights_are_those_of_a_new_mamba():
    sizes = {"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2}
    found = GrootLForCausalLM(GrootLConfig(**sizes)).state_dict()
    expected = MambaForCausalLM(MambaConfig(**sizes)).state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape
        torch.testing.assert_close(found[name].mean(), value.mean(), rtol=0.05, atol=0.02)
        torch.testing.assert_close(found[name].std(), value.std(), rtol=0.2, atol=1e-3)


def test_more_tokens(model):
    model.resize_token_embeddings(VOCABULARY + 3)
    assert model(tokens(1, 4)).logits.shape == (1, 4, VOCABULARY + 3)
    assert model.config.vocab_size == VOCABULARY + 3


# Training. ----------------------------------------------------------------------------------------


def test_gradient_checkpointing_gives_the_same_gradients(model):
    input_ids = tokens(2, 9)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(input_ids, labels=input_ids, context_lengths=4).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    model.train()
    expected = gradients()
    model.gradient_checkpointing_enable()
    for grad, wanted in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(grad, wanted)


def test_gradient_reaches_every_parameter_under_autocast(model):
    input_ids = tokens(2, 9)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(input_ids, labels=input_ids, context_lengths=5).loss
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_trainer_trains_and_evaluates_with_gradient(tmp_path, model):
    set_seed(0)
    rows = [{"input_ids": row, "labels": row} for row in tokens(8, 6).tolist()]
    arguments = TrainingArguments(
        tmp_path,
        num_train_epochs=8,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.7 * before


def test_lora_trains_with_gradient(model):
    peft = pytest.importorskip("peft")
    targets = ["in_proj", "x_proj", "out_proj", "embeddings", "dt_proj"]
    lora = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets))
    input_ids = tokens(2, 9)
    optimizer = torch.optim.Adam(lora.parameters(), 1e-2)
    losses = []
    for _ in range(3):
        loss = lora(input_ids=input_ids, labels=input_ids, context_lengths=4).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # The first step moves one half of every pair alone, as the other begins at zero.
    trained = [name for name, value in lora.named_parameters() if value.grad is not None]
    assert all("lora_" in name for name in trained)
    for target in targets:
        assert any(f".{target}.lora_" in name for name in trained), target
    assert losses[2] < losses[1] < losses[0]
    assert lora.generate(input_ids=input_ids, max_new_tokens=2).shape == (2, 11)


# In the hands of others. --------------------------------------------------------------------------


def test_weights_that_are_kept_elsewhere_are_there_in_time(model):
    accelerate = pytest.importorskip("accelerate")
    input_ids = tokens(2, 9)
    expected = model(input_ids).logits, model.generate(input_ids, max_new_tokens=6)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert model(input_ids).logits.equal(expected[0])
    assert model.generate(input_ids, max_new_tokens=6).equal(expected[1])


def test_hooks_see_prompts_and_next_tokens(model):
    seen = []
    for layer in model.backbone.layers:
        for module in (layer, layer.mixer):
            module.register_forward_hook(lambda module, args, x: seen.append(x.size(1)))
    model.generate(tokens(1, 9), max_new_tokens=3)
    per_token = 2 * len(model.backbone.layers)
    assert seen == [9] * per_token + [1] * per_token + [1] * per_token


@pytest.mark.parametrize("use_cache", [True, False])
def test_scan_of_a_layer_is_its_tree(model, use_cache):
    input_ids, forests = tokens(2, 9), []
    mixer = model.backbone.layers[1].mixer
    hook = mixer.tree.register_forward_hook(lambda tree, args, forest: forests.append(forest))
    model(input_ids, context_lengths=[9, 4], use_cache=False)
    hook.remove()
    forest, transition = scan_of_layer(
        model, input_ids, layer=1, context_lengths=[9, 4], use_cache=use_cache
    )
    assert forest.parent.equal(forests[0].parent) and forest.num_trees == 2
    assert transition.shape == (18, mixer.intermediate_size * mixer.ssm_state_size)
    assert ((transition > 0) & (transition < 1)).all()
    assert affinity_map(forest, transition, 3)[9:].eq(0).all()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_scan_of_a_layer_carries_the_transition_of_the_next_token_in_a_context():
    input_ids, scans = tokens(2, 9), {}
    for mode in MODES:
        model = grootl(tree_mode=mode, tree_scale=0)
        scans[mode] = scan_of_layer(model, input_ids, layer="backbone.layers.0")[1]
    assert scans["context"].equal(scans["causal"].roll(-1, dims=0))


def test_no_scan_of_tokens_that_follow_a_cache(model):
    cache = cache_of(model(tokens(1, 4), use_cache=True))
    with pytest.raises(ValueError, match="'past_key_values' must be empty"):
        scan_of_layer(model, tokens(1, 1), past_key_values=cache)


def test_weights_that_are_no_numbers():
    model = grootl()
    model.backbone.layers[1].mixer.in_proj.weight.fill_(torch.nan)
    with pytest.raises(NotANumberError, match="'hidden_states' must give a dissimilarity"):
        model(tokens(1, 9))


# Bad input. ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        (-1, ValueError, "got -1 for text 0 of 9 tokens"),
        (10, ValueError, "got 10 for text 0 of 9 tokens"),
        ([9, 8], ValueError, "got 8 for text 1 of 7 tokens"),
        ([3], None, None),
        ([1, 2, 3], ValueError, r"of shape \[batch\] = \[2\], got shape \[3\]"),
        (torch.ones(2, 2).long(), ValueError, r"got shape \[2, 2\]"),
        (2.0, TypeError, "'context_lengths' must be an int, a list .* got float"),
        (True, TypeError, "got bool"),
        ([1.5, 2.0], TypeError, "must be integers, got torch.float32"),
        (["a", "b"], TypeError, "must be one int per text"),
    ],
)
def test_context_lengths_that_do_not_fit(lengths, error, message):
    model, input_ids, mask = grootl(), tokens(2, 9), torch.ones(2, 9)
    mask[1, :2] = 0
    if error is None:
        assert model(input_ids, mask, context_lengths=lengths).logits.isfinite().all()
        return
    with pytest.raises(error, match=message):
        model(input_ids, mask, context_lengths=lengths)
    with pytest.raises(error, match=message):
        model.generate(input_ids, attention_mask=mask, context_lengths=lengths, max_new_tokens=2)


def test_padding_inside_a_text():
    mask = torch.ones(2, 9)
    mask[1, 4] = 0
    with pytest.raises(
        ValueError, match="'attention_mask' must have zeros before and after a .* 1"
    ):
        grootl()(tokens(2, 9), mask)


@pytest.mark.parametrize("shape", [(2, 8), (1, 9), (2, 9, 9)])
def test_mask_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"'attention_mask' must have shape .* = \[2, 9\], got"):
        grootl()(tokens(2, 9), torch.ones(shape))


def test_mask_that_is_no_tensor():
    with pytest.raises(TypeError, match="'attention_mask' must be a torch.Tensor, got list"):
        grootl()(tokens(1, 2), [[1, 1]])


def test_a_prompt_longer_than_what_is_to_come_of_it(model):
    with pytest.raises(ValueError, match="length"):
        model.generate(tokens(1, 9), max_length=5)


def test_context_after_a_cache(model):
    cache = cache_of(model(tokens(1, 4), use_cache=True))
    with pytest.raises(ValueError, match="'context_lengths' must be left out with a filled"):
        model(tokens(1, 1), past_key_values=cache, context_lengths=2)
    with pytest.raises(ValueError, match="'attention_mask' must be 1 at all tokens that follow"):
        model(tokens(1, 1), torch.zeros(1, 1), past_key_values=cache)


def test_generate_from_a_cache_of_a_longer_text(model):
    cache = cache_of(model(tokens(1, 4), use_cache=True))
    with pytest.raises(ValueError, match=f"longer than the 4 tokens of '{CACHE_NAME}', got 3"):
        model.generate(tokens(1, 3), **{CACHE_NAME: cache}, max_new_tokens=2)


def test_neither_tokens_nor_embeddings(model):
    with pytest.raises(ValueError, match="exactly one of 'input_ids' and 'inputs_embeds'"):
        model()


def test_cache_with_gradient_checkpointing(model):
    model.train().gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="'use_cache' must be False"):
        model(tokens(1, 3), use_cache=True)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"tree_window": 0}, ValueError, "'tree_window' must be .* got 0"),
        ({"tree_window": 1.5}, TypeError, "'tree_window' must be an int, got float"),
        ({"tree_scale": "0.3"}, TypeError, "'tree_scale' must be"),
        ({"tree_scale": float("nan")}, ValueError, "'tree_scale' must be finite, got nan"),
        ({"tree_mode": "both"}, ValueError, "'tree_mode' must be .* got 'both'"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, kwargs, error, message):
    with pytest.raises(error, match=message):
        GrootLConfig(**kwargs)
    with pytest.raises(error, match=message):
        grootl(**kwargs)
    mamba().save_pretrained(tmp_path)
    with pytest.raises(error, match=message):
        GrootLForCausalLM.from_pretrained(tmp_path, **kwargs)


@pytest.mark.parametrize("config", [BertConfig(), Mamba2Config()], ids=["bert", "mamba2"])
def test_a_checkpoint_that_is_not_mamba(tmp_path, config):
    config.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=f"of model_type 'mamba' or 'grootl', got '{config.model_type}'"
    ):
        GrootLForCausalLM.from_pretrained(tmp_path)


def test_from_mamba_of_another_model():
    with pytest.raises(
        TypeError, match="'model' must be a transformers.MambaForCausalLM, got Linear"
    ):
        GrootLForCausalLM.from_mamba(torch.nn.Linear(1, 1))


def test_without_transformers_the_import_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("groot_graph.models.grootl")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "groot-graph\[text\]"'):
        import_module("groot_graph.models.grootl")


def test_unknown_names_of_the_package():
    import groot_graph.models

    with pytest.raises(AttributeError, match="has no attribute 'GrootL'"):
        _ = groot_graph.models.GrootL
