"""The CUDA implementations behind the public functions, run on the CPU."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib import import_module
from unittest.mock import patch

from torch.utils._python_dispatch import TorchDispatchMode

from groot_graph import Forest
from groot_graph.ops import dispatch
from groot_graph.ops.cuda import plan
from groot_graph.ops.minimum_spanning_forest import cuda as spanning
from tests.equipment.cuda_host import cuda_on_host

# With these, trees of a few nodes take as many tiers as trees of millions do otherwise.
SHORT_SEGMENTS = {"most": 4, "few": 6}

STEPS = {
    "minimum_spanning_forest": [""],
    "root_forest": ["", "_plan"],
    "tree_scan": ["", "_backward"],
    "selective_tree_scan": ["", "_backward"],
}


def roomy_plan_size(num_nodes: int) -> int:
    return 20 * num_nodes + 256


@contextmanager
def implementations_looked_up_anew() -> Iterator[None]:
    """Inside and afterwards, other functions may stand where one was found before."""
    dispatch.implementation.cache_clear()
    try:
        yield
    finally:
        dispatch.implementation.cache_clear()


@contextmanager
def cuda_kernels(
    seed: int = 0,
    preempt: bool = False,
    most: int = plan.SEGMENT_LENGTH,
    few: int = plan.LARGEST_UNCUT,
    most_in_one_block: int = plan.MOST_IN_ONE_BLOCK,
    launcher: "AbstractContextManager | None" = None,
) -> Iterator:
    """Meanwhile CPU tensors are computed by what computes CUDA tensors, whose kernels are run by
    g++ or by another launcher.
    """
    with (
        launcher or cuda_on_host(seed, preempt) as launches,
        implementations_looked_up_anew(),
        patch.object(dispatch, "backend", lambda device: "cuda"),
        patch.object(plan, "SEGMENT_LENGTH", most),
        patch.object(plan, "LARGEST_UNCUT", few),
        patch.object(plan, "MOST_IN_ONE_BLOCK", most_in_one_block),
        # Short segments shrink a forest by less from tier to tier.
        patch.object(plan, "plan_size", roomy_plan_size),
    ):
        yield launches


@contextmanager
def one_launched_round() -> Iterator[None]:
    """Meanwhile one block joins almost everything."""
    with (
        patch.object(spanning, "FEWEST_LAUNCHED", 1),
        patch.object(spanning, "MOST_IN_ONE_BLOCK", 64),
    ):
        yield


def without_plan(forest: Forest) -> Forest:
    """The same forest, for which another backend has to make its own plan."""
    return Forest(forest.order, forest.parent)


@contextmanager
def seen_by(mode: TorchDispatchMode) -> Iterator[None]:
    """The mode sees the operations of PyTorch inside of ours too, where modes are switched off."""
    with implementations_looked_up_anew(), ExitStack() as stack:
        for operation, steps in STEPS.items():
            module = import_module(f"groot_graph.ops.{operation}.cuda")
            for step in steps:
                name = f"{operation}{step}_cuda"
                stack.enter_context(patch.object(module, name, _under(mode, getattr(module, name))))
        stack.enter_context(mode)
        yield


def _under(mode: TorchDispatchMode, function: Callable) -> Callable:
    def call(*arguments):
        with mode:
            return function(*arguments)

    return call
