r"""Does the tree pay?

Trains one small GrootL language model on three generated recall tasks, again and again with one
thing changed: what the states are passed along. All variants have the same parameters and, for a
seed, the same initial weights and the same texts in the same order. All answer the same held-out
texts.
"""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from experiments.runner import Experiment
from experiments.tables import against, draw_scores, figure, markdown, percents, sizes, spread
from experiments.training import fit_to_the_end, num_parameters
from groot_graph import Forest
from groot_graph.models.grootl import GrootLConfig, GrootLForCausalLM, GrootLMixer
from groot_graph.models.grootl.mixer import Operands
from groot_graph.models.grootl.trees import ContextTree, TextLayout

# The settings.
hidden_size = 32
state_size = 8
num_layers = 2
batch_size = 64
weight_decay = 0.01
held_out = 1024  # texts, the same for every variant and seed
held_out_seed = 10**6  # no run has it


# Tasks: texts of one size, and for every token after the context the answer to it. ----------------
num_kinds = 8  # of keys, of values, of content, of distractors


def associative_recall(num_texts: int, num_pairs: int, draw: Generator) -> tuple[Tensor, Tensor]:
    """Pairs of a key and a value; then all keys in another order, each asking for its value."""
    key = subsets(num_texts, num_kinds, num_pairs, draw)
    value = torch.randint(num_kinds, 2 * num_kinds, key.shape, generator=draw)
    asked = subsets(num_texts, num_pairs, num_pairs, draw)
    context = torch.stack([key, value], dim=2).flatten(1)
    return torch.cat([context, key.gather(1, asked)], dim=1), value.gather(1, asked)


def selective_copying(num_texts: int, num_content: int, draw: Generator) -> tuple[Tensor, Tensor]:
    """Content between distractors; then a mark that asks for the content in its order."""
    content = torch.randint(num_kinds, (num_texts, num_content), generator=draw)
    context = draw_filler(num_texts, 48, draw)
    place = subsets(num_texts, context.size(1), num_content, draw).sort().values
    context.scatter_(1, place, content)
    mark = torch.full((num_texts, 1), 3 * num_kinds)
    return torch.cat([context, mark, content[:, :-1]], dim=1), content


def key_lookup(num_texts: int, num_values: int, draw: Generator) -> tuple[Tensor, Tensor]:
    """A key somewhere in a long context of values; then the key again, asking for the values that
    followed it.
    """
    context = draw_filler(num_texts, 64, draw)
    key = torch.full((num_texts, 1), 3 * num_kinds)
    place = torch.randint(context.size(1) - num_values, key.shape, generator=draw)
    context.scatter_(1, place, key)
    values = context.gather(1, place + torch.arange(1, num_values + 1))
    return torch.cat([context, key, values[:, :-1]], dim=1), values


def draw_filler(num_texts: int, num_places: int, draw: Generator) -> Tensor:
    shape = num_texts, num_places
    return torch.randint(2 * num_kinds, 3 * num_kinds, shape, generator=draw)


def subsets(num_texts: int, size: int, count: int, draw: Generator) -> Tensor:
    """For every text `count` different numbers below `size`, in random order."""
    return torch.rand(num_texts, size, generator=draw).argsort(dim=1)[:, :count]


class Task(NamedTuple):
    generate: Callable[[int, int, Generator], tuple[Tensor, Tensor]]
    sizes: tuple[int, ...]  # A batch to train on has one of them, held-out texts have the last.
    steps: int
    learning_rate: float  # Chosen for the chain.


TASKS = {
    "associative recall": Task(associative_recall, (2, 4, 8), 600, 5e-3),
    "selective copying": Task(selective_copying, (2, 4, 8), 1000, 5e-3),
    "key lookup": Task(key_lookup, (1, 2, 4), 1200, 5e-3),
}


# Variants. ----------------------------------------------------------------------------------------


class TreeMixer(GrootLMixer):
    """Leaves out the states of the chain."""

    def _scan(self, operands: Operands, layout: TextLayout) -> Tensor:
        v = self._tree_input(operands)
        tree = self._scan_tree(operands.of_nodes(), v, operands.B, layout)
        return tree + self._skip() * operands.u


class RandomTree(ContextTree):
    """A spanning tree over the context that does not look at the tokens."""

    def grow(self, weight: Tensor, layout: TextLayout) -> Forest:
        return super().grow(torch.rand_like(weight), layout)


class RandomTreeMixer(GrootLMixer):
    """Adds the states of a random tree."""

    def __init__(self, config: GrootLConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.tree = RandomTree(config.tree_window)


# Name, mixer, arguments of GrootLConfig.
CHAIN = "chain (Mamba)"
BOTH = "chain + 0.3 tree (published)"
VARIANTS = {
    CHAIN: (GrootLMixer, {"tree_scale": 0.0}),
    "tree": (TreeMixer, {}),
    BOTH: (GrootLMixer, {}),
    "chain + 0.3 causal tree": (GrootLMixer, {"tree_mode": "causal"}),
    "chain + tree": (GrootLMixer, {"tree_scale": 1.0}),
    "chain + causal tree": (GrootLMixer, {"tree_scale": 1.0, "tree_mode": "causal"}),
    "chain + 0.3 random tree": (RandomTreeMixer, {}),
    "chain + 0.3 chain": (GrootLMixer, {"tree_window": 1}),
}


def make_model(variant: str) -> GrootLForCausalLM:
    mixer, arguments = VARIANTS[variant]
    config = GrootLConfig(
        vocab_size=3 * num_kinds + 1,
        hidden_size=hidden_size,
        state_size=state_size,
        num_hidden_layers=num_layers,
        use_cache=False,
        **arguments,
    )
    model = GrootLForCausalLM(config)
    for index, layer in enumerate(model.backbone.layers):
        weights = layer.mixer.state_dict()
        layer.mixer = mixer(config, index)
        layer.mixer.load_state_dict(weights)
    return model


# Runs. --------------------------------------------------------------------------------------------


def run(task: str, variant: str, seed: int, steps: int, learning_rate: float) -> dict:
    """One training; what is measured, as plain values."""
    start = time.process_time()
    torch.manual_seed(seed)
    model = make_model(variant)
    # Variants draw differently many numbers above; the texts are the seed's alone.
    torch.manual_seed(seed)
    losses = fit_to_the_end(
        model,
        batches(TASKS[task], Generator().manual_seed(seed)),
        partial(loss_of, model),
        steps,
        learning_rate,
        weight_decay,
        f"{task}, {variant}, seed {seed}",
    )
    generate, task_sizes = TASKS[task].generate, TASKS[task].sizes
    tokens, answers = generate(held_out, task_sizes[-1], Generator().manual_seed(held_out_seed))
    return {
        "accuracy": accuracy(model, tokens, answers),
        "train_loss": mean(losses[-math.ceil(steps / 10) :]),
        **look_at_trees(model, tokens[:256], tokens.size(1) - answers.size(1)),
        "num_parameters": num_parameters(model),
        "cpu_seconds": time.process_time() - start,
    }


def batches(task: Task, draw: Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Texts of one of the sizes each, drawn as they are asked for."""
    while True:
        size = task.sizes[torch.randint(len(task.sizes), (), generator=draw)]
        yield task.generate(batch_size, size, draw)


def loss_of(model: nn.Module, tokens: Tensor, answers: Tensor) -> Tensor:
    logits = logits_of(model, tokens, answers)
    return F.cross_entropy(logits.flatten(0, 1), answers.flatten())


def logits_of(model: nn.Module, tokens: Tensor, answers: Tensor) -> Tensor:
    """Those of the answers. The tree is grown over what stands before the first question."""
    num_answers = answers.size(1)
    context_length = tokens.size(1) - num_answers
    return model(tokens, context_lengths=context_length, logits_to_keep=num_answers).logits


@torch.no_grad()
def accuracy(model: nn.Module, tokens: Tensor, answers: Tensor) -> float:
    """The share of answers that are right, each given the right ones before it."""
    model.eval()
    batches = zip(tokens.split(256), answers.split(256), strict=True)
    predictions = torch.cat([logits_of(model, *batch).argmax(dim=-1) for batch in batches])
    return (predictions == answers).float().mean().item()


@torch.no_grad()
def look_at_trees(model: nn.Module, tokens: Tensor, context_length: int) -> dict[str, float]:
    """What the trees over the contexts are like, in the mean over layers; empty without a tree.

    Returns:
        `neighbors`: the share of edges that join neighbors, as all of the chain do.
        `same_kind`: the share of edges that join two keys, two values, two distractors and so on.
    """
    forests = []
    for layer in model.backbone.layers:
        layer.mixer.tree.register_forward_hook(lambda tree, args, forest: forests.append(forest))
    model(tokens, context_lengths=context_length)
    if not forests:
        return {}
    shape = len(forests), *tokens.shape
    first = torch.arange(tokens.numel()).view(tokens.shape)[:, :1]
    parent = torch.stack([forest.parent for forest in forests]).view(shape) - first
    parent = parent[..., :context_length]
    distance = (parent - torch.arange(context_length)).abs()
    is_edge = (distance > 0) & (parent < context_length)
    kind = (tokens // num_kinds).expand(shape)
    same_kind = kind.gather(2, parent) == kind[..., :context_length]
    return {
        "neighbors": (distance == 1)[is_edge].float().mean().item(),
        "same_kind": same_kind[is_edge].float().mean().item(),
    }


# Results. -----------------------------------------------------------------------------------------

SEEN = {"neighbors": "neighbors, %", "same_kind": "same kind, %"}


def table(runs: list[dict]) -> str:
    """Right answers, and their difference to the chain's of the same seed."""
    minutes = sum(run["cpu_seconds"] for run in runs) / 60
    header = (
        "task", "variant", "right answers, %", "against the chain, points", *SEEN.values(),
        "seeds", "parameters",
    )  # fmt: skip
    found = by_row(runs)
    rows = [
        [
            task,
            variant,
            spread(percents(of_row), ".1f"),
            against(of_row, found.get((task, CHAIN), []), "+.1f"),
            *(_share(of_row, name) for name in SEEN),
            len(of_row),
            sizes(of_row),
        ]
        for (task, variant), of_row in found.items()
    ]
    return f"{len(runs)} runs, {minutes:.0f} minutes of one core\n\n{markdown(header, rows)}"


def _share(runs: list[dict], name: str) -> str:
    return f"{100 * mean(run[name] for run in runs):.0f}" if name in runs[0] else ""


def by_row(runs: list[dict]) -> dict[tuple[str, str], list[dict]]:
    rows = [(task, variant) for task in TASKS for variant in VARIANTS]
    found = {row: [run for run in runs if (run["task"], run["variant"]) == row] for row in rows}
    return {row: runs for row, runs in found.items() if runs}


def plot(runs: list[dict], path: Path) -> None:
    """One panel per task, one row per variant: a dot per seed, a bar at the mean."""
    variants = [name for name in VARIANTS if any(run["variant"] == name for run in runs)]
    with figure(path, 1, len(TASKS), figsize=(11, 3.2), sharey=True) as (axes,):
        for ax, name in zip(axes, TASKS, strict=True):
            for (task, variant), found in by_row(runs).items():
                if task == name:
                    draw_scores(ax, variants.index(variant), found, variant == CHAIN)
            ax.axvline(100 / num_kinds, color="grey", linestyle=":")
            ax.set(title=name, xlim=(0, 103))
            ax.grid(axis="x", alpha=0.3)
        axes[0].set_yticks(range(len(variants)), variants)
        axes[0].set_ylim(len(variants) - 0.5, -0.5)
        axes[0].figure.supxlabel(
            "right answers, % (a dot per seed, a bar at the mean, dotted: chance)",
            fontsize="medium",
        )


EXPERIMENT = Experiment(
    name="text",
    about=__doc__,
    cells=[{"task": task, "variant": variant} for task in TASKS for variant in VARIANTS],
    settings={
        "steps": lambda cell: TASKS[cell["task"]].steps,
        "learning_rate": lambda cell: TASKS[cell["task"]].learning_rate,
    },
    run=run,
    table=table,
    plot=plot,
)
