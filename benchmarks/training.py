"""How the networks of a comparison are trained, all of them alike."""

import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Batch, Data, Dataset
from torch_geometric.loader import DataLoader
from tqdm import tqdm

from benchmarks.report import machine_lines
from benchmarks.runs import complete, spread

learning_rates = (3e-4, 1e-3, 3e-3)  # at the start, falling to zero along a cosine
clip = 1.0  # of the gradient's norm
steps_per_check = 50  # between two looks at the validation set
checks_to_stop = 2  # in a row without a wrong answer
margin = 0.1  # over chance, which has to be seen within a third of the steps


def make_loader(train: Dataset | list[Data], batch_size: int) -> DataLoader:
    return DataLoader(train, batch_size, shuffle=True, drop_last=len(train) >= batch_size)


def fit(
    network: nn.Module,
    train: DataLoader,
    validation: Dataset | list[Data],
    steps: int,
    learning_rate: float,
    num_classes: int,
    title: str,
) -> dict:
    """Trains, and leaves the network with the weights that were best on the validation set.

    Ends early where the validation set is right as a whole, and after a third of the steps where
    it never was better than chance by a margin.
    """
    optimizer = torch.optim.Adam(network.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best = {"validation": -1.0, "steps_taken": 0}
    seconds, right_in_a_row = [], 0
    for step, batch in enumerate(tqdm(_batches(train, steps), title, steps, leave=False), 1):
        start = time.perf_counter()
        train_step(network, optimizer, batch)
        schedule.step()
        seconds.append(time.perf_counter() - start)
        if step % steps_per_check and step < steps:
            continue
        found = accuracy(network, validation)
        if found > best["validation"]:
            best = {"validation": found, "steps_taken": step}
            weights = copy.deepcopy(network.state_dict())
        right_in_a_row = right_in_a_row + 1 if found == 1 else 0
        if right_in_a_row == checks_to_stop:
            break
        if step >= steps / 3 and best["validation"] < 1 / num_classes + margin:
            break
    network.load_state_dict(weights)
    return {**best, "steps_in_all": step, "step_seconds": median(seconds)}


def _batches(train: DataLoader, steps: int) -> Iterator[Batch]:
    while steps > 0:
        for batch in train:
            if steps == 0:
                return
            yield batch
            steps -= 1


def train_step(network: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> Tensor:
    network.train()
    loss = F.cross_entropy(network(batch), batch.y)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), clip)
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def accuracy(network: nn.Module, dataset: Dataset | list[Data]) -> float:
    network.eval()
    right = [network(batch).argmax(1) == batch.y for batch in DataLoader(dataset, 64)]
    return torch.cat(right).float().mean().item()


def complete_cells(
    path: Path, machine: dict, cells: list[dict], seeds: int, run: Callable[..., dict]
) -> list[dict]:
    """The runs in the file at `path` of every cell of a table, those added that it lacked: the
    first seed's with every learning rate, the others' with the best one.
    """
    wanted = [
        {**cell, "seed": 0, "learning_rate": rate} for cell in cells for rate in learning_rates
    ]
    runs = complete(path, machine, wanted, run)
    rates = [chosen(runs, **cell)[0]["learning_rate"] for cell in cells]
    wanted = [
        {**cell, "seed": seed, "learning_rate": rate}
        for seed in range(seeds)
        for cell, rate in zip(cells, rates, strict=True)
    ]
    runs = complete(path, machine, wanted, run)
    return [run for run in runs if any(cell.items() <= run.items() for cell in cells)]


def chosen(runs: list[dict], **cell) -> list[dict]:
    """A cell's runs with the learning rate that was best on the validation set of the first seed;
    the lowest of those that were equally good.
    """
    runs = [run for run in runs if cell.items() <= run.items()]
    first = [run for run in runs if run["seed"] == 0]
    if not first:
        return []
    best = min(first, key=lambda run: (-run["validation"], run["learning_rate"]))
    return [run for run in runs if run["learning_rate"] == best["learning_rate"]]


def heading(machine: dict, runs: list[dict]) -> list[str]:
    """Lines that say where the runs were made, how many, and how large the networks are."""
    sizes = sorted(run["num_parameters"] for run in runs)
    hours = sum(run["seconds"] for run in runs) / 3600
    of_runs = f"{len(runs)} runs, {hours:.1f} hours; {sizes[0]:,} to {sizes[-1]:,} parameters"
    return [*machine_lines(machine), of_runs]


def accuracy_cell(runs: list[dict]) -> str:
    """Right answers on the test set in percent; nothing where there are no runs."""
    return spread([100 * run["accuracy"] for run in runs], ".1f") if runs else ""
