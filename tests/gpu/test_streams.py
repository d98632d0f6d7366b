"""Work runs on PyTorch's current stream and on the device that holds the tensors."""

import pytest
import torch

from tests.equipment.gpu_cases import (
    Layer,
    assert_same_bits,
    chain_operands,
    moved,
    rings,
    whole_chain,
)
from tests.equipment.scans import assert_near, directions

# About a second, so that what runs on the default stream in error comes too late.
LONG = 2 * 10**9
# About 30 ms, so that what does not wait for its inputs comes too early.
SHORT = 5 * 10**7


@directions
def test_current_stream(direction, device):
    # Other numbers for the warm-up: what it leaves in memory must not pass for the inputs.
    drawn, other = (moved(chain_operands(3001), device) for _ in range(2))
    expected = whole_chain(drawn, direction)
    stream, default_is_done = torch.cuda.Stream(), torch.cuda.Event()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        whole_chain({name: value.clone() for name, value in other.items()}, direction)
    torch.cuda.synchronize()

    torch.cuda._sleep(LONG)
    default_is_done.record()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SHORT)
        inputs = {name: value.clone() for name, value in drawn.items()}
        found = whole_chain(inputs, direction)
    stream.synchronize()
    assert not default_is_done.query(), "the default stream was waited for"
    with torch.cuda.stream(stream):
        found = {name: value.cpu() for name, value in found.items()}
    assert_same_bits(found, expected)


def test_layer_on_the_current_stream(device):
    layer = Layer(*rings(range(3, 40)), device)
    drawn, other = torch.randn_like(layer.x), torch.randn_like(layer.x)
    expected = layer.run(drawn)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        layer.run(other.clone())
    torch.cuda.synchronize()

    torch.cuda._sleep(LONG)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SHORT)
        found = layer.run(drawn.clone())
    stream.synchronize()
    with torch.cuda.stream(stream):
        found = {name: value.cpu() for name, value in found.items()}
    for name, value in found.items():
        assert_near(name, value, expected[name].cpu(), 1e-4)


def test_two_streams_at_once(device):
    drawn = [moved(chain_operands(num_nodes), device) for num_nodes in (3001, 2999)]
    expected = [whole_chain(operands) for operands in drawn]
    streams = [torch.cuda.Stream() for _ in drawn]
    found = [None, None]
    torch.cuda.synchronize()
    for _ in range(5):
        for place, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found[place] = whole_chain(drawn[place])
    torch.cuda.synchronize()
    for place in range(2):
        assert_same_bits(found[place], expected[place])


def test_second_gpu(device):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    operands = chain_operands(3001)
    expected = whole_chain(moved(operands, device))
    found = whole_chain(moved(operands, torch.device("cuda", 1)))
    assert torch.cuda.current_device() == 0
    assert all(value.device.index == 1 for value in found.values())
    for name, value in found.items():
        assert_near(name, value.cpu(), expected[name].cpu(), 5e-5)
