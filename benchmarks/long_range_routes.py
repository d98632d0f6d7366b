r"""``python -m benchmarks.long_range_routes``: how TreeSSMConv finds the leaf that is asked for.

Trains the network of benchmarks.long_range on trees, and asks it again with its first layer silent
at the leaves, or at the root: there the encoding passes on as it is. Where silence at the leaves
costs the answer, the leaves hear the root's key in the first layer, and the one that it fits makes
itself heard in the second. Where silence at the root does, the root looks its key up in the sum of
all leaves at once, and what the others hold is noise in what it finds.

Writes every run to --json as it ends, and goes on there when it is started again; prints a table in
Markdown at the end.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from benchmarks import peers
from benchmarks.long_range import TASKS, train_network
from benchmarks.machine import describe
from benchmarks.peers import OURS, Network, num_parameters
from benchmarks.runs import complete
from benchmarks.training import accuracy, heading

depths = (5,)
state_sizes = (16, 64)
seeds = (0, 1, 2)
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
    model = peers.ours(state_size=state_size, expand=1)
    title = f"depth {depth}, {state_size} states, seed {seed}"
    network, test, fitted = train_network(model, "tree", depth, seed, steps, learning_rate, title)
    return {
        "depth": depth,
        "state_size": state_size,
        "seed": seed,
        "steps": steps,
        **fitted,
        "accuracy": accuracy(network, test),
        "silent_at_leaves": accuracy(SilentAt(network, is_leaf), test),
        "silent_at_root": accuracy(SilentAt(network, is_root), test),
        "num_parameters": num_parameters(network),
        "seconds": time.perf_counter() - start,
    }


def table(runs: list[dict]) -> str:
    """Right answers on the test set in percent, as Markdown."""
    lines = [
        "| depth | states | seed | steps | right | silent at leaves | silent at root |",
        f"|{7 * ' --- |'}",
    ]
    for run in sorted(runs, key=lambda run: (run["depth"], run["state_size"], run["seed"])):
        of_training = [run["depth"], run["state_size"], run["seed"], f"{run['steps_in_all']:,}"]
        shares = [run["accuracy"], run["silent_at_leaves"], run["silent_at_root"]]
        cells = [*map(str, of_training), *(f"{100 * share:.1f}" for share in shares)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report(machine: dict, runs: list[dict]) -> str:
    return "\n\n".join(["\n".join(heading(machine, runs)), f"{OURS} on trees:", table(runs)])


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_range_routes")
    parser.add_argument("--depth", action="append", type=int, help=f"of the trees {depths}")
    parser.add_argument(
        "--state-size", action="append", type=int, help=f"of the layer {state_sizes}"
    )
    parser.add_argument("--seed", action="append", type=int, help=f"of the training {seeds}")
    parser.add_argument("--steps", type=int, help="per run (those of benchmarks.long_range)")
    parser.add_argument("--json", type=Path, default=Path("outputs/long_range_routes.json"))
    args = parser.parse_args(argv)
    steps = [] if args.steps is None else [args.steps]
    if min([*(args.depth or ()), *(args.state_size or ()), *steps], default=1) < 1:
        parser.error("--depth, --state-size and --steps must be at least 1")
    return args


def main(argv: list[str] | None = None) -> list[dict]:
    args = parse(argv)
    torch.set_num_threads(1)  # As benchmarks.long_range, whose runs these are with 64 states.
    machine = describe("cpu")
    wanted = [
        {
            "depth": depth,
            "state_size": state_size,
            "seed": seed,
            "steps": args.steps or TASKS["tree"].steps(depth),
        }
        for depth in args.depth or depths
        for state_size in args.state_size or state_sizes
        for seed in args.seed or seeds
    ]
    runs = complete(args.json, machine, wanted, run)
    print(report(machine, runs))
    return runs


if __name__ == "__main__":
    main()
