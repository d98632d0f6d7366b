r"""The layer that grows a rooted spanning forest from the features of a graph."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear
from torch_geometric.typing import Adj, OptTensor

from groot_graph.checks import (
    check_bool,
    check_choice,
    check_edge_weight,
    check_features,
    check_positive_int,
    check_root,
    check_shape,
    check_tensor,
)
from groot_graph.forest import Forest
from groot_graph.lasting import makes_plain_tensors
from groot_graph.nn.adjacency import to_plain_edge_index
from groot_graph.ops.dtypes import autocast_off
from groot_graph.ops.minimum_spanning_forest.api import trusted_minimum_spanning_forest
from groot_graph.ops.root_forest.api import trusted_root_forest

# Rows whose largest entry lies between have squares, and lengths far above what is taken for zero.
ORDINARY = 1e-6, 1e15

TREES = ("min", "max", "random")
ROOTS = ("first", "last")

# So many are worked on at once that they stay in the cache of a CPU.
ELEMENTS_IN_CACHE = 2**20


def cosine(x_i: Tensor, x_j: Tensor) -> Tensor:
    r"""The exponential of the negative cosine similarity of features of length one: they are
    scaled node by node, because a node has many edges.
    """
    return torch.exp(-(x_i * x_j).sum(dim=-1))


def euclidean(x_i: Tensor, x_j: Tensor) -> Tensor:
    r"""The length of the difference."""
    return _norm(x_i - x_j)


def manhattan(x_i: Tensor, x_j: Tensor) -> Tensor:
    r"""The sum of the differences of the channels."""
    return torch.linalg.vector_norm(x_i - x_j, ord=1, dim=-1)


METRICS = {
    "cosine": cosine,
    "euclidean": euclidean,
    "manhattan": manhattan,
    "learned": euclidean,  # of embeddings
}
PLAIN_METRICS = ("cosine", "euclidean", "manhattan")  # without weights


def _norm(x: Tensor) -> Tensor:
    r"""The length of every row, also where squares would leave the range of numbers."""
    unit, is_zero = _unit(x)
    # Its derivatives at zero are zero, also the second.
    length = torch.linalg.vector_norm((x / unit).masked_fill(is_zero, 1), dim=-1, keepdim=True)
    return (length.masked_fill(is_zero, 0) * unit).squeeze(-1)


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""What a row is measured in so that its squares are numbers: one where they are; and whether
    it is zero. Both as columns.
    """
    # By its number from the left, because tracing refuses no rows with a dimension from the right.
    largest = torch.linalg.vector_norm(x.detach(), ord=math.inf, dim=x.dim() - 1, keepdim=True)
    is_zero = largest == 0
    lowest, highest = ORDINARY
    has_squares = (largest >= lowest) & (largest <= highest) | is_zero
    return torch.where(has_squares, 1, largest), is_zero


def works_in_parts(x: Tensor) -> bool:
    r"""Whether work on a tensor may go part by part: a GPU, a compiler and a trace are better off
    with the whole.
    """
    return x.device.type == "cpu" and makes_plain_tensors()


class TreeTopology(torch.nn.Module):
    r"""Grows a rooted spanning forest from the features of a graph, as in the `"GrootVL: Tree
    Topology is All You Need in State Space Model" <https://arxiv.org/abs/2406.02395>`_ paper
    (Section 3.2).

    .. math::
        \mathcal{T} = \underset{\mathcal{T}^{\prime} \subseteq \mathcal{E}}{\operatorname{argmin}}
        \sum_{(i, j) \in \mathcal{T}^{\prime}} w_{ij}, \qquad
        w_{ij} = \exp \left( - \frac{\mathbf{x}_i^{\top} \mathbf{x}_j}
        {\| \mathbf{x}_i \| \, \| \mathbf{x}_j \|} \right)

    over all spanning forests :math:`\mathcal{T}^{\prime}` of the edges :math:`\mathcal{E}`, one
    tree per connected component. Equal weights are decided by the lower edge number. No gradient
    flows through the choice, but through the lengths of the edges chosen,
    :math:`\ell_i = w_{i \, p(i)}` of a node :math:`i` and its parent, which
    :meth:`forest_and_length` returns beside the forest.

    Args:
        metric (str or Callable, optional): The dissimilarity :math:`w_{ij}` of two nodes:
            :obj:`"cosine"` (as above), :obj:`"euclidean"` or :obj:`"manhattan"` (their distance),
            :obj:`"learned"`, the distance of their embeddings, :math:`\| \mathbf{W}_e \mathbf{x}_i
            - \mathbf{W}_e \mathbf{x}_j \|`, or a function of :obj:`x_i` and :obj:`x_j`, both of
            shape :obj:`[num_edges, channels]`, that returns a tensor of shape :obj:`[num_edges]`.
            (default: :obj:`"cosine"`)
        tree (str, optional): The spanning forest to grow: of least total dissimilarity
            (:obj:`"min"`), of greatest (:obj:`"max"`), or over weights drawn uniformly from
            PyTorch's global generator, whatever the features and edge weights are
            (:obj:`"random"`). (default: :obj:`"min"`)
        root (str, optional): The root of every tree: its node of lowest (:obj:`"first"`) or highest
            number (:obj:`"last"`). (default: :obj:`"first"`)
        channels (int, optional): Size of each node's features, which :obj:`metric="learned"` needs.
            (default: :obj:`None`)
        embedding_dim (int, optional): Size of each node's embedding, of which
            :obj:`metric="learned"` is the distance. (default: :obj:`8`)

    Shapes:
        - **input:**
          node features :math:`(|\mathcal{V}|, F)`,
          edge indices :math:`(2, |\mathcal{E}|)`,
          dissimilarities :math:`(|\mathcal{E}|)` *(optional)*
        - **output:** a :class:`groot_graph.Forest` of :math:`|\mathcal{V}|` nodes

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a name is unknown, a size is below one, or `channels` are missing.

    Example:
        >>> import torch
        >>> from groot_graph.nn import TreeTopology
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> edge_index = torch.tensor([[0, 0, 1], [1, 2, 2]])
        >>> TreeTopology(metric="euclidean")(x, edge_index).parent
        tensor([0, 0, 1])
    """

    def __init__(
        self,
        metric: str | Callable[[Tensor, Tensor], Tensor] = "cosine",
        tree: str = "min",
        root: str = "first",
        channels: int | None = None,
        embedding_dim: int = 8,
    ):
        if not callable(metric):
            check_choice("metric", metric, tuple(METRICS))
        check_choice("tree", tree, TREES)
        check_choice("root", root, ROOTS)
        super().__init__()
        self.metric = metric
        self.tree = tree
        self.root = root
        if metric == "learned":
            check_positive_int("channels", channels)
            check_positive_int("embedding_dim", embedding_dim)
            assert channels is not None  # as checked
            # What is added to every embedding changes no distance.
            self.embedding = _Embedding(channels, embedding_dim, bias=False)

    def reset_parameters(self) -> None:
        r"""Resets the embedding, if the metric is learned."""
        if self.metric == "learned":
            self.embedding.reset_parameters()

    @torch.no_grad()
    def forward(
        self,
        x: Tensor,
        edge_index: Adj,
        edge_weight: OptTensor = None,
        root: str | Tensor | None = None,
    ) -> Forest:
        r"""Grows the forest.

        Args:
            x (Tensor): The node features, of shape :obj:`[num_nodes, channels]`. Dissimilarities of
                half precision features are computed in :obj:`torch.float32`. Where none are
                computed, for a random forest or from `edge_weight`, it may have any dtype, and any
                shape :obj:`[num_nodes, *]`.
            edge_index (Tensor or EdgeIndex or SparseTensor or torch.sparse.Tensor): The candidate
                edges, in one direction or both. A sparse adjacency is PyG's transposed
                :obj:`adj_t`; its edges are numbered as :func:`torch_geometric.utils.to_edge_index`
                lists them, and its values are not read.
            edge_weight (Tensor, optional): The dissimilarities, of shape :obj:`[num_edges]`, in
                place of the metric. (default: :obj:`None`)
            root (str or LongTensor, optional): The root of every tree for this call:
                :obj:`"first"`, :obj:`"last"` or one node per tree. (default: the `root` of the
                layer)

        Returns:
            Forest: The rooted forest.

        Raises:
            TypeError: If an argument has the wrong type or dtype.
            ValueError: If a shape or a device does not fit, a node number is out of range, or a
                tree has no root or several.
            NotANumberError: If `x` or `edge_weight` make the weight of an edge NaN.
        """
        reads_x = edge_weight is None and self.tree != "random"
        edge_index, weight_name = self._checked(x, reads_x, edge_index, edge_weight, root)
        return self.grow(x, edge_index, edge_weight, root, weight_name)

    def forest_and_length(
        self,
        x: Tensor,
        edge_index: Adj,
        edge_weight: OptTensor = None,
        root: str | Tensor | None = None,
    ) -> tuple[Forest, Tensor]:
        r"""Grows the forest, and measures its edges.

        Args:
            x (Tensor): See :meth:`forward`.
            edge_index (Tensor or EdgeIndex or SparseTensor or torch.sparse.Tensor): See
                :meth:`forward`.
            edge_weight (Tensor, optional): See :meth:`forward`. (default: :obj:`None`)
            root (str or LongTensor, optional): See :meth:`forward`. (default: the `root` of the
                layer)

        Returns:
            (Forest, Tensor): The rooted forest, and the dissimilarity of every node and its parent,
            of shape :obj:`[num_nodes]`; a root's is zero. Gradients flow through it to the
            features, the embedding and the `edge_weight`.

        Raises:
            TypeError: If an argument has the wrong type or dtype.
            ValueError: If a shape or a device does not fit, a node number is out of range, or a
                tree has no root or several.
            NotANumberError: If `x` or `edge_weight` make the weight of an edge NaN.

        Example:
            >>> import torch
            >>> from groot_graph.nn import TreeTopology
            >>> x = torch.tensor([[0.0], [1.0], [3.0]])
            >>> edge_index = torch.tensor([[0, 0, 1], [1, 2, 2]])
            >>> TreeTopology(metric="euclidean").forest_and_length(x, edge_index)[1]
            tensor([0., 1., 2.])
        """
        reads_x = edge_weight is None
        edge_index, weight_name = self._checked(x, reads_x, edge_index, edge_weight, root)
        return self.grow_and_measure(x, edge_index, edge_weight, root, weight_name)

    def _checked(self, x, reads_x: bool, edge_index, edge_weight, root) -> tuple[Tensor, str]:
        r"""The edges, of arguments that fit, and what the weights come from."""
        if reads_x:
            channels = self.embedding.in_features if self.metric == "learned" else None
            check_features("x", x, channels)
        else:
            check_tensor("x", x)
            if x.dim() == 0:
                raise ValueError("'x' must have shape [num_nodes, *], got []")
        edge_index = to_plain_edge_index(edge_index, x)
        check_growth(edge_index, edge_weight, root)
        return edge_index, "x" if edge_weight is None else "edge_weight"

    @torch.no_grad()
    def grow(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_weight: OptTensor = None,
        root: str | Tensor | None = None,
        weight_name: str = "x",
    ) -> Forest:
        r"""Grows the forest of arguments that are known to fit. A NaN among the weights is refused
        in the name of `weight_name`, from which they come.
        """
        if edge_weight is None and self.tree != "random":
            edge_weight = self._edge_weight(*self.with_metric(x), edge_index)
        return self._over(x, edge_index, edge_weight, root, weight_name)[0]

    def grow_and_measure(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_weight: OptTensor = None,
        root: str | Tensor | None = None,
        weight_name: str = "x",
    ) -> tuple[Forest, Tensor]:
        r"""As :meth:`grow`, with the length of the edge from every node to its parent."""
        if edge_weight is not None or callable(self.metric):
            # Of all edges, because a metric of the user's may compare an edge with all others.
            if edge_weight is None:
                edge_weight = self._edge_weight(*self.with_metric(x), edge_index)
            forest, edge_mask = self.grow_over(
                x, edge_index, edge_weight.detach(), root, weight_name
            )
            return forest, _length_of_parents(edge_weight, edge_index, edge_mask, forest)
        compared, metric = self.with_metric(x)
        if self.tree != "random":
            with torch.no_grad():
                edge_weight = self._edge_weight(compared, metric, edge_index)
        forest, _ = self.grow_over(x, edge_index, edge_weight, root, weight_name)
        return forest, _length_along(forest, compared, metric)

    def measure(self, x: Tensor, forest: Forest) -> Tensor:
        r"""The length of the edge from every node to its parent in a forest that was not grown
        here.
        """
        compared, metric = self.with_metric(x)
        return _length_along(forest, compared, metric)

    @torch.no_grad()
    def grow_over(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_weight: OptTensor,
        root: str | Tensor | None = None,
        weight_name: str = "x",
    ) -> tuple[Forest, Tensor]:
        r"""The forest over weights that are known, and which edges it keeps."""
        return self._over(x, edge_index, edge_weight, root, weight_name)

    # Apart, because torch.export cannot read back what it saved of one no_grad within another.
    def _over(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_weight: OptTensor,
        root: str | Tensor | None,
        weight_name: str,
    ) -> tuple[Forest, Tensor]:
        num_nodes, root = x.size(0), self.root if root is None else root
        if self.tree == "random":
            edge_weight = torch.rand(edge_index.size(1), device=x.device)
        if self.tree == "max":
            edge_weight = _reversed(edge_weight)
        edge_mask = trusted_minimum_spanning_forest(edge_index, edge_weight, num_nodes, weight_name)
        return trusted_root_forest(edge_index, edge_mask, num_nodes, root), edge_mask

    def with_metric(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
        r"""The node features as the metric takes them, in :obj:`torch.float32` at least, for
        :obj:`"cosine"` scaled to length one and for :obj:`"learned"` embedded, and the metric: a
        function of two tensors of such features of shape :obj:`[*, channels]` with the same
        :obj:`*`, the shape of what it returns.
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if callable(self.metric):
            return x, self.metric
        if self.metric == "learned":
            # In half precision too many edges would have the same length.
            with autocast_off(x.device):
                return self.embedding(x), euclidean
        if self.metric == "cosine":
            # As torch.nn.functional.cosine_similarity scales.
            unit, _ = _unit(x)
            x = x / unit
            x = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-8)
        return x, METRICS[self.metric]

    def _edge_weight(self, x: Tensor, metric: Callable, edge_index: Tensor) -> Tensor:
        # A metric of the user's may compare an edge with all others.
        if callable(self.metric):
            edge_weight = _gathered(metric, x, edge_index)
            check_measured(edge_weight, (edge_index.size(1),), "[num_edges]")
            return edge_weight
        if not works_in_parts(x):
            return _gathered(metric, x, edge_index)
        # Written in place: results kept between the work of one part and the next would scatter it
        # over memory that is not given back.
        edge_weight = x.new_empty(edge_index.size(1))
        size = max(1, ELEMENTS_IN_CACHE // max(1, x.size(1)))
        for part, values in zip(edge_index.split(size, 1), edge_weight.split(size), strict=True):
            values.copy_(_gathered(metric, x, part))
        return edge_weight

    def __repr__(self) -> str:
        metric = getattr(self.metric, "__name__", self.metric)
        return f"{self.__class__.__name__}(metric={metric}, tree={self.tree}, root={self.root})"


class _Embedding(Linear):
    r"""A projection that computes in the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def metric_of_layer(
    metric: str | Callable[[Tensor, Tensor], Tensor] | None, edge_steps: bool
) -> str | Callable[[Tensor, Tensor], Tensor]:
    r"""The metric of a layer that may hand the lengths of edges to its scan."""
    check_bool("edge_steps", edge_steps)
    if metric is None:
        return "learned" if edge_steps else "cosine"
    if metric == "learned" and not edge_steps:
        raise ValueError(
            "'metric' must not be 'learned' where 'edge_steps' is False: an embedding learns "
            "through the lengths of edges alone"
        )
    return metric


def check_growth(edge_index: Tensor, edge_weight, root) -> None:
    r"""Checks what a forest is grown from beside the features."""
    if edge_weight is not None:
        check_edge_weight(edge_weight, edge_index)
    if root is not None:
        check_root(root, edge_index)


def _gathered(metric: Callable, x: Tensor, edge_index: Tensor) -> Tensor:
    source, target = edge_index
    return metric(x.index_select(0, target), x.index_select(0, source))


def check_measured(edge_weight, shape: tuple[int, ...], meaning: str) -> None:
    r"""Checks what a metric of the user's returns."""
    check_tensor("metric(x_i, x_j)", edge_weight)
    check_shape("metric(x_i, x_j)", edge_weight, shape, meaning)


def _length_along(forest: Forest, x: Tensor, metric: Callable) -> Tensor:
    # Not by index_select, whose gradient a GPU adds up in another sequence on every run.
    return metric(x[forest.parent], x)


def _length_of_parents(
    edge_weight: Tensor, edge_index: Tensor, edge_mask: Tensor, forest: Forest
) -> Tensor:
    r"""The weight of the edge that joins every node to its parent."""
    source, target = edge_index
    child = torch.where(forest.parent[source] == target, source, target)
    if not edge_weight.is_floating_point():
        edge_weight = edge_weight.to(torch.get_default_dtype())
    # One term a node, the others are zero: the sum is exact in any sequence.
    length = edge_weight.new_zeros(forest.num_nodes)
    return length.index_add(0, child, torch.where(edge_mask, edge_weight, 0))


def _reversed(edge_weight: Tensor) -> Tensor:
    r"""Weights in the opposite sequence."""
    # PyTorch computes little with these.
    if edge_weight.dtype in (torch.uint16, torch.uint32):
        edge_weight = edge_weight.long()
    # Not -w, because the negation of unsigned and of the lowest signed integers overflows.
    return -edge_weight if edge_weight.is_floating_point() else ~edge_weight
