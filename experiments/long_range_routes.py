r"""How TreeSSMConv finds the leaf that is asked for.

Trains the network of experiments.long_range on trees, and asks it again with its first layer silent
at the leaves, or at the root: there the encoding passes on as it is. Where silence at the leaves
costs the answer, the leaves hear the root's key in the first layer, and the one that it fits makes
itself heard in the second. Where silence at the root does, the root looks its key up in the sum of
all leaves at once, and what the others hold is noise in what it finds.
"""

import time
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from experiments import networks
from experiments.long_range import TASKS, train_network
from experiments.networks import OURS, Network
from experiments.runner import Experiment
from experiments.tables import markdown, summary
from experiments.training import accuracy, num_parameters

# Depth, states and seed: the best and the worst of depth 6, and the worst with more states.
deeper = ((6, 64, 3), (6, 64, 4), (6, 128, 4))
learning_rate = 3e-4  # the one that was best on trees of these depths


def is_leaf(batch: Batch) -> Tensor:
    return batch.x[:, 1] > 0  # Leaves alone have a value.


def is_root(batch: Batch) -> Tensor:
    return torch.zeros(batch.num_nodes, dtype=torch.bool).index_fill(0, batch.root_index, True)


class SilentAt(nn.Module):
    """A network whose first layer changes nothing at some nodes."""

    def __init__(self, network: Network, is_silent: Callable[[Batch], Tensor]):
        super().__init__()
        self.network = network
        self.is_silent = is_silent

    def forward(self, batch: Batch) -> Tensor:
        silent = self.is_silent(batch).unsqueeze(1)

        def pass_on(layer: nn.Module, args: tuple, out: Tensor) -> Tensor:
            return torch.where(silent, args[0], out)

        with self.network.layers[0].register_forward_hook(pass_on):
            return self.network(batch)


def run(depth: int, state_size: int, seed: int, steps: int) -> dict:
    """One training; what is measured, as plain values."""
    start = time.perf_counter()
    model = networks.ours(state_size=state_size, expand=1)
    title = f"depth {depth}, {state_size} states, seed {seed}"
    network, test, fitted = train_network(model, "tree", depth, seed, steps, learning_rate, title)
    return {
        **fitted,
        "accuracy": accuracy(network, test),
        "silent_at_leaves": accuracy(SilentAt(network, is_leaf), test),
        "silent_at_root": accuracy(SilentAt(network, is_root), test),
        "num_parameters": num_parameters(network),
        "seconds": time.perf_counter() - start,
    }


SHARES = ("accuracy", "silent_at_leaves", "silent_at_root")


def table(runs: list[dict]) -> str:
    """Right answers on the test set in percent."""
    rows = [
        [
            *(run[name] for name in ("depth", "state_size", "seed")),
            f"{run['steps_in_all']:,}",
            *(
                f"{100 * run[name]:.1f}"
                for name in ("accuracy", "silent_at_leaves", "silent_at_root")
            ),
        ]
        for run in sorted(runs, key=lambda run: (run["depth"], run["state_size"], run["seed"]))
    ]
    header = "depth", "states", "seed", "steps", "right", "silent at leaves", "silent at root"
    return "\n\n".join([summary(runs), f"{OURS} on trees:", markdown(header, rows)])


EXPERIMENT = Experiment(
    name="long_range_routes",
    about=__doc__,
    cells=[
        {"depth": depth, "state_size": state_size, "seed": seed}
        for depth, state_size, seed in (*product((5,), (16, 64), (0, 1, 2)), *deeper)
    ],
    settings={"steps": lambda cell: TASKS["tree"].steps(cell["depth"])},
    run=run,
    table=table,
    free=("depth", "state_size", "seed"),
    seeds=0,
    parameters_within=0.05,
)
