"""Every kernel on small inputs, for compute_sanitizer.sh: python -m tests.gpu.sanitizer_cases"""

import torch

from groot_graph import Forest, minimum_spanning_forest, root_forest
from tests.equipment.gpu_cases import cached_forest_edges, chain_operands, moved, whole_chain
from tests.equipment.graphs import FOREST_KINDS, pairing_weights
from tests.equipment.scans import DIRECTIONS


def run_all(device: torch.device) -> None:
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for direction in DIRECTIONS:
            whole_chain(moved(chain_operands(257, dtype=dtype), device), direction)
    for kind in FOREST_KINDS:
        # Whole trees as segments, and a size with a level above.
        for num_nodes in (63, 701, 3001):
            run_kind(kind, num_nodes, 3, device)
    run_kind("chain", 30_011, 1, device)
    whole_chain(moved(chain_operands(300, 40, 16), device))
    # More rounds than are launched: one block joins the rest.
    chain = torch.stack([torch.arange(2047), torch.arange(1, 2048)]).to(device)
    minimum_spanning_forest(chain, pairing_weights(2047).to(device), 2048)
    run_invalid(device)


def run_kind(kind: str, num_nodes: int, num_channels: int, device: torch.device) -> None:
    edge_index = cached_forest_edges(kind, num_nodes).to(device)
    operands = moved(chain_operands(num_nodes, num_channels), device)
    whole_chain(operands, "both", root_forest(edge_index, num_nodes=num_nodes, root="last"))


def run_invalid(device: torch.device) -> None:
    """Node numbers outside, NaN, cycles."""
    num_nodes = 257
    operands = moved(chain_operands(num_nodes), device)
    edge_index = operands["edge_index"].clone()
    edge_index[0, ::5] = -1
    edge_index[1, ::7] = 2**40
    nan = torch.full_like(operands["edge_weight"], torch.nan)
    minimum_spanning_forest(edge_index, nan, num_nodes)
    whole_chain(operands, "both", root_forest(edge_index, num_nodes=num_nodes))
    node = torch.arange(num_nodes, device=device)
    for parent in ((node + 1) % num_nodes, torch.full_like(node, 2**40)):
        whole_chain(operands, "both", Forest(node, parent))


if __name__ == "__main__":
    run_all(torch.device("cuda"))
    torch.cuda.synchronize()
    print("all cases ran")
