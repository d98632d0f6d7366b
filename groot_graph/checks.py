r"""Checks of arguments. Each names the argument, what was found and what was wanted."""

import math
from typing import Any

import torch
import torch_geometric
from torch import Tensor
from torch._C import _get_dispatch_mode, _TorchDispatchModeKey
from torch._subclasses.fake_tensor import is_fake
from torch._subclasses.functional_tensor import FunctionalTensor

from groot_graph.errors import NotANumberError
from groot_graph.forest import Forest

DIRECTIONS = ("both", "up", "down")

# How tensors are had from what other libraries hold.
TENSORS_OF = {
    "networkx": "torch_geometric.utils.from_networkx makes a Data of it, which holds 'edge_index' "
    "and the weights by their name",
    "numpy": "torch.from_numpy makes one of it",
    "pandas": "torch.from_numpy(frame.to_numpy()) makes one of it",
    "scipy": "torch_geometric.utils.from_scipy_sparse_matrix makes 'edge_index' and 'edge_weight' "
    "of it",
    "torch_geometric": "hand over its 'edge_index' and 'edge_weight'",
}


def values_are_checked(tensor: Tensor) -> bool:
    r"""Whether a tensor's values are read to check them: on the CPU, and elsewhere in PyG's debug
    mode, but never where a trace or a transform has put a tensor without values in its place.
    """
    if torch.compiler.is_compiling() or tensor.is_meta or is_fake(tensor):
        return False
    # What real ones are asked has no answer under fake tensors, and is no part of a trace.
    for mode in (_TorchDispatchModeKey.FAKE, _TorchDispatchModeKey.PROXY):
        if _get_dispatch_mode(mode) is not None:
            return False
    if tensor.device.type != "cpu" and not torch_geometric.is_debug_enabled():
        return False
    is_functional = torch._is_functional_tensor(tensor) or isinstance(tensor, FunctionalTensor)
    return not is_functional and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def check_choice(name: str, value, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"'{name}' must be one of {choices}, got {type(value).__name__}")
    if value not in choices:
        raise ValueError(f"'{name}' must be one of {choices}, got '{value}'")


def check_int(name: str, value) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"'{name}' must be an int, got {type(value).__name__}")


def check_positive_int(name: str, value, least: int = 1) -> None:
    check_int(name, value)
    if value < least:
        raise ValueError(f"'{name}' must be at least {least}, got {value}")


def check_number(name: str, value) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"'{name}' must be a number, got {type(value).__name__}")


def check_bool(name: str, value) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"'{name}' must be a bool, got {type(value).__name__}")


def check_tensor(name: str, value) -> None:
    if not isinstance(value, Tensor):
        raise _no_tensor(name, value)


def _no_tensor(name: str, value) -> TypeError:
    found = type(value).__name__
    hint = TENSORS_OF.get(type(value).__module__.partition(".")[0])
    found = found if hint is None else f"{found}: {hint}"
    return TypeError(f"'{name}' must be a torch.Tensor, got {found}")


def check_floating(name: str, value) -> None:
    if not isinstance(value, Tensor):
        raise _no_tensor(name, value)
    if not value.is_floating_point():
        raise TypeError(f"'{name}' must have a floating point dtype, got {value.dtype}")
    if value.element_size() == 1:
        raise TypeError(f"'{name}' must have at least 16 bits per number, got {value.dtype}")


def check_shape(name: str, value: Tensor, shape: tuple, meaning: str) -> None:
    r"""Compares with a shape in which None stands for any size."""
    fits = value.dim() == len(shape)
    for found, wanted in zip(value.shape, shape, strict=False):
        fits = fits and (wanted is None or found == wanted)
    if not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"'{name}' must have shape {meaning} = [{sizes}], got {list(value.shape)}")


def check_device(name: str, value: Tensor, other_name: str, device: torch.device) -> None:
    if value.device != device:
        raise ValueError(
            f"'{name}' must be on the device of '{other_name}', {device}, got {value.device}"
        )


def check_edge_index(edge_index) -> None:
    if not isinstance(edge_index, Tensor):
        raise _no_tensor("edge_index", edge_index)
    if edge_index.dtype != torch.int64:
        raise TypeError(f"'edge_index' must have dtype torch.int64, got {edge_index.dtype}")
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(
            f"'edge_index' must have shape [2, num_edges], got {list(edge_index.shape)}"
        )


def check_edge_weight(edge_weight, edge_index: Tensor) -> None:
    check_tensor("edge_weight", edge_weight)
    is_float8 = edge_weight.is_floating_point() and edge_weight.element_size() == 1
    if is_float8 or edge_weight.dtype in (torch.bool, torch.uint64) or edge_weight.is_complex():
        raise TypeError(
            "'edge_weight' must have a floating point dtype of 16 bits or more, or an integer one "
            f"that int64 holds, got {edge_weight.dtype}"
        )
    check_shape("edge_weight", edge_weight, (edge_index.size(1),), "[num_edges]")
    check_device("edge_weight", edge_weight, "edge_index", edge_index.device)


def check_edge_length(edge_length, u: Tensor, u_name: str) -> None:
    r"""Checks the length of the edge from every node to its parent, of nodes with features `u`."""
    check_floating("edge_length", edge_length)
    check_shape("edge_length", edge_length, (u.size(0),), "[num_nodes]")
    check_device("edge_length", edge_length, u_name, u.device)
    check_lengths("edge_length", edge_length)


def check_edge_mask(edge_mask, u: Tensor) -> None:
    check_floating("edge_mask", edge_mask)
    check_shape("edge_mask", edge_mask, (u.size(0),), "[num_nodes]")
    check_device("edge_mask", edge_mask, "u", u.device)


def check_lengths(name: str, lengths: Tensor) -> None:
    r"""Reads the values: a length is neither negative nor infinite nor NaN."""
    if not values_are_checked(lengths) or lengths.numel() == 0:
        return
    lowest, highest = map(float, lengths.detach().aminmax())
    if math.isnan(lowest):
        raise NotANumberError(f"'{name}' must hold lengths, got NaN")
    for length in (lowest, highest):
        if not 0 <= length < math.inf:
            raise ValueError(f"'{name}' must hold finite lengths from zero on, got {length:g}")


def check_num_nodes(num_nodes) -> None:
    if num_nodes is None or isinstance(num_nodes, torch.SymInt):
        return
    if not isinstance(num_nodes, int) or isinstance(num_nodes, bool):
        raise TypeError(f"'num_nodes' must be an int or None, got {type(num_nodes).__name__}")
    if num_nodes < 0:
        raise ValueError(f"'num_nodes' must not be negative, got {num_nodes}")


def check_node(node, num_nodes: int) -> None:
    check_int("node", node)
    if not 0 <= node < num_nodes:
        raise ValueError(f"'node' must lie in [0, {num_nodes - 1}], got {node}")


def check_node_range(edge_index: Tensor, num_nodes: int) -> None:
    r"""Reads the values: every node number lies in [0, num_nodes)."""
    if edge_index.numel() == 0:
        return
    # NumPy reads on the calling thread; PyTorch would wait for its others for longer than reading
    # takes where they have to share a core.
    values = edge_index.numpy() if edge_index.device.type == "cpu" else edge_index
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest >= num_nodes:
        found = lowest if lowest < 0 else highest
        raise ValueError(
            f"'edge_index' must hold node numbers from 0 to num_nodes - 1 = {num_nodes - 1}, "
            f"got {found}"
        )


def check_not_nan(name: str, edge_weight: Tensor) -> None:
    r"""Reads the values: no weight of an edge is NaN.

    Args:
        name (str): What the caller gave that the weights come from.
        edge_weight (Tensor): The weights, of shape :obj:`[num_edges]`.
    """
    values: Any = edge_weight.detach()
    if edge_weight.device.type == "cpu":
        # On the calling thread, as above. NumPy knows no bfloat16.
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    is_nan = values != values
    if is_nan.any():
        wanted = "not hold NaN" if name == "edge_weight" else "give a dissimilarity for every edge"
        edge = int(is_nan.nonzero()[0][0])
        raise NotANumberError(f"'{name}' must {wanted}, got NaN at edge {edge}")


def check_root(root, edge_index: Tensor) -> None:
    if isinstance(root, str):
        if root not in ("first", "last"):
            raise ValueError(f"'root' must be 'first', 'last' or a LongTensor, got '{root}'")
        return
    if not isinstance(root, Tensor):
        raise TypeError(f"'root' must be a str or a torch.Tensor, got {type(root).__name__}")
    if root.dtype != torch.int64:
        raise TypeError(f"'root' must have dtype torch.int64, got {root.dtype}")
    check_shape("root", root, (None,), "[num_trees]")
    check_device("root", root, "edge_index", edge_index.device)


def check_root_range(root: Tensor, num_nodes: int) -> None:
    r"""Reads the values: every root lies in [0, num_nodes)."""
    outside = root[(root < 0) | (root >= num_nodes)]
    if outside.numel() > 0:
        raise ValueError(
            f"'root' must hold node numbers from 0 to num_nodes - 1 = {num_nodes - 1}, "
            f"got {int(outside[0])}"
        )


def check_acyclic(num_nodes: int, num_trees: int, num_edges: int) -> None:
    if num_edges != num_nodes - num_trees:
        raise ValueError(
            f"'edge_index' must hold no cycle among the kept edges: {num_nodes} nodes in "
            f"{num_trees} components take {num_nodes - num_trees} edges, got {num_edges}"
        )


def check_one_root_per_tree(num_trees: int, num_roots: int, num_rooted: int) -> None:
    if not num_trees == num_roots == num_rooted:
        raise ValueError(
            f"'root' must hold one node of each of the {num_trees} trees, got {num_roots} nodes "
            f"in {num_rooted} trees"
        )


def check_forest(forest, num_nodes: int, device: torch.device, argument: str) -> None:
    if not isinstance(forest, Forest):
        # What PyG makes of the forests of a batch's graphs.
        hint = "; Forest.from_data reads that of a batch" if isinstance(forest, list) else ""
        raise TypeError(f"'forest' must be a groot_graph.Forest, got {type(forest).__name__}{hint}")
    if forest.order.size(0) != num_nodes:
        raise ValueError(
            f"'forest' must have as many nodes as '{argument}' has rows, {num_nodes}, "
            f"got {forest.num_nodes}"
        )
    if forest.order.device != device:
        raise ValueError(
            f"'forest' must be on the device of '{argument}', {device}, got {forest.device}"
        )


def check_direction(direction) -> None:
    check_choice("direction", direction, DIRECTIONS)


def check_dt_rank(dt_rank) -> None:
    if isinstance(dt_rank, str):
        check_choice("dt_rank", dt_rank, ("auto",))
    else:
        check_positive_int("dt_rank", dt_rank)


def check_grids(name: str, value: Tensor, channels: int) -> None:
    is_grids = isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 4
    if is_grids and value.size(3) == channels:
        return
    # Each of these knows what to say.
    check_floating(name, value)
    shape = (None, None, None, channels)
    check_shape(name, value, shape, "[batch, height, width, channels]")


def check_features(name: str, value: Tensor, channels: int | None = None) -> None:
    is_matrix = isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 2
    if is_matrix and channels in (None, value.size(1)):
        return
    # Each of these knows what to say.
    check_floating(name, value)
    check_shape(name, value, (None, channels), "[num_nodes, channels]")
