import sys

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.graph import RAG
from skimage.measure import regionprops
from skimage.segmentation import slic
from torch_geometric.data import Batch, Data

from groot_graph.transforms import ImageToGraph, SuperpixelsToGraph


def drawn(channels, height, width):
    """Blocks of one color each, and a little noise."""
    generator = torch.Generator().manual_seed(channels * height)
    blocks = torch.rand(channels, 3, 4, generator=generator)
    image = torch.nn.functional.interpolate(blocks[None], (height, width))[0]
    return (image + 0.05 * torch.rand(image.shape, generator=generator)).clamp(0, 1)


def test_repr():
    text = "SuperpixelsToGraph(num_segments=9, compactness=0.5)"
    assert str(SuperpixelsToGraph(9, compactness=0.5)) == text


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (24, 17), (31, 40)], ids=str)
def test_the_graph_is_that_of_scikit_image(channels, size):
    image = drawn(channels, *size)
    data = SuperpixelsToGraph(num_segments=12, compactness=0.1)(image)
    data.validate()
    pixels = image.permute(1, 2, 0).double().numpy()
    axis = -1 if channels > 1 else None
    segment = slic(pixels.squeeze(-1) if axis is None else pixels, 12, 0.1, start_label=0,
                   channel_axis=axis)  # fmt: skip
    assert data.segment_index.view(size).tolist() == segment.tolist()
    assert (data.height, data.width) == size
    regions = regionprops(segment + 1)
    assert data.num_nodes == len(regions)
    for region, color, place in zip(regions, data.x, data.pos, strict=True):
        rows, columns = region.coords.T
        np.testing.assert_allclose(color, pixels[rows, columns].mean(0), atol=1e-5)
        np.testing.assert_allclose(place, region.centroid[::-1], atol=1e-4)
    if min(size) > 1:
        expected = sorted((a, b) for edge in RAG(segment).edges for a, b in (edge, edge[::-1]))
        assert [tuple(edge) for edge in data.edge_index.t().tolist()] == expected


def test_values_go_back_to_the_pixels():
    image = drawn(3, 20, 30)
    data = SuperpixelsToGraph(30)(image)
    painted = data.x[data.segment_index].view(data.height, data.width, 3).permute(2, 0, 1)
    assert 0 < (painted - image).abs().mean() < 0.05


def test_gradients_reach_the_image():
    image = drawn(1, 12, 12).requires_grad_()
    SuperpixelsToGraph(4, 0.1)(image * 1).x.sum().backward()
    assert image.grad.min() > 0
    assert image.grad.sum() == pytest.approx(len(SuperpixelsToGraph(4, 0.1)(image).x), rel=1e-5)


@pytest.mark.parametrize("kind", ["array", "pil", "path", "data", "matrix"])
def test_images_of_every_kind(kind, tmp_path):
    values = (drawn(3, 16, 18) * 255).byte()
    array = values.permute(1, 2, 0).numpy()
    Image.fromarray(array).save(tmp_path / "image.png")
    given = {
        "array": array, "pil": Image.fromarray(array), "path": tmp_path / "image.png",
        "data": Data(image=values, y=3), "matrix": values[0],
    }[kind]  # fmt: skip
    data = SuperpixelsToGraph(9)(given)
    expected = SuperpixelsToGraph(9)(values[:1] if kind == "matrix" else values)
    assert data.edge_index.equal(expected.edge_index) and data.x.equal(expected.x)
    assert kind != "data" or (data.y == 3 and "image" not in data)


def test_a_batch_counts_the_superpixels_on():
    images = [drawn(3, 16, 18), drawn(3, 10, 30)]
    transform = SuperpixelsToGraph(6)
    batch = Batch.from_data_list([transform(image) for image in images])
    colors = batch.x[batch.segment_index]
    alone = [transform(image) for image in images]
    assert colors.equal(torch.cat([data.x[data.segment_index] for data in alone]))


def test_the_graphs_of_a_batch_are_transformed_one_by_one():
    images, transform = [drawn(3, 16, 18), drawn(3, 16, 18).flip(1)], SuperpixelsToGraph(6)
    batch = transform(Batch.from_data_list([Data(image=image) for image in images]))
    alone = Batch.from_data_list([transform(image) for image in images])
    assert batch.edge_index.equal(alone.edge_index) and batch.x.equal(alone.x)


def test_there_are_fewer_nodes_than_pixels():
    image = drawn(3, 40, 40)
    assert SuperpixelsToGraph(50)(image).num_nodes < 80 < ImageToGraph()(image).num_nodes


def test_scikit_image_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(ImportError, match="needs scikit-image: pip install scikit-image"):
        SuperpixelsToGraph()(drawn(3, 8, 8))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.rand(2, 3, 8, 8), ValueError, r"'image' must be one image .*got \[2, 3, 8, 8\]"),
        (torch.rand(3, 0, 8), ValueError, "'image' must hold at least one pixel"),
        (torch.full((1, 4, 4), torch.nan), ValueError, "'image' must be finite, got NaN"),
        (torch.zeros(3, 4, 4, dtype=torch.long), TypeError, "floating point or uint8"),
        (None, TypeError, "got NoneType"),
        (Data(x=torch.rand(3, 1)), ValueError, r"'image', got \['x'\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(image, error, message):
    with pytest.raises(error, match=message):
        SuperpixelsToGraph()(image)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_segments": 0}, ValueError, "'num_segments' must be at least 1, got 0"),
        ({"num_segments": 2.0}, TypeError, "'num_segments' must be an int, got float"),
        ({"compactness": 0}, ValueError, "'compactness' must be positive and finite, got 0"),
        ({"compactness": "1"}, TypeError, "'compactness' must be a number, got str"),
    ],
    ids=str,
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        SuperpixelsToGraph(**options)
