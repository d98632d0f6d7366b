r"""What the compiled implementations share: 32 bits for every weight, edge and node."""

import torch
from torch import Tensor

# The kernels number nodes and edges with 32 bits.
LARGEST_INT32 = 2**31 - 1
LARGEST_INT64 = 2**63 - 1


def comparable_bits(edge_weight: Tensor, num_nodes: int) -> tuple[Tensor, bool]:
    r"""Every weight as an int32 or an int64, and whether these are the bits of a float. Refuses
    what 32 bits do not number.
    """
    num_edges = edge_weight.size(0)
    if max(num_nodes, num_edges) > LARGEST_INT32:
        raise ValueError(
            f"'edge_index' must have at most {LARGEST_INT32} edges and 'num_nodes' must be at most "
            f"that, got {num_edges} and {num_nodes}"
        )
    if edge_weight.dtype == torch.float64:
        return edge_weight.contiguous().view(torch.int64), True
    if edge_weight.is_floating_point():
        return edge_weight.float().contiguous().view(torch.int32), True
    is_wide = edge_weight.dtype in (torch.int64, torch.uint32)
    return edge_weight.to(torch.int64 if is_wide else torch.int32).contiguous(), False


def int32_keys(edge_weight: Tensor, num_nodes: int) -> tuple[Tensor, bool]:
    r"""An int32 for every weight that compares as the weights do, and whether it is the bits of a
    float32. Refuses what 32 bits do not number.
    """
    bits, is_float = comparable_bits(edge_weight, num_nodes)
    if bits.dtype == torch.int32:
        return bits, is_float
    return _places_by_key(_float64_keys(edge_weight) if is_float else bits), False


def _float64_keys(edge_weight: Tensor) -> Tensor:
    r"""An int64 that compares as the weight does: the lower bits of negative floats fall."""
    bits = (edge_weight + 0).view(torch.int64)  # With 0 added -0 is 0.
    return bits ^ ((bits >> 63) & LARGEST_INT64)


def _places_by_key(keys: Tensor) -> Tensor:
    by_weight = keys.sort(stable=True).indices
    places = torch.arange(len(by_weight), dtype=torch.int32, device=keys.device)
    return torch.empty_like(places).scatter_(0, by_weight, places)
