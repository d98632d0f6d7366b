"""GrootL on the GPU: the published numbers, and generation from a cache."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.equipment.fill import fill

pytest.importorskip("transformers", minversion="5.5")

from transformers import MambaConfig, MambaForCausalLM  # noqa: E402

from groot_graph.models import GrootLForCausalLM  # noqa: E402
from groot_graph.models.grootl import CACHE_NAME  # noqa: E402
from groot_graph.models.grootl.trees import CausalTree, ContextTree, TextLayout  # noqa: E402
from tests.models.grootl.test_trees import LAYOUTS, inputs_of, layout_of  # noqa: E402

PUBLISHED = Path(__file__).parents[1] / "data" / "grootl.npz"


def grootl(**kwargs) -> GrootLForCausalLM:
    config = MambaConfig(
        vocab_size=97, hidden_size=32, state_size=8, num_hidden_layers=3, time_step_rank=4
    )
    mamba = MambaForCausalLM(config).eval()
    mamba.load_state_dict(fill(mamba.state_dict()))
    return GrootLForCausalLM.from_mamba(mamba, **kwargs).cuda()


def cuda_layout(layout: TextLayout) -> TextLayout:
    tensors = layout.start, layout.stop, layout.context_stop
    is_token = layout.is_token.cuda()
    sizes = layout.num_places, layout.window, layout.num_readouts
    return TextLayout(*(tensor.cuda() for tensor in tensors), *sizes, is_token)


@torch.no_grad()
def test_numbers_of_the_published_code():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with np.load(PUBLISHED) as arrays:
        published = {name: torch.tensor(arrays[name]) for name in arrays}
    input_ids = published["input_ids"].cuda()
    for name, kwargs in (("context12", {}), ("mamba", {"tree_scale": 0})):
        logits = grootl(**kwargs)(input_ids, context_lengths=12).logits.cpu()
        torch.testing.assert_close(logits, published[f"logits_{name}"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", [ContextTree, CausalTree])
@pytest.mark.parametrize("case", LAYOUTS)
def test_trees_are_those_of_the_cpu(case, mode):
    layout = layout_of(*LAYOUTS[case])
    v, B = inputs_of(layout)
    expected = mode(3)(v, B, layout).parent
    assert mode(3)(v.cuda(), B.cuda(), cuda_layout(layout)).parent.cpu().equal(expected)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["context", "causal"])
def test_every_step_with_a_cache_gives_the_logits_of_the_whole_text(mode):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = grootl(tree_mode=mode)
    input_ids = torch.randint(1, 97, (3, 80), device="cuda")
    mask = torch.ones_like(input_ids)
    mask[1, :5] = 0
    whole = model(input_ids, mask, context_lengths=[16, 11, 16]).logits
    output = model(input_ids[:, :16], mask[:, :16], use_cache=True)
    for token in range(16, 80):
        following = input_ids[:, token : token + 1]
        output = model(following, past_key_values=getattr(output, CACHE_NAME))
        torch.testing.assert_close(output.logits[:, 0], whole[:, token], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_trains(dtype):
    model = grootl().train()
    input_ids = torch.randint(1, 97, (2, 30), device="cuda")
    with torch.autocast("cuda", dtype=dtype):
        loss = model(input_ids, labels=input_ids, context_lengths=12).loss
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
def test_generates_in_half_precision():
    model = grootl().to(torch.bfloat16)
    text = model.generate(
        torch.randint(1, 97, (2, 9), device="cuda"), max_new_tokens=8, num_beams=2
    )
    assert text.shape[0] == 2 and text.shape[1] > 9


@torch.no_grad()
@pytest.mark.parametrize("mode", ["context", "causal"])
def test_blocks_on_several_devices(mode):
    hooks = pytest.importorskip("accelerate.hooks")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = grootl(tree_mode=mode)
    input_ids = torch.randint(1, 97, (2, 20), device="cuda")
    mask = torch.ones_like(input_ids)
    mask[1, :5] = 0

    def logits_of_both() -> torch.Tensor:
        prompt = model(input_ids[:, :16], mask[:, :16], use_cache=True)
        cache = getattr(prompt, CACHE_NAME)
        cache.reorder_cache(torch.tensor([1, 0], device="cuda"))
        following = model(input_ids[:, 16:], past_key_values=cache)
        return torch.cat([prompt.logits, following.logits], dim=1)

    expected = logits_of_both()
    block = model.backbone.layers[1].cpu()
    hooks.add_hook_to_module(block, hooks.AlignDevicesHook("cpu", io_same_device=True))
    torch.testing.assert_close(logits_of_both(), expected, rtol=0, atol=1e-4)
