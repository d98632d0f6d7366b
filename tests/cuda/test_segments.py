import re
from unittest.mock import patch

import pytest
import torch
from hypothesis import given

from groot_graph import Forest
from groot_graph.ops.cuda import launch, plan
from groot_graph.ops.root_forest.cuda import root_forest_cuda
from tests.equipment.cuda_host import recorded_launches
from tests.equipment.graphs import FOREST_KINDS, forest_edges
from tests.equipment.on_host import SHORT_SEGMENTS, cuda_kernels
from tests.equipment.strategies import forests

FLAGS = dict(re.findall(r"const int ([A-Z_]+) = (\d+);", launch.source("segments")))
ROOT, BEGINS_BRANCH, ENDS_BRANCH = (
    int(FLAGS[name]) for name in ("ROOT", "BEGINS_BRANCH", "ENDS_BRANCH")
)
LENGTHS = {
    "as-on-a-gpu": {"most": plan.SEGMENT_LENGTH, "few": plan.LARGEST_UNCUT},
    "short": SHORT_SEGMENTS,
    "odd": {"most": 7, "few": 9},
}


def lengths(test):
    return pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS.keys())(test)


def cut(edge_index, num_nodes, length, **launching) -> tuple[Forest, list]:
    with cuda_kernels(**length, **launching):
        order, parent, forest_plan = root_forest_cuda(edge_index, None, num_nodes, "first")
        return Forest(order, parent), read(forest_plan, num_nodes)


def read(forest_plan, num_nodes) -> list[dict]:
    """The plan by tiers, without what is beyond the counts."""
    tiers = []
    for tier in plan.tiers_of(forest_plan, num_nodes):
        size = tier.num_places
        row, flags, start, linked_as, counts = tier.plan.split([size, size, size + 1, size, 2])
        num_segments, num_linked = counts.tolist()
        num_rows = int(start[num_segments])
        tiers.append(
            {
                "row": row[:num_rows].tolist(),
                "flags": flags[:num_rows].tolist(),
                "start": start[: num_segments + 1].tolist(),
                "linked_as": linked_as[:num_segments].tolist(),
                "num_linked": num_linked,
                "num_places": size,
            }
        )
    return tiers


def check_tier(tier, num_rows, most, few):
    assert sorted(tier["row"]) == list(range(num_rows)), "every node has one place"
    start = tier["start"]
    assert start[0] == 0 and start[-1] == num_rows
    longest = max((end - begin for begin, end in zip(start, start[1:], strict=False)), default=0)
    is_highest = tier["num_places"] <= few
    assert longest <= most - 1 + (few if is_highest else most)
    linked = [row for row in tier["linked_as"] if row >= 0]
    assert linked == list(range(tier["num_linked"])), "linked in their sequence"
    for begin, end in zip(start, start[1:], strict=False):
        assert end >= begin
        check_flags(tier["flags"][begin:end])


def check_flags(flags):
    height = 0
    for flag in flags:
        height += bool(flag & BEGINS_BRANCH)
        height -= bool(flag & ENDS_BRANCH)
        assert height >= 0, "what ends has begun"
    assert height == 0, "what begins in a segment ends in it"


def check(forest, tiers, length):
    num_rows = forest.num_nodes
    for tier, higher in zip(tiers, [*tiers[1:], None], strict=True):
        check_tier(tier, num_rows, **length)
        assert sum(flag & ROOT for flag in tier["flags"]) <= forest.num_trees
        num_rows = tier["num_linked"]
        assert num_rows <= (higher["num_places"] if higher else 0), "the bound of the tier above"
    is_root = [forest.parent[node] == node for node in tiers[0]["row"]]
    assert [bool(flag & ROOT) for flag in tiers[0]["flags"]] == is_root


@lengths
@pytest.mark.parametrize("kind", FOREST_KINDS)
def test_plan_is_what_the_scans_rely_on(kind, length):
    for num_nodes in (1, 2, 63, 600, 1200):
        forest, tiers = cut(forest_edges(kind, num_nodes), num_nodes, length)
        check(forest, tiers, length)


@pytest.mark.parametrize("preempt", [False, True], ids=["in-turn", "pre-empted"])
@pytest.mark.parametrize("block_size", [32, 1024])
@lengths
def test_one_block_cuts_as_one_kernel_after_another(length, block_size, preempt):
    for kind, num_nodes in (("random", 700), ("several", 700), ("spider", 101), ("chain", 33)):
        edge_index = forest_edges(kind, num_nodes)
        launched, kernels = cut_by(edge_index, length, most_in_one_block=length["few"])
        with patch.object(launch, "MOST_THREADS_PER_BLOCK", block_size):
            in_one_block, one_kernel = cut_by(edge_index, length, seed=num_nodes, preempt=preempt)
        assert torch.equal(in_one_block, launched)
        is_cut = num_nodes > length["few"]
        assert ("list_segments" in kernels) == is_cut and ("reorder" in kernels) == (
            is_cut and len(plan_sizes(num_nodes, length)) > 2
        )
        assert one_kernel == ["cut_tiers"]


def cut_by(edge_index, length, **launching) -> tuple[torch.Tensor, list[str]]:
    """The plan, and the names of the kernels that made it of an ordered forest."""
    num_nodes = int(edge_index.max()) + 1
    with cuda_kernels(**length, **launching), recorded_launches() as launched:
        *_, forest_plan = root_forest_cuda(edge_index, None, num_nodes, "first")
    names = [launch.kernel for launch in launched]
    return forest_plan, names[names.index("order_nodes") + 1 :]


def plan_sizes(num_nodes, length) -> list[int]:
    with cuda_kernels(**length):
        return plan._tier_sizes(num_nodes)


@pytest.mark.parametrize("kind", ["random", pytest.param("chain", marks=pytest.mark.full)])
def test_a_large_tier_is_launched_and_one_block_cuts_the_rest(kind):
    num_nodes = plan.MOST_IN_ONE_BLOCK + 1000
    length = LENGTHS["as-on-a-gpu"]
    edge_index = forest_edges(kind, num_nodes)
    check(*cut(edge_index, num_nodes, length), length)
    _, kernels = cut_by(edge_index, length)
    assert kernels == ["mark_segments", "list_segments", "cut_tiers"]


@given(forest=forests(max_nodes=60))
def test_plan_of_any_forest(forest):
    edge_index, num_nodes = forest
    if num_nodes > 0:
        check(*cut(edge_index, num_nodes, SHORT_SEGMENTS), SHORT_SEGMENTS)


def test_segments_are_nodes_of_one_chain_and_what_hangs_from_it():
    forest, tiers = cut(forest_edges("random", 1200), 1200, LENGTHS["odd"])
    row, start = tiers[0]["row"], tiers[0]["start"]
    for begin, end in zip(start, start[1:], strict=False):
        inside = row[begin:end]
        outside = {int(forest.parent[node]) for node in inside} - set(inside)
        assert len(outside) <= 1, "one parent outside at most: the node the segment hangs from"


def test_small_trees_share_a_segment():
    _, tiers = cut(forest_edges("isolated", 1000), 1000, LENGTHS["as-on-a-gpu"])
    assert len(tiers[0]["start"]) - 1 == -(-1000 // plan.SEGMENT_LENGTH)


def test_stack_holds_all_that_is_nested():
    # What hangs from a segment's chain, one subtree from another, has 2**(k + 1) - 1 nodes or more.
    assert max(2 * plan.SEGMENT_LENGTH, plan.LARGEST_UNCUT) < 2**plan.MOST_NESTED


@pytest.mark.parametrize("kind", ["chain", "star", "spider", "caterpillar", "binary", "random"])
def test_tiers_do_not_follow_the_depth(kind):
    num_nodes = 5000
    _, tiers = cut(forest_edges(kind, num_nodes), num_nodes, LENGTHS["as-on-a-gpu"])
    assert len(tiers) == 3
    assert len(tiers[0]["start"]) - 1 <= 3 * num_nodes / plan.SEGMENT_LENGTH
    assert len(tiers[1]["row"]) <= 3 * num_nodes / plan.SEGMENT_LENGTH


def test_number_of_tiers_follows_the_logarithm_of_the_size():
    sizes = {n: len(plan._tier_sizes(n)) for n in (129, 10**4, 10**5, 10**6, 10**7, 10**8, 2**30)}
    assert list(sizes.values()) == [2, 3, 4, 4, 5, 6, 7]


def test_plan_holds_all_its_tiers():
    for num_nodes in [*range(3000), 10**6, 2**30]:
        size = sum(4 * places + 3 for places in plan._tier_sizes(num_nodes))
        assert size <= plan.plan_size(num_nodes)


def test_chains_that_follow_each_other_have_an_empty_segment_between():
    # The root is in one leg. Of the 9 others one goes on, and 8 start chains of their own.
    forest, tiers = cut(forest_edges("spider", 101), 101, LENGTHS["short"])
    start = tiers[0]["start"]
    assert sum(begin == end for begin, end in zip(start, start[1:], strict=False)) == 7
    check(forest, tiers, LENGTHS["short"])
