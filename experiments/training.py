"""How the networks of an experiment are trained, all of them alike."""

import copy
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Batch, Data, Dataset
from torch_geometric.loader import DataLoader
from tqdm import tqdm

learning_rates = (3e-4, 1e-3, 3e-3)  # at the start, falling to zero along a cosine
clip = 1.0  # of the gradient's norm
steps_per_check = 50  # between two looks at the validation set
checks_to_stop = 2  # in a row without a wrong answer
margin = 0.1  # over chance, which has to be seen within a third of the steps
checks_to_fall = 3  # in a row without a better score, before the learning rate falls
fall = 1 / 3
falls_to_stop = 2
weight_decay = 0.01
warmup = 0.1  # share of all steps, where the learning rate rises first


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def widest(make: Callable[[int], nn.Module], budget: int) -> nn.Module:
    """The network of the greatest width whose parameters keep within the budget."""

    def size(width: int) -> int:
        with torch.device("meta"):
            return num_parameters(make(width))

    return make(bisect_right(range(1, 1000), budget, key=size))


def update(
    network: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]
) -> Tensor:
    """One step down the loss."""
    network.train()
    loss = loss_of()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), clip)
    optimizer.step()
    return loss.detach()


def fit(
    network: nn.Module,
    batches: Iterable,
    loss_of: Callable[..., Tensor],
    score: Callable[[], float],
    steps: int,
    learning_rate: float,
    chance: float,
    title: str,
) -> dict:
    """Trains, and leaves the network with the weights of the best score on the validation set.

    Ends early where the score is 1 twice in a row, and after a third of the steps where it never
    was better than chance by a margin.
    """
    optimizer = torch.optim.Adam(network.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best = {"validation": -1.0, "steps_taken": 0}
    seconds, right_in_a_row = [], 0
    progress = tqdm(islice(batches, steps), title, steps, leave=False)
    for step, batch in enumerate(progress, 1):
        start = time.perf_counter()
        update(network, optimizer, partial(loss_of, batch))
        schedule.step()
        seconds.append(time.perf_counter() - start)
        if step % steps_per_check and step < steps:
            continue
        found = score()
        if found > best["validation"]:
            best = {"validation": found, "steps_taken": step}
            weights = copy.deepcopy(network.state_dict())
        right_in_a_row = right_in_a_row + 1 if found == 1 else 0
        if right_in_a_row == checks_to_stop:
            break
        if step >= steps / 3 and best["validation"] < chance + margin:
            break
    network.load_state_dict(weights)
    return {**best, "steps_in_all": step, "step_seconds": median(seconds)}


def fit_to_the_end(
    network: nn.Module,
    batches: Iterable,
    loss_of: Callable[..., Tensor],
    steps: int,
    learning_rate: float,
    weight_decay: float,
    title: str,
) -> list[float]:
    """Trains for all steps, one rise and fall of the learning rate; the loss of every step."""
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, steps, pct_start=warmup, cycle_momentum=False
    )
    losses = []
    for batch in tqdm(islice(batches, steps), title, steps, leave=False):
        losses.append(update(network, optimizer, partial(loss_of, *batch)).item())
        schedule.step()
    return losses


def fit_until_it_stops(
    network: nn.Module,
    batches: Iterable,
    loss_of: Callable[..., Tensor],
    score: Callable[[], float],
    learning_rate: float,
    steps_per_check: int,
    most_steps: int,
    title: str,
) -> dict:
    """Trains until the score on the validation set stops rising, and leaves the network with the
    weights of the best.

    The learning rate rises for one check, and falls to a third whenever the score has not risen
    for three checks in a row; where that happens for the second time, training ends.
    """
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=weight_decay)
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=steps_per_check)
    best, stale, falls = {"validation": -1.0, "steps_taken": 0}, 0, 0
    progress = tqdm(islice(batches, most_steps), title, most_steps, leave=False)
    for step, batch in enumerate(progress, 1):
        update(network, optimizer, partial(loss_of, batch))
        if step <= steps_per_check:
            rise.step()
        if step % steps_per_check:
            continue
        found, stale = score(), stale + 1
        progress.set_postfix(validation=f"{found:.4f}", best=f"{best['validation']:.4f}")
        if found > best["validation"]:
            best, stale = {"validation": found, "steps_taken": step}, 0
            weights = copy.deepcopy(network.state_dict())
        if stale == checks_to_fall:
            stale, falls = 0, falls + 1
            for group in optimizer.param_groups:
                group["lr"] *= fall
        if falls == falls_to_stop:
            break
    network.load_state_dict(weights)
    return {**best, "steps_in_all": step}


# Graphs. ------------------------------------------------------------------------------------------


def make_loader(train: Dataset | list[Data], batch_size: int) -> DataLoader:
    return DataLoader(train, batch_size, shuffle=True, drop_last=len(train) >= batch_size)


def fit_to_graphs(
    network: nn.Module,
    train: DataLoader,
    validation: Dataset | list[Data],
    steps: int,
    learning_rate: float,
    num_classes: int,
    title: str,
) -> dict:
    """:meth:`fit` to right answers about graphs."""
    loss_of, score = partial(graph_loss, network), partial(accuracy, network, validation)
    batches, chance = again_and_again(train), 1 / num_classes
    return fit(network, batches, loss_of, score, steps, learning_rate, chance, title)


def again_and_again(train: DataLoader) -> Iterator[Batch]:
    while True:
        yield from train


def graph_loss(network: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(network(batch), batch.y)


@torch.no_grad()
def accuracy(network: nn.Module, dataset: Dataset | list[Data]) -> float:
    network.eval()
    right = [network(batch).argmax(1) == batch.y for batch in DataLoader(dataset, 64)]
    return torch.cat(right).float().mean().item()
