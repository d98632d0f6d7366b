r"""What a model passes states along, and how strongly a node hears all others."""

from typing import Any

import torch
from torch import Tensor

from groot_graph.checks import check_floating, check_forest, check_node, check_positive_int
from groot_graph.forest import Forest
from groot_graph.graphs import raster_edge_index
from groot_graph.ops.root_forest.api import trusted_root_forest
from groot_graph.ops.tree_scan.api import trusted_tree_scan


def affinity_map(forest: Forest, transition: Tensor, node: int) -> Tensor:
    r"""How strongly a node hears every node of its tree: the product of the transitions on the path
    between them,

    .. math::
        s_j = \frac{1}{D} \sum_{d=1}^{D} \prod_{k \in \mathrm{path}(i, j)} a_{k,d}

    which is one at the node :math:`i` itself and zero in other trees. It is the scan of a one-hot
    signal, so it takes linear time.

    From `"GrootVL: Tree Topology is All You Need in State Space Model"
    <https://arxiv.org/abs/2406.02395>`_, section 3.2, Eq. (4).

    Args:
        forest (Forest): The forest.
        transition (Tensor): The transition of each node's edge to its parent, of shape
            :obj:`[num_nodes]` or :obj:`[num_nodes, channels]`. Channels are averaged.
        node (int): The node :math:`i` that listens.

    Returns:
        Tensor: The affinities, of shape :obj:`[num_nodes]`.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape does not fit or `node` is out of range.

    Example:
        >>> import torch
        >>> from groot_graph import Forest
        >>> from groot_graph.analysis import affinity_map
        >>> forest = Forest(order=torch.tensor([0, 1, 2]), parent=torch.tensor([0, 0, 1]))
        >>> affinity_map(forest, torch.tensor([1.0, 0.5, 0.5]), node=0)
        tensor([1.0000, 0.5000, 0.2500])
    """
    check_floating("transition", transition)
    if transition.dim() not in (1, 2):
        raise ValueError(
            "'transition' must have shape [num_nodes] or [num_nodes, channels], "
            f"got {list(transition.shape)}"
        )
    check_forest(forest, transition.size(0), transition.device, "transition")
    check_node(node, forest.num_nodes)
    transition = transition.detach().reshape(forest.num_nodes, -1)
    signal = torch.zeros_like(transition)
    signal[node] = 1
    return trusted_tree_scan(signal, transition, forest).mean(dim=1)


def scan_of_layer(
    model: torch.nn.Module, *inputs: Any, layer: "str | int" = 0, **kwargs: Any
) -> tuple[Forest, Tensor]:
    r"""What one layer of a model passes states along: its forest and its transitions, for
    :func:`affinity_map`.

    Args:
        model (torch.nn.Module): Any model that holds a :class:`~groot_graph.nn.TreeSSM`, such as
            one of :class:`~groot_graph.nn.TreeSSMConv` layers or a
            :class:`~groot_graph.models.GrootV`, or a
            :class:`~groot_graph.models.GrootLForCausalLM`. It is run once, without gradients, in
            the mode that it is in.
        *inputs (Any): What the model is called with.
        layer (str or int, optional): Which one: its number among those of the model, from the end
            where negative, or the name of a module that holds no other. (default: :obj:`0`)
        **kwargs (optional): What the model is called with by name, such as the `context_lengths` of
            texts.

    Returns:
        (Forest, Tensor): The forest, and the transitions of shape :obj:`[num_nodes, channels]`,
        where each state of each channel is a channel of its own. Nodes of texts are their tokens,
        padding included, text after text.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the model holds no such layer, or does not run it for these inputs.

    Example:
        >>> import torch
        >>> from groot_graph.analysis import affinity_map, scan_of_layer
        >>> from groot_graph.models import GrootV
        >>> model = GrootV(channels=8, depths=(1, 1, 1, 1), num_classes=10)
        >>> scan = scan_of_layer(model, torch.rand(1, 3, 32, 48), layer="stages.0")
        >>> affinity_map(*scan, node=0).view(8, 12).shape
        torch.Size([8, 12])
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"'model' must be a torch.nn.Module, got {type(model).__name__}")
    module = _find_scan(model, layer)
    seen: list[tuple] = []
    scans: list[tuple[Forest, Tensor]] = []

    def look(module: Any, args: tuple) -> None:
        # While the model runs, because adapters and offloaded weights may be in place only then;
        # and once, because the module is called again for it.
        if not seen:
            seen.append(args)
            scans.append(module.forest_and_transition(*args))

    hook = module.register_forward_pre_hook(look)
    try:
        with torch.no_grad():
            model(*inputs, **kwargs)
    finally:
        hook.remove()
    if not scans:
        raise ValueError(f"'layer' must be one that the model runs, got {layer!r}")
    return scans[0]


def raster_forest(height: int, width: int) -> Forest:
    r"""The chain that a raster scan follows over a grid, row by row: what an image looks like to a
    model of sequences, to be compared with a tree.

    Args:
        height (int): The number of nodes in a column.
        width (int): The number of nodes in a row.

    Returns:
        Forest: One tree, the chain from the first node to the last.

    Raises:
        TypeError: If a size is not an int.
        ValueError: If a size is below one.

    Example:
        >>> from groot_graph.analysis import raster_forest
        >>> raster_forest(2, 2).parent
        tensor([0, 0, 1, 2])
    """
    check_positive_int("height", height)
    check_positive_int("width", width)
    return trusted_root_forest(raster_edge_index(height, width), None, height * width)


def _find_scan(model: torch.nn.Module, layer: "str | int") -> Any:
    r"""The module that passes states along a forest, and can tell which."""
    found = {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "forest_and_transition")
    }
    names = list(found)
    if isinstance(layer, str):
        inside = [name for name in names if f"{name}.".startswith(f"{layer}.")]
        if len(inside) != 1:
            raise ValueError(
                f"'layer' must be the name of a module with one scan, got {layer!r} with "
                f"{len(inside)}; the model scans in {_first_few(names)}"
            )
        return found[inside[0]]
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise TypeError(f"'layer' must be a str or an int, got {type(layer).__name__}")
    if not -len(names) <= layer < len(names):
        raise ValueError(
            f"'layer' must be one of the {len(names)} scans of the model, got {layer}; it scans in "
            f"{_first_few(names)}"
        )
    return found[names[layer]]


def _first_few(names: list[str]) -> str:
    return ", ".join(names[:4] + ["..."] * (len(names) > 4)) or "none"
