"""GrootV on the GPU: the published numbers, and what the CPU computes."""

import pytest
import torch

from groot_graph.models import GrootV, convert_grootv_checkpoint, grootv_tiny
from tests.equipment.published import published_outputs, published_weights


def test_numbers_of_the_published_code():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = grootv_tiny().eval()
    model.load_state_dict(convert_grootv_checkpoint(published_weights()))
    outputs = published_outputs()
    model, images = model.cuda(), outputs["images"].cuda()
    with torch.no_grad():
        maps, logits = model.forward_features(images), model(images)
    for number, features in enumerate(maps):
        wanted = outputs[f"map{number}"]
        torch.testing.assert_close(features.contiguous().cpu(), wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(logits.cpu(), outputs["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_trains(dtype):
    model = GrootV(channels=8, depths=(1, 1, 1, 1), num_classes=5).cuda().train()
    images = torch.randn(2, 3, 40, 33, device="cuda")
    with torch.autocast("cuda", dtype=dtype):
        loss = model(images).float().square().mean()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_compiles_without_a_graph_break():
    model = GrootV(channels=8, depths=(1, 1, 1, 1), num_classes=5).cuda().eval()
    images = torch.randn(2, 3, 40, 33, device="cuda")
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)(images)
        torch.testing.assert_close(compiled, model(images), rtol=1e-3, atol=1e-4)
