import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from groot_graph import minimum_spanning_forest, root_forest, selective_tree_scan, tree_scan
from groot_graph.ops.cpu import threads
from groot_graph.ops.cpu.threads import run_in_chunks
from tests.equipment.graphs import random_graph

SEEDS = range(6)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="unknown to this system")
# Of starting a process; one that is spawned imports PyTorch anew.
METHODS = [pytest.param("fork", marks=needs_fork), "spawn"]
PLAINLY_FORKED = [METHODS[0], pytest.param("spawn", marks=pytest.mark.full)]


def whole_chain(seed: int) -> list[np.ndarray]:
    """Every operation with gradients, on channels enough to be shared out to several threads."""
    num_nodes, num_channels, state_size = 150, 130, 3
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(shape, generator=generator).requires_grad_()

    edge_index = random_graph(num_nodes, 400, seed)
    edge_mask = minimum_spanning_forest(edge_index, draw(400), num_nodes)
    forest = root_forest(edge_index, edge_mask, num_nodes, "last")
    x, transition = draw(num_nodes, num_channels), draw(num_nodes, num_channels)
    A, B, C = (draw(n, state_size) for n in (num_channels, num_nodes, num_nodes))
    h = tree_scan(x, transition, forest)
    y = selective_tree_scan(h, x, -A, B, C, forest, direction="up")
    grads = torch.autograd.grad(y.sum(), (x, transition, A, B, C))
    tensors = (edge_mask, forest.order, forest.parent, h, y, *grads)
    return [tensor.detach().numpy() for tensor in tensors]


def assert_same(results, expected):
    for result, wanted in zip(results, expected, strict=True):
        assert all(map(np.array_equal, result, wanted))


class Chains(Dataset):
    def __len__(self):
        return len(SEEDS)

    def __getitem__(self, seed):
        return whole_chain(seed)


def as_it_is(batch):
    return batch


def use_two_threads(worker_id=None):
    torch.set_num_threads(2)


@pytest.fixture(params=["team", "pool"], autouse=True)
def whose_threads(request, monkeypatch):
    """Those of PyTorch's OpenMP, and those that stand in where there are none."""
    if request.param == "pool":
        monkeypatch.setattr(threads, "_team", None)
    elif threads._team is None:
        pytest.skip("this PyTorch has no OpenMP team to join")
    return request.param


starts_processes = pytest.mark.parametrize(
    "whose_threads", ["team", pytest.param("pool", marks=pytest.mark.full)], indirect=True
)


@pytest.fixture
def expected(whose_threads):
    """What this process computes, its threads in use."""
    torch.set_num_threads(2)
    return [whole_chain(seed) for seed in SEEDS]


@needs_fork
@starts_processes
@pytest.mark.parametrize("worker_init", [None, use_two_threads], ids=["T1", "T2"])
def test_in_forked_data_loader_workers(worker_init, expected):
    loader = DataLoader(
        Chains(),
        batch_size=2,
        num_workers=2,
        collate_fn=as_it_is,
        worker_init_fn=worker_init,
        multiprocessing_context="fork",
        timeout=300,
    )
    for _ in range(2):
        assert_same([result for batch in loader for result in batch], expected)


@starts_processes
@pytest.mark.parametrize("method", PLAINLY_FORKED)
def test_in_child_processes(method, expected):
    context = multiprocessing.get_context(method)
    with context.Pool(2, initializer=use_two_threads) as pool:
        assert_same(pool.map_async(whole_chain, SEEDS).get(timeout=300), expected)
    assert_same([whole_chain(SEEDS[0])], expected[:1])


def from_several_threads(seeds) -> list[list[np.ndarray]]:
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(whole_chain, seeds))


@starts_processes
@pytest.mark.parametrize("method", PLAINLY_FORKED)
def test_from_several_python_threads_in_child_processes(method, expected):
    context = multiprocessing.get_context(method)
    with context.Pool(2, initializer=use_two_threads) as pool:
        for results in pool.map_async(from_several_threads, [SEEDS] * 2).get(timeout=300):
            assert_same(results, expected)


@needs_fork
@starts_processes
def test_in_a_child_that_is_forked_while_another_thread_computes(expected):
    context, is_over = multiprocessing.get_context("fork"), threading.Event()

    def compute():
        while not is_over.is_set():
            whole_chain(SEEDS[0])

    computing = threading.Thread(target=compute)
    computing.start()
    try:
        for seed in SEEDS:
            with context.Pool(1, initializer=use_two_threads) as pool:
                results = pool.map_async(whole_chain, [seed]).get(timeout=60)
            assert_same(results, expected[seed : seed + 1])
    finally:
        is_over.set()
        computing.join(300)


def start_nested(methods, results):
    """A process in a process ..., of which the innermost puts what it computes."""
    context = multiprocessing.get_context(methods[0])
    process = context.Process(target=compute_nested, args=(methods[1:], results))
    process.start()
    return process


def compute_nested(methods, results):
    use_two_threads()
    if not methods:
        results.put(from_several_threads(SEEDS))
        return
    whole_chain(SEEDS[1])
    assert_ends_well(start_nested(methods, results))


def assert_ends_well(process):
    process.join(300)
    assert process.exitcode == 0


@starts_processes
@pytest.mark.parametrize("inner", PLAINLY_FORKED)
@pytest.mark.parametrize("outer", PLAINLY_FORKED)
def test_in_a_child_of_a_child(outer, inner, expected):
    results = multiprocessing.get_context("spawn").Queue()
    process = start_nested([outer, inner], results)
    assert_same(results.get(timeout=300), expected)
    assert_ends_well(process)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_from_several_python_threads(num_threads, expected):
    torch.set_num_threads(num_threads)
    ready = threading.Barrier(4, timeout=300)

    def together(first):
        ready.wait()
        return [whole_chain(seed) for seed in (*SEEDS[first:], *SEEDS[:first])]

    with ThreadPoolExecutor(4) as pool:
        for first, results in enumerate(pool.map(together, range(4))):
            assert_same(results, expected[first:] + expected[:first])


FIRST_CALL = """
import sys
import threading
import torch
from groot_graph import Forest, tree_scan
from groot_graph.ops.cpu import threads

if sys.argv[1] == "pool":
    threads._team = None

def names():
    return [t.name for t in threading.enumerate() if t.name.startswith("groot_graph")]

def call():
    barrier.wait()
    results.append(tree_scan(torch.ones(300, 160), torch.ones(300, 160), chain, "up"))

torch.set_num_threads(1)
chain = Forest(torch.arange(300), torch.arange(-1, 299).clamp(min=0))
barrier, results = threading.Barrier(3), []
callers = [threading.Thread(target=call) for _ in range(3)]
[caller.start() for caller in callers]
[caller.join() for caller in callers]
assert len(results) == 3
assert not names(), names()

torch.set_num_threads(2)
barrier = threading.Barrier(1)
call()
assert bool(names()) == (threads._team is None)
assert all(result[:, 159].tolist() == list(range(300, 0, -1)) for result in results)
print("done")
"""


@pytest.mark.full
@starts_processes
def test_first_calls_at_once_in_a_new_process_with_an_empty_cache(tmp_path, whose_threads):
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    finished = subprocess.run(
        [sys.executable, "-c", FIRST_CALL, whose_threads],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert finished.stdout == "done\n", finished.stderr
    assert list(tmp_path.rglob("*.nbc")), "the compiled kernels are kept on disk"


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("num_units", [0, 1, 2, 7, 100])
def test_every_unit_is_done_once(num_units, num_threads):
    torch.set_num_threads(num_threads)
    done = []
    run_in_chunks(lambda first, last, name: done.extend(range(first, last)), num_units, "units")
    assert sorted(done) == list(range(num_units))


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_no_more_chunks_run_at_once_than_threads_are_set(num_threads):
    torch.set_num_threads(num_threads)
    running, at_once, lock = set(), [], threading.Lock()

    def kernel(first, last):
        with lock:
            running.add(first)
            at_once.append(len(running))
        time.sleep(0.002)
        with lock:
            running.remove(first)

    run_in_chunks(kernel, 40)
    assert max(at_once) <= num_threads


def test_the_caller_does_what_the_team_has_left(monkeypatch):
    torch.set_num_threads(2)
    monkeypatch.setattr(threads, "_team", lambda region, *arguments: None)
    done = []
    run_in_chunks(lambda first, last: done.extend(range(first, last)), 40)
    assert done == list(range(40))


def test_two_threads_run_at_once():
    torch.set_num_threads(2)
    seen, both_are_here = set(), threading.Event()

    def kernel(first, last):
        seen.add(threading.get_ident())
        if len(seen) == 2:
            both_are_here.set()
        assert both_are_here.wait(timeout=300)

    run_in_chunks(kernel, 8)
    assert threading.get_ident() in seen


def test_one_thread_is_the_callers():
    torch.set_num_threads(1)
    seen = set()
    run_in_chunks(lambda first, last: seen.add(threading.get_ident()), 40)
    assert seen == {threading.get_ident()}


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("error", [ArithmeticError, KeyboardInterrupt])
def test_an_error_in_a_kernel_reaches_the_caller(error, num_threads):
    torch.set_num_threads(num_threads)

    def kernel(first, last):
        if last == 40:
            raise error("in the last chunk")

    with pytest.raises(error, match="in the last chunk"):
        run_in_chunks(kernel, 40)
    done = []
    run_in_chunks(lambda first, last: done.append(last), 40)
    assert max(done) == 40
