r"""python examples/object_detection.py

Trains RT-DETR of Hugging Face transformers on a small GrootV backbone to find objects. Without an
argument it learns generated images: discs, rings, triangles and stars are cut out of pictures of
brick, grass and gravel, tinted at random and laid on photographs, so that every box is exact and
only the outline tells one class from another. All pictures ship with scikit-image and scikit-learn.
The held-out images show photographs that are never trained on, and the other half of brick, grass
and gravel. Takes about five minutes on one CPU core.

    --images DIR --annotations FILE     your own images and their boxes, in the JSON format of COCO
    --resume                            go on after an interruption, to the bit

Writes outputs/detection.pt after every epoch; at the end outputs/detection, which
RTDetrForObjectDetection.from_pretrained reads after groot_graph.models.grootv.transformers
is imported, and outputs/detection.png.
"""

import argparse
import io
import json
import math
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.model_selection import train_test_split
from torch import Tensor
from tqdm import tqdm
from transformers import RTDetrConfig, RTDetrForObjectDetection

from groot_graph.models.grootv.transformers import GrootVConfig

from common import (
    Checkpoint,
    UserError,
    check_device,
    check_seed,
    fit,
    redraw,
    save_figure,
    told_errors,
)
from images import normalize, read_rgb
from scenes import Shape, make_scenes, shapes

# The settings.
channels = 16  # of the first stage of the backbone
depths = (1, 1, 2, 1)  # its blocks
detector_channels = 64
decoder_layers = 2
num_queries = 30  # the most objects that can be found in an image
num_denoising = 30  # noisy boxes that the decoder learns to put right
num_train, num_test = 2000, 200  # generated images
batch_size = 8
learning_rate = 1e-3
weight_decay = 1e-4
held_out = 1 / 4  # of the images of --images, the same ones for every --seed
shown_score = 0.4  # boxes with a lower score are left out of the picture,
shown_overlap = 0.6  # and those that overlap a likelier one by more
threads = 1  # the same bits on any number of cores


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Trains RT-DETR on GrootV to find objects.")
    parser.add_argument("--images", type=Path, metavar="DIR", help="own images")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="their boxes, as COCO")
    parser.add_argument("--image-size", type=int, default=96, help="side of all images")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR")
    parser.add_argument("--resume", action="store_true", help="go on after an interruption")
    args = parser.parse_args(argv)
    if args.epochs < 1:
        raise UserError("--epochs must be at least 1")
    if args.image_size < 64 or args.image_size % 32 != 0:
        raise UserError("--image-size must be a multiple of 32, and at least 64")
    if (args.images is None) != (args.annotations is None):
        raise UserError("--images DIR and --annotations FILE belong together")
    check_device(args.device)
    check_seed(args.seed)
    return args


# Images: bytes [N, 3, H, W], and their boxes as COCO, whose image ids are places in that tensor. --


def annotate(scenes: list[list[Shape]], size: int) -> COCO:
    annotations = [
        {"image_id": number, "category_id": label, **describe(is_inside)}
        for number, found in enumerate(scenes)
        for label, is_inside in found
    ]
    return make_coco([(size, size)] * len(scenes), annotations, dict(enumerate(shapes)))


def describe(is_inside: np.ndarray) -> dict:
    """The box, the area and the pixels of an object, as COCO has them."""
    code = coco_mask.encode(np.asfortranarray(is_inside, dtype=np.uint8))
    return {
        "bbox": coco_mask.toBbox(code).tolist(),
        "area": int(coco_mask.area(code)),
        "segmentation": {"size": code["size"], "counts": code["counts"].decode()},
    }


def make_coco(sizes: list[tuple[int, int]], annotations: list[dict], names: dict[int, str]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": i, "width": w, "height": h} for i, (w, h) in enumerate(sizes)],
        # COCOeval takes an annotation of id 0 for none.
        "annotations": [{"iscrowd": 0, **a, "id": i} for i, a in enumerate(annotations, 1)],
        "categories": [{"id": i, "name": name} for i, name in names.items()],
    }
    with redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def load_coco(folder: Path, file: Path, size: int) -> tuple[Tensor, COCO]:
    if not folder.is_dir():
        raise UserError(f"--images {folder}: no such folder")
    files, sizes, annotations, names = read_annotations(file)
    if len(files) < 4:
        raise UserError(f"{file}: needs 4 images, found {len(files)}")
    with tqdm(files.values(), unit="image") as bar:
        images = [read_rgb(folder / name) for name in bar]
    for name, size_told, image in zip(files.values(), sizes, images, strict=True):
        if size_told not in (None, image.size):
            raise UserError(
                f"{folder / name}: {image.size} pixels where it is upright, its boxes in {file} "
                f"are of {size_told}"
            )
    place = {image_id: number for number, image_id in enumerate(files)}
    annotations = [a | {"image_id": place[a["image_id"]]} for a in annotations]
    small = [np.array(image.resize((size, size), Image.Resampling.BILINEAR)) for image in images]
    coco = make_coco([image.size for image in images], annotations, names)
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).contiguous(), coco


def read_annotations(file: Path) -> tuple[dict[int, str], list, list[dict], dict[int, str]]:
    """The files by image id, their widths and heights where they are told, the annotations, and the
    names of the classes by category id."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        files = {image["id"]: str(image["file_name"]) for image in content["images"]}
        sizes = [
            (image["width"], image["height"]) if {"width", "height"} <= image.keys() else None
            for image in content["images"]
        ]
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        annotations = [read_annotation(entry, files, names) for entry in content["annotations"]]
    except FileNotFoundError as error:
        raise UserError(f"--annotations {file}: no such file") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"--annotations {file}: not in the format of COCO ({type(error).__name__}: {error})"
        ) from error
    if not annotations:
        raise UserError(f"--annotations {file}: holds no boxes")
    return files, sizes, annotations, dict(sorted(names.items()))


def read_annotation(entry: dict, files: dict, names: dict) -> dict:
    left, top, width, height = map(float, entry["bbox"])
    if not (width > 0 and height > 0 and math.isfinite(left + top + width + height)):
        raise ValueError(f"the box {entry['bbox']} has no area")
    if entry["image_id"] not in files or entry["category_id"] not in names:
        raise ValueError(f"annotation {entry.get('id')} names no known image and category")
    return {
        "image_id": entry["image_id"],
        "category_id": entry["category_id"],
        "bbox": [left, top, width, height],
        "area": float(entry.get("area", width * height)),
        "iscrowd": int(entry.get("iscrowd", 0)),
    }


def make_target(coco: COCO, number: int) -> dict[str, Tensor]:
    """What RT-DETR learns from: classes, and centers and sides of boxes as shares of the image."""
    place = {category: label for label, category in enumerate(coco.cats)}
    annotations = [a for a in coco.imgToAnns[number] if not a["iscrowd"]]
    boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float).view(-1, 4)
    boxes[:, :2] += boxes[:, 2:] / 2
    width, height = coco.imgs[number]["width"], coco.imgs[number]["height"]
    return {
        "class_labels": torch.tensor([place[a["category_id"]] for a in annotations]).long(),
        "boxes": boxes / torch.tensor([width, height, width, height]),
    }


# The model and its training. ----------------------------------------------------------------------


def make_model(classes: list[str]) -> RTDetrForObjectDetection:
    stages = ["stage2", "stage3", "stage4"]
    config = RTDetrConfig(
        backbone_config=GrootVConfig(channels=channels, depths=depths, out_features=stages),
        encoder_in_channels=[2 * channels, 4 * channels, 8 * channels],
        encoder_hidden_dim=detector_channels,
        encoder_ffn_dim=2 * detector_channels,
        encoder_attention_heads=4,
        d_model=detector_channels,
        decoder_in_channels=3 * [detector_channels],
        decoder_ffn_dim=2 * detector_channels,
        decoder_attention_heads=4,
        decoder_layers=decoder_layers,
        num_queries=num_queries,
        num_denoising=num_denoising,
        id2label=dict(enumerate(classes)),
        label2id={name: index for index, name in enumerate(classes)},
    )
    model = RTDetrForObjectDetection(config)
    model.model.backbone.model.grootv.stages.apply(redraw)
    return model


def augment(images: Tensor, targets: list[dict]) -> tuple[Tensor, list[dict]]:
    """Mirrors every second image and changes brightness and contrast a little."""
    is_mirrored = torch.rand(len(images)) < 0.5
    images = torch.where(is_mirrored[:, None, None, None], images.flip(-1), images)
    contrast, brightness = (torch.rand(2, len(images), 1, 1, 1) * 2 - 1).unbind()
    images = images * (1 + 0.3 * contrast) + 0.3 * brightness
    targets = [mirror(t) if m else t for t, m in zip(targets, is_mirrored, strict=True)]
    return images, targets


def mirror(target: dict[str, Tensor]) -> dict[str, Tensor]:
    x, *others = target["boxes"].unbind(1)
    return target | {"boxes": torch.stack([1 - x, *others], dim=1)}


def train(model, images: Tensor, targets: list[dict], epochs: int, checkpoint: Checkpoint) -> None:
    def loss_of(batch: Tensor) -> Tensor:
        x, y = augment(normalize(images[batch]), [targets[i] for i in batch])
        y = [{key: value.to(model.device) for key, value in target.items()} for target in y]
        return model(pixel_values=x.to(model.device), labels=y).loss

    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=weight_decay)
    fit(model, optimizer, loss_of, len(images), batch_size, epochs, checkpoint)


@torch.no_grad()
def predict(model, images: Tensor, coco: COCO, numbers: list[int]) -> list[dict]:
    """The results of the images of these numbers, as COCO has them."""
    model.eval()
    results = []
    for batch in torch.tensor(numbers).split(64):
        output = model(normalize(images[batch]).to(model.device))
        for number, logits, boxes in zip(
            batch.tolist(), output.logits.cpu(), output.pred_boxes.cpu(), strict=True
        ):
            results += describe_detections(coco, number, logits, boxes)
    return results


def describe_detections(coco: COCO, number: int, logits: Tensor, boxes: Tensor) -> list[dict]:
    """The likeliest pairs of box and class."""
    scores, best = logits.sigmoid().flatten().topk(len(logits))
    query, label = best // logits.size(1), best % logits.size(1)
    width, height = coco.imgs[number]["width"], coco.imgs[number]["height"]
    boxes = boxes[query] * torch.tensor([width, height, width, height])
    boxes[:, :2] -= boxes[:, 2:] / 2
    categories = list(coco.cats)
    return [
        {"image_id": number, "category_id": categories[index], "bbox": box, "score": score}
        for index, box, score in zip(label.tolist(), boxes.tolist(), scores.tolist(), strict=True)
    ]


# The measure and the picture. ---------------------------------------------------------------------


def average_precision(coco: COCO, results: list[dict], numbers: list[int]) -> tuple[float, float]:
    """AP at the overlaps 0.5 to 0.95 and at 0.5, of the images of these numbers."""
    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.params.imgIds = numbers
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def draw(path: Path, images: Tensor, coco: COCO, results: list[dict], numbers: list[int]) -> None:
    """Above the true boxes, below the predicted ones with their scores."""
    figure = Figure(figsize=(2.35 * len(numbers) + 0.3, 4.8), layout="constrained")
    axes = figure.subplots(2, len(numbers), squeeze=False)
    colors = colormaps["turbo"](np.linspace(0.1, 0.9, len(coco.cats)))
    names = [category["name"] for category in coco.cats.values()]
    styles = dict(zip(coco.cats, zip(names, colors, strict=True), strict=True))
    for column, number in zip(axes.T, numbers, strict=True):
        found = without_repeats([r for r in results if r["image_id"] == number])
        width, height = coco.imgs[number]["width"], coco.imgs[number]["height"]
        for ax, boxes in zip(column, (coco.imgToAnns[number], found), strict=True):
            ax.imshow(images[number].permute(1, 2, 0).numpy(), extent=(0, width, height, 0))
            ax.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
            for box in boxes:
                draw_box(ax, box, *styles[box["category_id"]])
    axes[0, 0].set_ylabel("truth", fontsize=11)
    axes[1, 0].set_ylabel("prediction", fontsize=11)
    save_figure(figure, path)


def without_repeats(results: list[dict]) -> list[dict]:
    """What the picture shows: the boxes that do not lie on a likelier one. AP counts all."""
    kept = []
    for result in results:
        overlaps = coco_mask.iou(
            [result["bbox"]], [other["bbox"] for other in kept], [0] * len(kept)
        )
        if result["score"] > shown_score and np.max(overlaps, initial=0) < shown_overlap:
            kept.append(result)
    return kept


def draw_box(ax, annotation: dict, name: str, color: np.ndarray) -> None:
    left, top, width, height = annotation["bbox"]
    ax.plot(
        [left, left + width, left + width, left, left],
        [top, top, top + height, top + height, top],
        color=color,
        linewidth=2,
    )
    score = f" {annotation['score']:.2f}" if "score" in annotation else ""
    ax.text(max(left, 0), max(top, 0), name + score, color="white", fontsize=8, va="top",
            clip_on=True, bbox={"facecolor": color, "edgecolor": "none", "pad": 1})  # fmt: skip


# All of it. ---------------------------------------------------------------------------------------


def load(args: argparse.Namespace) -> tuple[Tensor, COCO, list[int], list[int]]:
    """Images, annotations, and the numbers of the images to train on and of those held out."""
    if args.images is None:
        size = args.image_size
        images, scenes = make_scenes(num_train, num_test, size, args.seed, may_overlap=False)
        coco = annotate(scenes, size)
        numbers = list(range(len(images)))
        return images, coco, numbers[:num_train], numbers[num_train:]
    images, coco = load_coco(args.images, args.annotations, args.image_size)
    train_part, test_part = train_test_split(range(len(images)), test_size=held_out, random_state=0)
    if not any(len(make_target(coco, number)["boxes"]) for number in test_part):
        raise UserError(f"none of the {len(test_part)} held-out images has a box")
    return images, coco, train_part, test_part


@told_errors("--resume goes on after the last finished epoch")
def main(argv: list[str] | None = None) -> tuple[float, float]:
    start = time.perf_counter()
    args = parse_arguments(argv)
    torch.set_num_threads(threads)
    images, coco, train_part, test_part = load(args)
    print(
        f"{len(coco.cats)} classes, {len(coco.anns)} boxes, images of {args.image_size} x "
        f"{args.image_size} pixels, {len(train_part)} to train on, {len(test_part)} held out"
    )

    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    model = make_model([category["name"] for category in coco.cats.values()]).to(args.device)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"RT-DETR on GrootV with {channels} channels, blocks {depths}: {num_parameters} parameters"
    )
    untrained = average_precision(coco, predict(model, images, coco, test_part), test_part)
    targets = [make_target(coco, number) for number in train_part]
    settings = {"boxes": len(coco.anns), "images": len(images)}
    settings |= {name: getattr(args, name) for name in ("image_size", "epochs", "seed")}
    checkpoint = Checkpoint(args.output / "detection.pt", settings, args.resume)
    train(model, images[train_part], targets, args.epochs, checkpoint)

    results = predict(model, images, coco, test_part)
    ap, ap50 = average_precision(coco, results, test_part)
    print(
        f"before training: AP@[.5:.95] {100 * untrained[0]:.1f} %, AP50 {100 * untrained[1]:.1f} %"
    )
    print(f"held-out images: AP@[.5:.95] {100 * ap:.1f} %, AP50 {100 * ap50:.1f} %")

    folder, picture = args.output / "detection", args.output / "detection.png"
    model.save_pretrained(folder)
    draw(picture, images, coco, results, test_part[:5])
    checkpoint.path.unlink()
    print(f"saved {folder} and {picture}")
    print(f"{time.perf_counter() - start:.0f} s in all")
    return ap, ap50


if __name__ == "__main__":
    main()
