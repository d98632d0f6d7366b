"""The same bits in whatever order blocks and threads run."""

import pytest
import torch

from groot_graph import selective_tree_scan, tree_scan
from tests.equipment.graphs import make_forest
from tests.equipment.on_host import cuda_kernels, without_plan
from tests.equipment.scans import directions, scan_operands, selective_operands, with_gradients


def assert_same_in_any_order(scan, operands, weight, kind, direction):
    results = []
    for seed in range(3):
        with cuda_kernels(seed):
            along = {"forest": without_plan(make_forest(kind, len(weight))), "direction": direction}
            results.append(with_gradients(scan, operands, weight, **along))
    for result in results[1:]:
        assert all(torch.equal(result[name], results[0][name]) for name in result)


@directions
@pytest.mark.parametrize("kind", ["random", "several"])
def test_tree_scan(kind, direction):
    operands = scan_operands(700, 9, torch.float32)
    assert_same_in_any_order(tree_scan, operands, torch.randn(700, 9), kind, direction)


@directions
@pytest.mark.parametrize("kind", [pytest.param("random", marks=pytest.mark.full), "several"])
def test_selective_tree_scan(kind, direction):
    operands = selective_operands(300, 35, 3, torch.float32)
    assert_same_in_any_order(selective_tree_scan, operands, torch.randn(300, 35), kind, direction)
