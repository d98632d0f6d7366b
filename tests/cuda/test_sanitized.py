"""No kernel reads or writes out of bounds."""

import pytest

from tests.equipment.cuda_host.sanitize import run_sanitized

pytestmark = pytest.mark.full


def test_tree_scan():
    run_sanitized("""
import torch
from groot_graph import tree_scan
from tests.equipment.on_host import SHORT_SEGMENTS, cuda_kernels, without_plan
from tests.equipment.graphs import FOREST_KINDS, make_forest
for kind in FOREST_KINDS:
    for num_nodes, length in ((1, {}), (63, SHORT_SEGMENTS), (700, {})):
        forest = make_forest(kind, num_nodes)
        for direction in ("both", "up", "down"):
            with cuda_kernels(num_nodes, **length):
                x, transition = (torch.rand(num_nodes, 3, requires_grad=True) for _ in range(2))
                tree_scan(x, transition, without_plan(forest), direction).sum().backward()
""")


def test_selective_tree_scan():
    run_sanitized("""
import torch
from groot_graph import selective_tree_scan
from groot_graph.ops.selective_tree_scan import cuda
from tests.equipment.on_host import SHORT_SEGMENTS, cuda_kernels, without_plan
from tests.equipment.graphs import FOREST_KINDS, make_forest
from tests.equipment.scans import selective_operands
for kind in FOREST_KINDS:
    for *shape, most_threads, length in (
        (63, 5, 3, 2**15, SHORT_SEGMENTS),
        (63, 5, 17, 20, SHORT_SEGMENTS),
        (600, 3, 1, 2**15, {}),
    ):
        num_nodes = shape[0]
        cuda.MOST_KEEPING_THREADS = most_threads
        forest = make_forest(kind, num_nodes)
        for direction in ("both", "up", "down"):
            with cuda_kernels(num_nodes, **length):
                operands = selective_operands(*shape, torch.float32)
                leaves = {name: value.requires_grad_() for name, value in operands.items()}
                forest = without_plan(forest)
                selective_tree_scan(**leaves, forest=forest, direction=direction).sum().backward()
""")
