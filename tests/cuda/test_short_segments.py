"""Trees of a few nodes cut into many segments, which take as many tiers as large ones do."""

from unittest.mock import patch

import pytest
import torch
from torch.autograd import gradcheck

from groot_graph import root_forest, selective_tree_scan, tree_scan
from groot_graph.ops.selective_tree_scan import cuda
from groot_graph.ops.selective_tree_scan.reference import selective_tree_scan_reference
from groot_graph.ops.tree_scan.reference import tree_scan_reference
from tests.equipment.graphs import FOREST_KINDS, make_forest
from tests.equipment.on_host import SHORT_SEGMENTS, cuda_kernels, without_plan
from tests.equipment.scans import (
    TOLERANCE,
    assert_same_scan,
    directions,
    options,
    scan_operands,
    selective_operands,
)


@pytest.mark.sampled(4)
@directions
@pytest.mark.parametrize("most, few", [(4, 6), (7, 9)])
@pytest.mark.parametrize("num_nodes", [9, 63, 257])
@pytest.mark.parametrize("kind", FOREST_KINDS)
def test_tree_scan(kind, num_nodes, most, few, direction):
    along = {"forest": make_forest(kind, num_nodes), "direction": direction}
    operands = scan_operands(num_nodes, 3)
    with cuda_kernels(most=most, few=few):
        assert_same_scan(tree_scan, tree_scan_reference, operands, 1e-10, **without_plans(along))


@pytest.mark.sampled(8)
@directions
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_channels", [1, 2, 5, 8, 9, 17, 31, 33, 64, 65, 97, 160, 161, 333])
def test_tree_scan_of_any_number_of_channels(num_channels, dtype, direction):
    """Threads have one to five channels, and the last of them fewer."""
    along = {"forest": make_forest("several", 75), "direction": direction}
    operands = scan_operands(75, num_channels, dtype)
    tolerance = TOLERANCE["tree_scan"][dtype]
    with cuda_kernels(**SHORT_SEGMENTS):
        assert_same_scan(
            tree_scan, tree_scan_reference, operands, tolerance, **without_plans(along)
        )


@pytest.mark.sampled(3)
@directions
@pytest.mark.parametrize("num_channels, num_states", [(3, 11), (9, 2)])
@pytest.mark.parametrize("kind", FOREST_KINDS)
def test_selective_tree_scan(kind, num_channels, num_states, direction):
    along = {"forest": make_forest(kind, 150), "direction": direction}
    operands = selective_operands(150, num_channels, num_states)
    scans = selective_tree_scan, selective_tree_scan_reference
    with cuda_kernels(**SHORT_SEGMENTS):
        assert_same_scan(*scans, operands, 1e-10, **without_plans(along))


@pytest.mark.sampled(6)
@directions
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_channels, num_states", [(9, 1), (9, 4), (3, 8), (35, 16), (2, 19)])
def test_selective_tree_scan_of_a_few_segments_at_once(num_channels, num_states, dtype, direction):
    """What is kept of a segment makes room for the next; sums of several groups of states."""
    along = {"forest": make_forest("random", 100), "direction": direction}
    operands = selective_operands(100, num_channels, num_states, dtype)
    scans = selective_tree_scan, selective_tree_scan_reference
    tolerance = TOLERANCE["selective_tree_scan"][dtype]
    most_threads = {"MOST_INPUT_THREADS": 70, "MOST_KEEPING_THREADS": 70}
    with cuda_kernels(**SHORT_SEGMENTS), patch.multiple(cuda, **most_threads):
        assert_same_scan(*scans, operands, tolerance, **without_plans(along))


def without_plans(along: dict) -> dict:
    return along | {"forest": without_plan(along["forest"])}


@directions
@pytest.mark.parametrize("kind", ["several", "chain", "star"])
def test_gradcheck_of_tree_scan(kind, direction):
    inputs = tuple(tensor.requires_grad_() for tensor in scan_operands(9, 2).values())
    with cuda_kernels(**SHORT_SEGMENTS):
        forest = without_plan(make_forest(kind, 9))
        assert gradcheck(lambda x, a: tree_scan(x, a, forest, direction), inputs)


@pytest.mark.sampled(3)
@directions
@options
def test_gradcheck_of_selective_tree_scan(names, direction):
    operands = selective_operands(7, 3, 2)
    leaves = tuple(operands[name].requires_grad_() for name in names)
    with cuda_kernels(**SHORT_SEGMENTS):
        forest = without_plan(make_forest("several", 7))

        def scan(*values):
            inputs = dict(zip(names, values, strict=True))
            return selective_tree_scan(**inputs, forest=forest, direction=direction)

        assert gradcheck(scan, leaves)


@directions
def test_transition_of_root_is_ignored(direction):
    x, transition = scan_operands(60, 3).values()
    with cuda_kernels(**SHORT_SEGMENTS):
        forest = without_plan(make_forest("several", 60))
        expected = tree_scan(x, transition, forest, direction)
        transition[forest.roots] = torch.nan
        transition.requires_grad_()
        h = tree_scan(x, transition, forest, direction)
        (grad,) = torch.autograd.grad(h.sum(), transition)
    assert torch.equal(h, expected)
    assert torch.equal(grad[forest.roots], torch.zeros(forest.num_trees, 3).double())
    assert grad.isfinite().all()


@directions
def test_infinite_input_stays_in_its_tree(direction):
    edge_index = torch.stack([torch.arange(39), torch.arange(1, 40)])
    edge_index = edge_index[:, edge_index[0] != 19]
    with cuda_kernels(**SHORT_SEGMENTS):
        forest = root_forest(edge_index, num_nodes=40)
        for node, others in ((3, slice(20, 40)), (30, slice(0, 20))):
            x, transition = scan_operands(40, 1).values()
            expected = tree_scan(x, transition, forest, direction)
            x[node] = torch.inf
            h = tree_scan(x, transition, forest, direction)
            assert torch.equal(h[others], expected[others])
