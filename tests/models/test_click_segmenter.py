import numpy as np
import pytest
import torch
from PIL import Image

from experiments.regions import make_network
from groot_graph.models import ClickSegmenter, click_segmenter
from groot_graph.models.click_segmenter import WEIGHTS


def halves(height: int, width: int) -> torch.Tensor:
    """Dark on the left, bright on the right."""
    image = torch.zeros(3, height, width)
    image[:, :, width // 2 :] = 0.9
    return image


def name_in_experiment(name: str) -> str:
    if name.startswith("topologies."):
        _, number, rest = name.split(".", 2)
        return f"blocks.{number}.mixer.topology.{rest}"
    return name


def test_is_the_network_of_the_experiment():
    torch.manual_seed(0)
    network = make_network("edge steps over learned colors").eval()
    weights = network.state_dict()
    model = ClickSegmenter().eval()
    names = model.state_dict().keys()
    assert {name_in_experiment(name) for name in names} == weights.keys()
    model.load_state_dict({name: weights[name_in_experiment(name)] for name in names})
    images, clicks = torch.rand(2, 3, 32, 48), torch.zeros(2, 2, 32, 48)
    clicks[:, 0, 9, 9] = clicks[:, 1, 20, 30] = 1
    with torch.no_grad():
        torch.testing.assert_close(model(images, clicks), network(images, clicks))


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (320, 480), (7, 5), (31, 97)])
@pytest.mark.parametrize("as_array", [False, True])
def test_trained_weights_find_a_half(shape, as_array):
    height, width = shape
    image = halves(height, width)
    if as_array:
        pixels = (255 * image.permute(1, 2, 0)).round().byte().numpy()
        image = Image.fromarray(np.ascontiguousarray(pixels))
    left, right = (0.2 * width, 0.5 * height), (0.8 * width, 0.5 * height)
    model = click_segmenter()
    for inside, outside, wanted in ((left, right, True), (right, left, False)):
        found = model.segment(image, [inside], [outside])
        assert found.shape == shape and found.min() >= 0 and found.max() <= 1
        is_left = torch.arange(width).expand(shape) < width // 2
        assert ((found > 0.5) == (is_left == wanted)).float().mean() > 0.9


def test_the_weights_are_small_and_plain():
    assert WEIGHTS.stat().st_size < 150_000
    weights = torch.load(WEIGHTS, weights_only=True)
    assert all(value.dtype == torch.float32 for value in weights.values())
    assert not click_segmenter().training


def test_gradients_reach_the_embedding_of_the_colors():
    model = ClickSegmenter(channels=8, depth=2, mlp_channels=16)
    model(torch.rand(1, 3, 8, 12), torch.zeros(1, 2, 8, 12)).square().sum().backward()
    assert all(topology.embedding.weight.grad.abs().sum() > 0 for topology in model.topologies)


@pytest.mark.parametrize(
    ("image", "inside", "outside", "message"),
    [
        (torch.rand(1, 8, 8), [(1, 1)], [], "'image' must be one photograph"),
        (torch.rand(2, 3, 8, 8), [(1, 1)], [], "'image' must be one photograph"),
        (torch.rand(3, 8, 8), [], [(1, 1)], "'inside' must hold a click"),
        (torch.rand(3, 8, 9), [(9, 1)], [], r"'inside' must lie in the 9 x 8 pixels .* \(9, 1\)"),
        (torch.rand(3, 8, 9), [(0, 0)], [(1, -1)], "'outside' must lie in"),
    ],
)
def test_refuses_what_makes_no_sense(image, inside, outside, message):
    with pytest.raises(ValueError, match=message):
        ClickSegmenter(8, 1, 16).segment(image, inside, outside)


def test_clicks_of_another_size_are_refused():
    with pytest.raises(ValueError, match="'clicks' must have the batch, height and width"):
        ClickSegmenter(8, 1, 16)(torch.rand(1, 3, 8, 8), torch.zeros(1, 2, 8, 9))
    with pytest.raises(ValueError, match="'clicks' must have shape"):
        ClickSegmenter(8, 1, 16)(torch.rand(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
