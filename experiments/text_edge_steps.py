r"""Does a tree that learns pay on texts?

The small GrootL of `text` and its generated recall tasks, with edge steps: trees are grown over an
embedding of the tokens that is learned, and a state fades along an edge by its length. Beside them
the chain, the published trees, and random trees of both kinds. All networks have the same
parameters within 2 %, and for a seed the same texts in the same order. The learning rate of each is
chosen on texts that no other part holds, with the first seed; training goes on until the share of
right answers on those stops rising. The test texts are asked once.
"""

import math
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from experiments.runner import Experiment, chosen
from experiments.tables import (
    against,
    draw_scores,
    figure,
    markdown,
    percents,
    sizes,
    spread,
    summary,
)
from experiments.text import (
    CHAIN,
    TASKS,
    RandomTree,
    RandomTreeMixer,
    accuracy,
    batches,
    held_out_seed,
    hidden_size,
    loss_of,
    num_kinds,
    num_layers,
    state_size,
)
from experiments.training import fit_until_it_stops, num_parameters
from groot_graph import Forest, selective_tree_scan
from groot_graph.models.grootl import GrootLConfig, GrootLForCausalLM, GrootLMixer
from groot_graph.models.grootl.mixer import Operands
from groot_graph.models.grootl.trees import CausalTree, ContextTree, TextLayout, TextTree
from groot_graph.nn.tree_ssm import INITIAL_SCALE
from groot_graph.nn.tree_topology import euclidean

# The settings.
embedding_size = 8
learning_rates = (2.5e-3, 5e-3, 1e-2)
steps_per_check = 100
most_steps = 4000
held_out = 1024  # texts to validate and texts to test, the same for every variant and seed
validation_seed = held_out_seed + 1


class LengthTree(TextTree):
    """Grown over the distances of embedded tokens alone."""

    @torch.no_grad()
    def forward(self, embedded: Tensor, B: Tensor, layout: TextLayout) -> Forest:
        weight = embedded.new_zeros(*embedded.shape[:2], self.window)
        for distance in range(1, min(self.window, layout.num_places - 1) + 1):
            length = euclidean(embedded[:, distance:], embedded[:, :-distance])
            weight[:, distance:, distance - 1] = length
        return self.grow(weight, layout)


class ContextLengthTree(LengthTree, ContextTree):
    """The spanning tree over the context."""

    direction = "up"


class CausalLengthTree(LengthTree, CausalTree):
    """Every token below the nearest of those before it."""

    direction = "down"


class RandomLengthTree(LengthTree, RandomTree):
    """A spanning tree over the context that does not look at the tokens."""

    direction = "up"


class EdgeStepsMixer(GrootLMixer):
    """Adds the states of a tree along whose edges time passes in proportion to their length."""

    def __init__(self, config: GrootLConfig, layer_idx: int, tree: type[LengthTree]):
        super().__init__(config, layer_idx)
        self.tree = tree(config.tree_window)
        self.embedding = nn.Linear(self.intermediate_size, embedding_size, bias=False)
        scale = math.log(math.expm1(INITIAL_SCALE))
        self.sigma = nn.Parameter(torch.full((self.intermediate_size,), scale))

    def _scan(self, operands: Operands, layout: TextLayout) -> Tensor:
        chain = self._scan_chain(operands.of_nodes(), layout)
        tree = self._scan_learned_tree(operands, layout)
        return torch.add(chain, tree.view_as(chain), alpha=self.config.tree_scale)

    def _scan_learned_tree(self, operands: Operands, layout: TextLayout) -> Tensor:
        embedded = self.embedding(operands.u)
        forest = self.tree(embedded, operands.B, layout)
        nodes, embedded = operands.of_nodes(), embedded.flatten(0, 1)
        length = euclidean(embedded, embedded[forest.parent])
        step = self.tree.step_of_edge(nodes.delta) + length[:, None] * F.softplus(self.sigma)
        return selective_tree_scan(
            *nodes, forest, direction=self.tree.direction, transition_delta=step
        )


def edge_steps(tree: type[LengthTree]) -> partial:
    return partial(EdgeStepsMixer, tree=tree)


# Name, mixer, arguments of GrootLConfig.
RANDOM = "chain + random tree, edge steps"
VARIANTS = {
    CHAIN: (GrootLMixer, {"tree_scale": 0.0}),
    "chain + tree": (GrootLMixer, {}),
    "chain + causal tree": (GrootLMixer, {"tree_mode": "causal"}),
    "chain + random tree": (RandomTreeMixer, {}),
    "chain + tree, edge steps": (edge_steps(ContextLengthTree), {}),
    "chain + causal tree, edge steps": (edge_steps(CausalLengthTree), {"tree_mode": "causal"}),
    RANDOM: (edge_steps(RandomLengthTree), {}),
}
time_step_rank = 2
# A mixer without an embedding has as many parameters more elsewhere.
wider_time_step_rank = 6


def make_model(variant: str) -> GrootLForCausalLM:
    mixer, arguments = VARIANTS[variant]
    has_embedding = isinstance(mixer, partial)
    config = GrootLConfig(
        vocab_size=3 * num_kinds + 1,
        hidden_size=hidden_size,
        state_size=state_size,
        num_hidden_layers=num_layers,
        time_step_rank=time_step_rank if has_embedding else wider_time_step_rank,
        use_cache=False,
        **{"tree_scale": 1.0, **arguments},
    )
    model = GrootLForCausalLM(config)
    for index, layer in enumerate(model.backbone.layers):
        weights = layer.mixer.state_dict()
        layer.mixer = mixer(config, index)
        layer.mixer.load_state_dict(weights, strict=False)
    return model


def run(task: str, variant: str, seed: int, learning_rate: float) -> dict:
    """One training; what is measured, as plain values."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    model = make_model(variant)
    # Variants draw differently many numbers above; the texts are the seed's alone.
    torch.manual_seed(seed)
    generate, task_sizes = TASKS[task].generate, TASKS[task].sizes
    validation, test = (
        generate(held_out, task_sizes[-1], Generator().manual_seed(number))
        for number in (validation_seed, held_out_seed)
    )
    fitted = fit_until_it_stops(
        model,
        batches(TASKS[task], Generator().manual_seed(seed)),
        lambda batch: loss_of(model, *batch),
        lambda: accuracy(model, *validation),
        learning_rate,
        steps_per_check,
        most_steps,
        f"{task}, {variant}, seed {seed}, learning rate {learning_rate:g}",
    )
    return {
        **fitted,
        "accuracy": accuracy(model, *test),
        "num_parameters": num_parameters(model),
        "seconds": time.perf_counter() - start,
    }


def table(runs: list[dict]) -> str:
    """Right answers, and their difference to those of the chain and of the random tree."""
    found = by_row(runs)
    rows = [
        [
            task,
            variant,
            spread(percents(of_row), ".1f"),
            against(of_row, found.get((task, CHAIN), []), "+.1f"),
            against(of_row, found.get((task, RANDOM), []), "+.1f"),
            f"{of_row[0]['learning_rate']:g}",
            len(of_row),
            sizes(of_row),
        ]
        for (task, variant), of_row in found.items()
    ]
    header = (
        "task", "variant", "right answers, %", "against the chain", "against the random tree",
        "learning rate", "seeds", "parameters",
    )  # fmt: skip
    return f"{summary(runs)}\n\n{markdown(header, rows)}"


def by_row(runs: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """The runs of each with its chosen learning rate."""
    found = {
        (task, variant): chosen(runs, task=task, variant=variant)
        for task in TASKS
        for variant in VARIANTS
    }
    return {row: runs for row, runs in found.items() if runs}


def plot(runs: list[dict], path: Path) -> None:
    """One panel per task, one row per variant: a dot per seed, a bar at the mean."""
    variants = [name for name in VARIANTS if any(run["variant"] == name for run in runs)]
    with figure(path, 1, len(TASKS), figsize=(11, 3.2), sharey=True) as (axes,):
        for ax, name in zip(axes, TASKS, strict=True):
            for (task, variant), found in by_row(runs).items():
                if task == name:
                    draw_scores(ax, variants.index(variant), found, variant == CHAIN)
            ax.set(title=name, xlim=(0, 103), xlabel="right answers, %")
            ax.grid(axis="x", alpha=0.3)
        axes[0].set_yticks(range(len(variants)), variants)
        axes[0].set_ylim(len(variants) - 0.5, -0.5)


EXPERIMENT = Experiment(
    name="text_edge_steps",
    about=__doc__,
    cells=[{"task": task, "variant": variant} for task in TASKS for variant in VARIANTS],
    settings={},
    run=run,
    table=table,
    plot=plot,
    learning_rates=learning_rates,
)
