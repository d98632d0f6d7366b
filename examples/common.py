r"""What several examples share: errors told in one line, files written whole, checkpoints that are
resumed to the bit, and a training loop.
"""

import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm


class UserError(Exception):
    """Something that the user can put right: told in one line."""


class UnreadableImageError(UserError):
    """Of several processes only the one that reads the image meets it."""


@contextmanager
def told_errors(when_stopped: str = "") -> Iterator[None]:
    """Decorates the main function of an example: it ends in one line instead of a traceback."""
    try:
        yield
    except (UserError, OSError) as error:
        # What all processes find alike is told by the first.
        if os.environ.get("RANK", "0") == "0" or isinstance(error, UnreadableImageError):
            print(f"error: {message_of(error)}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        if when_stopped:
            print(f"\nstopped; {when_stopped}", file=sys.stderr)
        raise SystemExit(130) from None


def tell(text: str) -> None:
    """Prints it; of several processes the first does."""
    if os.environ.get("RANK", "0") == "0":
        print(text)


def message_of(error: Exception) -> str:
    # A process that reads images for this one hands its errors over below their traceback.
    return str(error).rpartition(f"{type(error).__name__}: ")[2].strip()


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# Options. -----------------------------------------------------------------------------------------


def option_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{option_of(name)} must lie from {low} to {high}, got {value}")


def check_seed(seed: int) -> None:
    check_range("seed", seed, 0, 2**32 - 1)  # as NumPy takes it


def check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {first_line(error)}") from error


# Files. -------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file or folder to write beside `path`, which then takes its place: an interruption leaves
    the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    yield temporary
    if temporary.is_file():
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
    os.replace(temporary, path)


def write(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write_text(text, encoding="utf-8")


def save_figure(figure: Figure, path: Path, dpi: int = 110) -> None:
    with replacing(path) as file:
        figure.savefig(file, dpi=dpi, format="png")


def check_same(path: Path, found: dict, wanted: dict) -> None:
    """What is in the file must have been made with the same settings."""
    for name, value in wanted.items():
        if found.get(name) != value:
            raise UserError(
                f"{path}: made with {name} {found.get(name)}, this run has {value}; another "
                "--output keeps both"
            )


class Checkpoint:
    """All that a training depends on, beside the settings `config`, in one file."""

    def __init__(self, path: Path, config: dict, resume: bool):
        self.path = path
        self.config = config
        self.resume = resume

    def save(self, parts: dict, **values) -> None:
        content = {"config": self.config, "random_state": torch.get_rng_state(), **values}
        content |= {name: part.state_dict() for name, part in parts.items()}
        with replacing(self.path) as file:
            torch.save(content, file)

    def restore(self, parts: dict) -> dict:
        """Where one resumes, puts all parts back in place and returns the values saved with them;
        else nothing."""
        if not self.resume:
            return {}
        try:
            content = self._read()
            check_same(self.path, content.pop("config"), self.config)
            for name, part in parts.items():
                part.load_state_dict(content.pop(name))
            torch.set_rng_state(content.pop("random_state"))
            return content
        except FileNotFoundError as error:
            raise UserError(f"{self.path}: there is no checkpoint to resume from") from error
        except UNREADABLE as error:
            raise UserError(f"{self.path}: not a checkpoint, or a damaged one") from error

    def _read(self) -> dict:
        # torch.load does not compare checksums, so a flipped bit would go unnoticed.
        with zipfile.ZipFile(self.path) as archive:
            if archive.testzip() is not None:
                raise zipfile.BadZipFile("checksum")
        return torch.load(self.path, map_location="cpu", weights_only=True)


UNREADABLE = (
    OSError, EOFError, RuntimeError, KeyError, TypeError, ValueError, IndexError, AttributeError,
    pickle.UnpicklingError, zipfile.BadZipFile,
)  # fmt: skip


# Training. ----------------------------------------------------------------------------------------


def redraw(module: nn.Module) -> None:
    """Initial weights as PyTorch draws them, for `module.apply`: those of deviation 0.02, as
    published, suit wide networks; narrow ones learn slowly."""
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


def split(places: Tensor, batch_size: int) -> list[Tensor]:
    """Batches of places. A last one alone joins those before it, because a batch norm over one
    image has no deviation."""
    *batches, last = places.split(batch_size)
    if batches and len(last) == 1:
        return [*batches[:-1], torch.cat([batches[-1], last])]
    return [*batches, last]


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Tensor], Tensor],
    num_images: int,
    batch_size: int,
    epochs: int,
    checkpoint: Checkpoint,
) -> None:
    """Trains on batches of places, whose loss `loss_of` tells, at a rate that rises and falls."""
    num_batches = len(split(torch.arange(num_images), batch_size))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, optimizer.defaults["lr"], total_steps=epochs * num_batches, pct_start=0.1
    )
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    first_epoch = checkpoint.restore(parts).get("epoch", 0)
    model.train()
    with tqdm(total=epochs * num_batches, initial=first_epoch * num_batches, unit="step") as bar:
        for epoch in range(first_epoch, epochs):
            for batch in split(torch.randperm(num_images), batch_size):
                loss = loss_of(batch)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                bar.set_postfix(epoch=f"{epoch + 1}/{epochs}", loss=f"{loss.item():.3f}")
                bar.update()
            checkpoint.save(parts, epoch=epoch + 1)
