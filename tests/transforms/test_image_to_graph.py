import numpy as np
import pytest
import torch
from PIL import Image
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.loader import DataLoader

from groot_graph import minimum_spanning_forest
from groot_graph.graphs import grid_edge_index
from groot_graph.transforms import ImageToGraph


def grid_edges_by_loops(height, width, connectivity):
    steps = [(1, 0, 0), (0, 1, 0)] + ([(1, 1, 0), (1, 0, 1)] if connectivity == 8 else [])
    edges = []
    for down, right, start in steps:
        for r in range(height - down):
            for c in range(width - max(right, start)):
                edges.append([r * width + c + start, (r + down) * width + c + right])
    return torch.tensor(edges, dtype=torch.long).reshape(-1, 2).t()


def test_repr():
    assert str(ImageToGraph(8, 2)) == "ImageToGraph(connectivity=8, patch_size=2)"


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (2, 2), (3, 5), (7, 4)], ids=str)
def test_edges_stand_in_the_published_order_then_reversed(size, connectivity):
    data = ImageToGraph(connectivity)(torch.rand(2, *size))
    forward = grid_edges_by_loops(*size, connectivity)
    assert data.edge_index.tolist() == torch.cat([forward, forward.flip(0)], dim=1).tolist()


@pytest.mark.parametrize("size", [(3, 5), (7, 4)], ids=str)
def test_reverse_edges_leave_the_forest_as_it_is(size):
    # Integers from 0 to 2, so that most edges tie.
    image = torch.randint(3, (1, *size), generator=torch.Generator().manual_seed(1)).float()
    data = ImageToGraph(8)(image)
    weight = (data.x[data.edge_index[0]] - data.x[data.edge_index[1]]).abs().squeeze(1)
    one_way = data.num_edges // 2
    both = minimum_spanning_forest(data.edge_index, weight, data.num_nodes)
    single = minimum_spanning_forest(data.edge_index[:, :one_way], weight[:one_way], data.num_nodes)
    assert both[:one_way].equal(single)
    assert not both[one_way:].any()


@pytest.mark.parametrize("patch_size", [1, 2, 3])
def test_patches_hold_the_pixels_channel_by_channel(patch_size):
    image = torch.rand(3, 6, 12)
    data = ImageToGraph(patch_size=patch_size)(image)
    p = patch_size
    assert (data.height, data.width) == (6 // p, 12 // p)
    assert data.x.shape == (data.height * data.width, 3 * p * p)
    for node, (column, row) in enumerate(data.pos.long().tolist()):
        patch = image[:, row * p : (row + 1) * p, column * p : (column + 1) * p]
        assert node == row * data.width + column
        assert data.x[node].equal(patch.flatten())


def test_a_batch_of_images_is_the_batch_of_their_graphs():
    images = torch.rand(3, 2, 4, 6)
    transform = ImageToGraph(8, patch_size=2)
    data = transform(images)
    expected = Batch.from_data_list([transform(image) for image in images])
    for key in ("x", "edge_index", "pos", "batch", "ptr"):
        assert data[key].equal(expected[key]), key


def test_no_image_gives_no_node():
    data = ImageToGraph()(torch.rand(0, 1, 3, 3))
    assert data.num_nodes == data.num_edges == 0
    assert data.ptr.tolist() == [0]


def test_remembered_edges_cannot_be_changed_through_a_result():
    transform = ImageToGraph()
    expected = transform(torch.rand(1, 3, 4)).edge_index.clone()
    transform(torch.rand(1, 3, 4)).edge_index.fill_(-1)
    assert transform(torch.rand(1, 3, 4)).edge_index.equal(expected)
    assert grid_edge_index(3, 4) is grid_edge_index(3, 4)


@pytest.mark.parametrize("wrap", [lambda image: image, lambda image: Data(image=image)])
def test_gradients_reach_the_image(wrap):
    image = torch.rand(1, 4, 4, requires_grad=True)
    ImageToGraph(patch_size=2)(wrap(image * 2)).x.sum().backward()
    assert image.grad.eq(2).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_floating_point_values_are_kept(dtype):
    image = torch.rand(1, 2, 3).to(dtype)
    assert ImageToGraph()(image).x.equal(image.view(6, 1))


def test_uint8_is_scaled():
    image = torch.tensor([[[0, 51, 255]]], dtype=torch.uint8)
    torch.testing.assert_close(ImageToGraph()(image).x, torch.tensor([[0.0], [0.2], [1.0]]))


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("L", 1), ("1", 1), ("RGB", 3), ("RGBA", 4), ("P", 3), ("CMYK", 3), ("LA", 4)],
)
def test_pil_modes(mode, channels):
    image = Image.new("L", (5, 3), 255).convert(mode)
    data = ImageToGraph()(image)
    assert data.x.shape == (15, channels)
    assert data.x.eq(1).all()
    assert (data.height, data.width) == (3, 5)


def test_sixteen_bit_images_are_scaled():
    values = np.array([[0, 65535]], dtype=np.uint16)
    assert ImageToGraph()(Image.fromarray(values)).x.tolist() == [[0.0], [1.0]]


@pytest.mark.parametrize("as_type", [str, lambda path: path], ids=["str", "Path"])
def test_paths_are_read(tmp_path, as_type):
    values = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "image.png")
    data = ImageToGraph()(as_type(tmp_path / "image.png"))
    torch.testing.assert_close(data.x, torch.from_numpy(values).float().view(15, 3) / 255)


def test_a_data_keeps_its_other_attributes_and_is_not_changed():
    data = Data(image=torch.rand(1, 2, 2), y=torch.tensor([3]), name="cat")
    out = ImageToGraph()(data)
    assert out.y.tolist() == [3]
    assert out.name == "cat"
    assert "image" not in out
    assert set(data.keys()) == {"image", "y", "name"}
    assert ImageToGraph(key="photo")(Data(photo=torch.rand(1, 2, 2))).num_nodes == 4


class Images(torch.utils.data.Dataset):
    def __init__(self):
        self.images = torch.arange(48.0).view(3, 1, 4, 4)
        self.transform = ImageToGraph()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(Data(image=self.images[index], y=index))


def test_a_dataset_in_forked_workers():
    Images()[0]
    options = {"num_workers": 2, "multiprocessing_context": "fork"}
    (batch,) = DataLoader(Images(), batch_size=3, **options)
    assert batch.x.equal(torch.arange(48.0).view(48, 1))
    assert batch.y.tolist() == [0, 1, 2]
    assert batch.edge_index.equal(ImageToGraph()(Images().images).edge_index)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.rand(4), ValueError, r"'image' must have shape .*got \[4\]"),
        (torch.rand(1, 1, 1, 4, 4), ValueError, r"got \[1, 1, 1, 4, 4\]"),
        (torch.rand(1, 0, 4), ValueError, r"at least one pixel, got \[1, 0, 4\]"),
        (torch.rand(1, 5, 4), ValueError, r"divisible by patch_size=2, got 5 x 4"),
        (torch.zeros(1, 4, 4, dtype=torch.long), TypeError, "or uint8, got torch.int64"),
        ([[0.0]], TypeError, "an array of NumPy, a PIL image or a path, got list"),
        (np.zeros((3, 8, 8)), ValueError, r"got \[3, 8, 8\]: hand over .* as a tensor"),
        (np.zeros((2, 4, 4, 3)), ValueError, r"\[height, width, channels\] .*got \[2, 4, 4, 3\]"),
        (np.zeros((4, 4), dtype=int), TypeError, "uint16 or bool where it is an array, got int64"),
        (None, TypeError, "got NoneType"),
        (Data(x=torch.rand(3, 1)), ValueError, r"'image', got \['x'\]"),
        (HeteroData(), TypeError, "got a HeteroData"),
        ("no_such_file.png", ValueError, "readable image file, got 'no_such_file.png'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(image, error, message):
    with pytest.raises(error, match=message):
        ImageToGraph(patch_size=2)(image)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n broken"], ids=repr)
def test_an_unreadable_file_is_named(tmp_path, content):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"readable image file, got '.*bad\.png'"):
        ImageToGraph()(path)


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "cut.png"
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"readable image file, got '.*cut\.png'"):
        ImageToGraph()(path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"connectivity": 6}, ValueError, "'connectivity' must be 4 or 8, got 6"),
        ({"patch_size": 0}, ValueError, "'patch_size' must be at least 1, got 0"),
        ({"patch_size": 2.0}, TypeError, "'patch_size' must be an int, got float"),
    ],
    ids=str,
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        ImageToGraph(**options)


def sixteen_bits(mode):
    values = np.array([[1000, 20000, 65535]], dtype=np.uint16)
    stored = values.astype(">u2" if mode == "I;16B" else "<u2")
    return Image.frombytes(mode, (3, 1), stored.tobytes())


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_sixteen_bits_in_any_byte_order(mode):
    want = torch.tensor([[1000.0], [20000.0], [65535.0]]) / 65535
    torch.testing.assert_close(ImageToGraph()(sixteen_bits(mode)).x, want)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm", "a.jp2"])
def test_sixteen_bits_of_files(tmp_path, name):
    sixteen_bits("I;16").save(tmp_path / name)
    want = torch.tensor([[1000.0], [20000.0], [65535.0]]) / 65535
    torch.testing.assert_close(ImageToGraph()(tmp_path / name).x, want)


def test_thirty_two_bits_are_refused():
    image = Image.fromarray(np.array([[0, 70000]], dtype=np.int32))
    with pytest.raises(TypeError, match="'image' must hold 8 or 16 bits .*got .* mode 'I'"):
        ImageToGraph()(image)


def test_floating_point_images_are_kept():
    image = Image.fromarray(np.array([[-1.5, 300.0]], dtype=np.float32))
    assert ImageToGraph()(image).x.tolist() == [[-1.5], [300.0]]


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_alpha_is_divided_out_of_colors(mode):
    image = Image.new(mode, (1, 1), (100, 200) if mode == "La" else (100, 100, 100, 200))
    want = torch.tensor([[100 / 200] * 3 + [200 / 255]])
    torch.testing.assert_close(ImageToGraph()(image).x, want, atol=1 / 255, rtol=0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(values).save(tmp_path / "turned.png", exif=exif)
    upright = {
        1: values, 2: values[:, ::-1], 3: values[::-1, ::-1], 4: values[::-1], 5: values.T,
        6: np.rot90(values, -1), 7: values[::-1, ::-1].T, 8: np.rot90(values),
    }[orientation]  # fmt: skip
    data = ImageToGraph()(tmp_path / "turned.png")
    assert (data.height, data.width) == upright.shape
    assert data.x.mul(255).round().flatten().tolist() == upright.flatten().tolist()
    with Image.open(tmp_path / "turned.png") as opened:
        assert ImageToGraph()(opened).x.equal(data.x)


def test_damaged_exif_is_refused(tmp_path):
    Image.new("RGB", (4, 2)).save(tmp_path / "a.webp", exif=b"Exif\x00\x00MM\x00\xff\x00\x00")
    with pytest.raises(ValueError, match="'image' must have a readable EXIF orientation"):
        ImageToGraph()(tmp_path / "a.webp")


def test_a_decompression_bomb_is_named(tmp_path, monkeypatch):
    Image.new("L", (64, 64)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"readable image file, got '.*bomb\.png' .*bomb"):
        ImageToGraph()(tmp_path / "bomb.png")


def test_a_matrix_is_a_gray_image():
    image = torch.rand(4, 6)
    assert str(ImageToGraph()(image)) == str(ImageToGraph()(image[None]))
    assert ImageToGraph()(image).x.equal(image.view(24, 1))


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, bool, np.float32, ">f8"], ids=str)
def test_arrays_have_their_channels_last(channels, dtype):
    shape = (3, 5) if channels is None else (3, 5, channels)
    image = np.random.default_rng(0).integers(2, size=shape).astype(dtype)
    data = ImageToGraph()(image[::-1])
    greatest = {"uint8": 255, "uint16": 65535}.get(np.dtype(dtype).name, 1)
    expected = torch.from_numpy(image[::-1].reshape(15, -1) / greatest)
    torch.testing.assert_close(data.x, expected, check_dtype=False)
    assert data.x.dtype == (torch.float64 if dtype == ">f8" else torch.float32)
    assert (data.height, data.width) == (3, 5)


def test_the_array_of_a_pil_image_gives_the_same_graph():
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(4, 5, 3), dtype=np.uint8))
    assert ImageToGraph()(np.asarray(image)).x.equal(ImageToGraph()(image).x)
