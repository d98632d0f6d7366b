r"""What the compiled implementations share: 32 bits for every weight, edge and node."""

import torch
from torch import Tensor

# The kernels number nodes and edges with 32 bits.
LARGEST_INT32 = 2**31 - 1


def int32_keys(edge_weight: Tensor, num_nodes: int) -> tuple[Tensor, bool]:
    r"""An int32 for every weight that compares as the weights do, and whether it is the bits of a
    float32. Refuses what 32 bits do not number.
    """
    num_edges = edge_weight.size(0)
    if max(num_nodes, num_edges) > LARGEST_INT32:
        raise ValueError(
            f"'edge_index' must have at most {LARGEST_INT32} edges and 'num_nodes' must be at most "
            f"that, got {num_edges} and {num_nodes}"
        )
    if edge_weight.dtype in (torch.float32, torch.float16, torch.bfloat16):
        return edge_weight.float().contiguous().view(torch.int32), True
    if edge_weight.dtype in (torch.uint8, torch.uint16, torch.int8, torch.int16, torch.int32):
        return edge_weight.int().contiguous(), False
    if edge_weight.dtype == torch.uint32:
        edge_weight = edge_weight.long()
    # A sort of bits would put -0 before 0; with 0 added it is 0.
    by_weight = (edge_weight + 0).sort(stable=True).indices
    places = torch.arange(len(by_weight), dtype=torch.int32, device=edge_weight.device)
    return torch.empty_like(places).scatter_(0, by_weight, places), False
