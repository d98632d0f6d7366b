"""What NVRTC makes of the kernels, run on the CPU: equal to the reference and the CPU."""

import pytest
import torch

from groot_graph import minimum_spanning_forest, root_forest, selective_tree_scan, tree_scan
from groot_graph.ops.cuda import plan
from groot_graph.ops.selective_tree_scan.reference import selective_tree_scan_reference
from groot_graph.ops.tree_scan.reference import tree_scan_reference
from tests.equipment.graphs import FOREST_KINDS, forest_edges, make_forest, random_graph
from tests.equipment.on_host import (
    SHORT_SEGMENTS,
    cuda_kernels,
    one_launched_round,
    without_plan,
)
from tests.equipment.ptx import ptx_on_host
from tests.equipment.scans import (
    DIRECTIONS,
    FLOATS,
    OPTIONS,
    TOLERANCE,
    assert_same_scan,
    scan_operands,
    selective_operands,
)

SIZES = (1, 2, 63, 257, 3001)
SHAPES = [("random", 63), ("chain", 150), ("star", 63), ("several", 150), ("isolated", 5)]


def ptx_kernels(**sizes):
    return cuda_kernels(launcher=ptx_on_host(), **sizes)


def in_every_dtype(test):
    """And every direction; all but one are slow, for the compilers."""
    cases = [
        pytest.param(
            direction,
            dtype,
            id=f"{direction}-{dtype}",
            marks=() if (direction, dtype) == ("both", torch.float32) else pytest.mark.full,
        )
        for direction in DIRECTIONS
        for dtype in FLOATS
    ]
    return pytest.mark.parametrize("direction, dtype", cases)(test)


@pytest.mark.parametrize("num_nodes", SIZES)
def test_spanning_forest_edge_for_edge(num_nodes):
    edge_index = random_graph(num_nodes, 4 * num_nodes)
    for edge_weight in (torch.randn(4 * num_nodes), torch.randint(3, (4 * num_nodes,)).float()):
        expected = minimum_spanning_forest(edge_index, edge_weight, num_nodes)
        with ptx_kernels() as launches:
            edge_mask = minimum_spanning_forest(edge_index, edge_weight, num_nodes)
        assert launches
        assert torch.equal(edge_mask, expected)


@pytest.mark.parametrize("num_nodes", [2, 257])
def test_spanning_forest_by_one_block(num_nodes):
    edge_index = random_graph(num_nodes, 4 * num_nodes)
    edge_weight = torch.randint(9, (4 * num_nodes,)).float()
    expected = minimum_spanning_forest(edge_index, edge_weight, num_nodes)
    with ptx_kernels() as launches, one_launched_round():
        edge_mask = minimum_spanning_forest(edge_index, edge_weight, num_nodes)
    assert launches[-1].kernel == "finish_forest" or num_nodes == 2
    assert torch.equal(edge_mask, expected)


@pytest.mark.parametrize("root", ["first", "last"])
@pytest.mark.parametrize("num_nodes", SIZES)
def test_rooting(num_nodes, root):
    for kind in FOREST_KINDS:
        edge_index = forest_edges(kind, num_nodes)
        expected = root_forest(edge_index, num_nodes=num_nodes, root=root)
        with ptx_kernels() as launches:
            forest = root_forest(edge_index, num_nodes=num_nodes, root=root)
        assert launches
        assert torch.equal(forest.order, expected.order)
        assert torch.equal(forest.parent, expected.parent)


@pytest.mark.parametrize("kind", ["random", "several"])
def test_one_block_cuts_as_one_kernel_after_another(kind):
    plans = []
    for most_in_one_block in (plan.LARGEST_UNCUT, plan.MOST_IN_ONE_BLOCK):
        with ptx_kernels(most_in_one_block=most_in_one_block) as launches:
            forest = root_forest(forest_edges(kind, 3001), num_nodes=3001)
        plans.append(forest._plan.values)
        kernels = [launch.kernel for launch in launches]
        assert "cut_tiers" in kernels
        assert ("reorder" in kernels) == (most_in_one_block == plan.LARGEST_UNCUT)
    assert torch.equal(*plans)


def assert_scans_as(reference, scan, kind, num_nodes, operands, tolerance, direction):
    """With segments of the usual lengths, and of few nodes, which take more tiers."""
    forest = make_forest(kind, num_nodes)
    for sizes in ({}, SHORT_SEGMENTS):
        with ptx_kernels(**sizes) as launches:
            along = {"forest": without_plan(forest), "direction": direction}
            assert_same_scan(scan, reference, operands, tolerance, **along)
        assert launches


@in_every_dtype
def test_tree_scan(direction, dtype):
    scans = tree_scan_reference, tree_scan
    tolerance = TOLERANCE["tree_scan"][dtype]
    for kind, num_nodes in SHAPES:
        operands = scan_operands(num_nodes, 5, dtype)
        assert_scans_as(*scans, kind, num_nodes, operands, tolerance, direction)


@pytest.mark.full
@in_every_dtype
def test_tree_scan_across_whole_warps(direction, dtype):
    """Threads have several channels, some of them fewer."""
    scans = tree_scan_reference, tree_scan
    tolerance = TOLERANCE["tree_scan"][dtype]
    for kind, num_nodes in SHAPES:
        for num_channels in (70, 160):
            operands = scan_operands(num_nodes, num_channels, dtype)
            assert_scans_as(*scans, kind, num_nodes, operands, tolerance, direction)


@pytest.mark.full
@in_every_dtype
def test_selective_tree_scan(direction, dtype):
    compare_selective_scans(9, 3, direction, dtype)


@pytest.mark.full
@pytest.mark.parametrize(
    "direction, dtype",
    [("both", torch.float32), ("up", torch.bfloat16), ("down", torch.float64)],
)
def test_selective_tree_scan_across_whole_warps(direction, dtype):
    """Shuffles cross whole warps, and states are read in runs of 16 bytes."""
    compare_selective_scans(33, 8, direction, dtype)


def compare_selective_scans(num_channels, num_states, direction, dtype):
    scans = selective_tree_scan_reference, selective_tree_scan
    tolerance = TOLERANCE["selective_tree_scan"][dtype]
    for kind, num_nodes in SHAPES:
        drawn = selective_operands(num_nodes, num_channels, num_states, dtype)
        for names in (OPTIONS["plain"], OPTIONS["D-transition_delta"]):
            operands = {name: drawn[name] for name in names}
            assert_scans_as(*scans, kind, num_nodes, operands, tolerance, direction)
