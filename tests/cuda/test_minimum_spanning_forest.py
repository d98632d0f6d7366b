"""The kernels, run on the CPU: the very text that NVRTC compiles, under many orders of threads."""

import math
import random
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.utils import grid, to_undirected

from groot_graph.ops.cuda import launch
from groot_graph.ops.minimum_spanning_forest import cuda
from groot_graph.ops.minimum_spanning_forest.cpu import minimum_spanning_forest_cpu
from groot_graph.ops.minimum_spanning_forest.cuda import minimum_spanning_forest_cuda
from groot_graph.ops.minimum_spanning_forest.reference import minimum_spanning_forest_reference
from tests.equipment.cuda_host import cuda_on_host, recorded_launches
from tests.equipment.cuda_host.sanitize import run_sanitized
from tests.equipment.graphs import forest_edges, pairing_weights, random_graph, to_edge_index
from tests.equipment.on_host import one_launched_round
from tests.equipment.strategies import multigraphs

SIZES = (1, 2, 3, 63, 257, 1025)
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint32, torch.uint16, torch.uint8),
)
SPECIAL_WEIGHTS = [-math.inf, -1.5, -(2.0**-149), -0.0, 0.0, 2.0**-149, 1.0, math.inf]


@pytest.fixture(autouse=True)
def on_host():
    with cuda_on_host():
        yield


def span_with(edge_index, edge_weight, num_nodes, seed, preempt, max_threads=launch.MOST_THREADS):
    """The forest under one order of blocks and threads, found by so many threads."""
    with (
        cuda_on_host(seed=seed, preempt=preempt),
        patch.object(launch, "MOST_THREADS", max_threads),
    ):
        return minimum_spanning_forest_cuda(edge_index, edge_weight, num_nodes)


def assert_equals_reference(edge_index, edge_weight, num_nodes):
    edge_mask = minimum_spanning_forest_cuda(edge_index, edge_weight, num_nodes)
    expected = minimum_spanning_forest_reference(edge_index, edge_weight, num_nodes)
    assert edge_mask.dtype == torch.bool
    assert torch.equal(edge_mask, expected)


def pairs_within(group_size):
    """Every pair of different nodes of one group, in both directions."""

    def edges(num_nodes):
        node = torch.arange(num_nodes)
        group = node // group_size
        return ((group[:, None] == group) & (node[:, None] != node)).nonzero().t()

    return edges


def near_square(num_nodes):
    height = math.isqrt(num_nodes)
    return grid(height, num_nodes // height)[0]


def many(num_nodes):
    return random_graph(num_nodes, 4 * num_nodes)


GRAPHS = {
    "chain": lambda n: torch.stack([torch.arange(n - 1), torch.arange(1, n)]),
    "backward-chain": lambda n: torch.stack([torch.arange(1, n), torch.arange(n - 1)]).flip(1),
    "shuffled-chain": lambda n: forest_edges("chain", n),
    "star": lambda n: forest_edges("star", n),
    "caterpillar": lambda n: forest_edges("caterpillar", n),
    "several-trees": lambda n: forest_edges("several", n),
    "grid": near_square,
    "dense": lambda n: pairs_within(n)(min(n, 65)),
    "disconnected": pairs_within(4),
    "isolated-nodes": lambda n: random_graph(n, n // 3),
    "self-loops-only": lambda n: torch.arange(n).expand(2, n),
    "random": many,
    "both-directions": lambda n: to_undirected(many(n)),
    "listed-twice": lambda n: many(n).repeat(1, 2),
}
WEIGHTS = {
    "normal": torch.randn,
    "many-ties": lambda n: torch.randint(-2, 3, (n,)).float(),
    "all-equal": torch.ones,
    "rising": lambda n: torch.arange(n).float(),
    "falling": lambda n: -torch.arange(n).float(),
    "signed-zeros": lambda n: torch.tensor([-0.0, 0.0])[torch.randint(2, (n,))],
    "special": lambda n: torch.tensor(SPECIAL_WEIGHTS)[torch.randint(len(SPECIAL_WEIGHTS), (n,))],
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_equals_reference_edge_for_edge(graph, weights):
    for num_nodes in SIZES:
        edge_index = graph(num_nodes)
        assert_equals_reference(edge_index, weights(edge_index.size(1)), num_nodes)


@given(graph=multigraphs(), data=st.data())
def test_equals_reference_on_any_multigraph(graph, data):
    edges, num_nodes = graph
    weight = st.one_of(st.sampled_from(SPECIAL_WEIGHTS), st.floats(width=32, allow_nan=False))
    weights = data.draw(st.lists(weight, min_size=len(edges), max_size=len(edges)))
    edge_weight = torch.tensor(weights, dtype=torch.float32)
    assert_equals_reference(to_edge_index(edges), edge_weight, num_nodes)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_floating_point_dtype(dtype):
    edge_index = random_graph(257, 1025)
    for draw in WEIGHTS.values():
        assert_equals_reference(edge_index, draw(1025).to(dtype), 257)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_every_integer_dtype(dtype):
    edge_index = random_graph(257, 1025)
    limits = torch.iinfo(dtype)
    draw = random.Random(0)
    extremes = [limits.min, limits.min + 1, 0, 1, limits.max - 1, limits.max]
    for values in (extremes, [draw.randint(limits.min, limits.max) for _ in range(1025)]):
        weights = torch.tensor(draw.choices(values, k=1025))
        edge_mask = minimum_spanning_forest_cuda(edge_index, weights.to(dtype), 257)
        assert torch.equal(edge_mask, minimum_spanning_forest_reference(edge_index, weights, 257))


def test_float64_weights_that_float32_cannot_tell_apart():
    edge_index = random_graph(63, 257)
    assert_equals_reference(edge_index, 1 + torch.rand(257, dtype=torch.float64) * 1e-12, 63)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_nan_ends_in_a_spanning_forest(share, dtype):
    edge_index = random_graph(257, 1025)
    # Also with the sign bit set, as the difference of two infinities has it on some machines.
    nan = torch.tensor([math.nan, -math.nan])[torch.randint(2, (1025,))]
    edge_weight = torch.where(torch.rand(1025) < share, nan, torch.randn(1025)).to(dtype)
    edge_mask = minimum_spanning_forest_cuda(edge_index, edge_weight, 257)
    assert num_joined(edge_index[:, edge_mask]) == edge_mask.sum() == num_joined(edge_index)
    assert torch.equal(edge_mask, minimum_spanning_forest_cpu(edge_index, edge_weight, 257))


def num_joined(edge_index):
    """How many edges a spanning forest of these edges has."""
    return minimum_spanning_forest_reference(edge_index, torch.ones(edge_index.size(1)), 257).sum()


def test_edges_to_nodes_that_do_not_exist_are_left_out():
    edge_index = random_graph(63, 257)
    edge_weight = torch.rand(257)
    outside = torch.tensor([-1, 63, -(2**31), 2**31, 2**32, 2**32 + 1, -(2**63), 2**63 - 1])
    wrong = torch.cat(
        [torch.stack([outside, outside % 63]), torch.stack([outside % 5, outside])], 1
    )
    both = torch.cat([wrong, outside.expand(2, -1), edge_index], dim=1)
    num_wrong = both.size(1) - 257
    edge_mask = minimum_spanning_forest_cuda(
        both, torch.cat([torch.full((num_wrong,), -9.0), edge_weight]), 63
    )
    assert not edge_mask[:num_wrong].any()
    expected = minimum_spanning_forest_reference(edge_index, edge_weight, 63)
    assert torch.equal(edge_mask[num_wrong:], expected)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("preempt", [False, True], ids=["in-turn", "pre-empted"])
@pytest.mark.parametrize("graph", ["chain", "backward-chain", "grid", "dense", "random"])
@pytest.mark.parametrize("weights", ["normal", "many-ties", "rising", "falling"])
def test_same_mask_in_any_order_of_threads(graph, weights, preempt):
    num_nodes = 600
    edge_index = GRAPHS[graph](num_nodes)
    edge_weight = WEIGHTS[weights](edge_index.size(1))
    expected = minimum_spanning_forest_reference(edge_index, edge_weight, num_nodes)
    for seed in range(4):
        for max_threads in (256, 512, launch.MOST_THREADS):
            found = span_with(edge_index, edge_weight, num_nodes, seed, preempt, max_threads)
            assert torch.equal(found, expected)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_one_block_equals_reference_edge_for_edge(graph, weights):
    with one_launched_round():
        for num_nodes in SIZES:
            edge_index = graph(num_nodes)
            assert_equals_reference(edge_index, weights(edge_index.size(1)), num_nodes)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("preempt", [False, True], ids=["in-turn", "pre-empted"])
@pytest.mark.parametrize("graph", ["chain", "backward-chain", "grid", "dense", "random"])
@pytest.mark.parametrize("weights", ["normal", "many-ties", "rising", "falling"])
def test_one_block_of_any_size_finds_the_same_mask(graph, weights, preempt):
    num_nodes = 600
    edge_index = GRAPHS[graph](num_nodes)
    edge_weight = WEIGHTS[weights](edge_index.size(1))
    expected = minimum_spanning_forest_reference(edge_index, edge_weight, num_nodes)
    for seed, block_size in enumerate((32, 256, 1024)):
        with one_launched_round(), patch.object(launch, "MOST_THREADS_PER_BLOCK", block_size):
            found = span_with(edge_index, edge_weight, num_nodes, seed, preempt)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("num_nodes", [2, 3, 4, 5, 64, 65, 1024])
def test_as_many_rounds_as_there_can_be(num_nodes):
    chain, edge_weight = GRAPHS["chain"](num_nodes), pairing_weights(num_nodes - 1)
    assert_equals_reference(chain, edge_weight, num_nodes)
    with one_launched_round():
        assert_equals_reference(chain, edge_weight, num_nodes)


@pytest.mark.parametrize(
    "num_nodes, num_edges, num_rounds",
    [
        (1, 9, 0),
        (2, 9, 1),
        (3, 9, 2),
        (4, 9, 2),
        (5, 9, 3),
        (1025, 4096, 11),
        (10**6, 1, 1),
        (10**6, 3, 2),
        (128 * 56 * 56, 10**6, 19),
        (2**31 - 1, 2**31 - 1, 31),
    ],
)
def test_the_number_of_rounds(num_nodes, num_edges, num_rounds):
    assert cuda.most_rounds(num_nodes, num_edges) == num_rounds


@pytest.mark.parametrize(
    "num_rounds, num_launched", [(0, 0), (3, 3), (8, 8), (9, 8), (19, 8), (20, 9), (31, 20)]
)
def test_the_number_of_rounds_that_are_launched(num_rounds, num_launched):
    assert cuda.launched_rounds(num_rounds) == num_launched


def test_launches_depend_on_sizes_alone():
    rounds = [("find_lowest", 300), ("join_lowest", 257)] * 8
    for edge_index in (random_graph(257, 300), torch.zeros(2, 300, dtype=torch.long)):
        with recorded_launches() as launched:
            minimum_spanning_forest_cuda(edge_index, torch.rand(300), 257)
        assert [(launch.kernel, launch.num_threads) for launch in launched] == [
            ("start_forest", 300),
            *rounds,
            ("finish_forest", 320),
        ]


@pytest.mark.parametrize("graph, num_rounds", [("self-loops-only", 0), ("star", 1), ("chain", 8)])
def test_no_round_runs_after_the_last_living_edge(graph, num_rounds):
    edge_index = GRAPHS[graph](256)
    with recorded_launches() as launched:
        minimum_spanning_forest_cuda(edge_index, pairing_weights(edge_index.size(1)), 256)
    assert launched[-1].kernel == "join_lowest"
    *_, has_living, _ = launched[-1].arguments
    assert has_living.tolist() == [1] * num_rounds + [0] * (9 - num_rounds)


def test_one_block_gets_the_edges_that_live_in_the_last_launched_round():
    edge_weight = pairing_weights(1023)
    with recorded_launches() as launched:
        minimum_spanning_forest_cuda(GRAPHS["chain"](1024), edge_weight, 1024)
    finish = launched[-1]
    assert finish.kernel == "finish_forest"
    _, _, left, has_living, num_rounds, *_ = finish.arguments
    # By pairs: every round joins the edges of one weight.
    living = (edge_weight >= 7).nonzero().flatten()
    assert num_rounds == 8 and has_living.tolist() == [1] * 8 + [len(living)] == [1] * 8 + [7]


@pytest.mark.parametrize(
    "edges, num_nodes",
    [
        pytest.param([], 0, id="no-node"),
        pytest.param([], 5, id="no-edge"),
        pytest.param([(0, 0)] * 3, 1, id="self-loops"),
        pytest.param([(0, 1)], 0, id="edges-without-nodes"),
    ],
)
def test_nothing_to_keep(edges, num_nodes):
    edge_mask = minimum_spanning_forest_cuda(
        to_edge_index(edges), torch.ones(len(edges)), num_nodes
    )
    assert edge_mask.dtype == torch.bool
    assert edge_mask.tolist() == [False] * len(edges)


def test_strided_inputs():
    edge_index = random_graph(63, 257)
    edge_weight = torch.randn(257)
    expected = minimum_spanning_forest_reference(edge_index, edge_weight, 63)
    rows = edge_index.t().contiguous().t()
    every_other = torch.stack([edge_weight, -edge_weight], dim=1).flatten()[::2]
    assert not rows.is_contiguous() and not every_other.is_contiguous()
    for dtype in (torch.float32, torch.float64):
        found = minimum_spanning_forest_cuda(rows, every_other.to(dtype), 63)
        assert torch.equal(found, expected)
    assert_equals_reference(edge_index, torch.ones(1).expand(257), 63)


@pytest.mark.full
def test_no_access_out_of_bounds():
    run_sanitized("""
import torch
from groot_graph.ops.minimum_spanning_forest.cuda import minimum_spanning_forest_cuda
from tests.equipment.cuda_host import cuda_on_host
from tests.equipment.graphs import random_graph
from tests.equipment.on_host import one_launched_round

for num_nodes, num_edges in ((1, 1), (2, 1), (257, 1), (2, 257), (300, 1025), (1025, 300)):
    edge_index = random_graph(num_nodes + 1, num_edges) - torch.randint(2, (num_edges,))
    for edge_weight in (torch.randn(num_edges), torch.randint(-(2**31), 2**31, (num_edges,)).int()):
        with cuda_on_host():
            minimum_spanning_forest_cuda(edge_index, edge_weight, num_nodes)
        with cuda_on_host(), one_launched_round():
            minimum_spanning_forest_cuda(edge_index, edge_weight, num_nodes)
""")


@pytest.mark.parametrize("num_nodes, num_edges", [(2**31, 1), (1, 2**31)])
def test_more_than_32_bits_can_number_is_refused(num_nodes, num_edges):
    edge_index = torch.zeros(2, 1, dtype=torch.long).expand(2, num_edges)
    with pytest.raises(ValueError, match=f"at most {2**31 - 1} edges.*got {num_edges} and"):
        minimum_spanning_forest_cuda(edge_index, torch.ones(1).expand(num_edges), num_nodes)
