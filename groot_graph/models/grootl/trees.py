r"""The trees over texts along which GrootL passes states: where they may grow, how they are
scanned, and what is remembered of them while a text is generated.
"""

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groot_graph.forest import Forest
from groot_graph.graphs import text_edge_index
from groot_graph.ops.dtypes import autocast_off
from groot_graph.ops.minimum_spanning_forest.api import trusted_minimum_spanning_forest
from groot_graph.ops.root_forest.api import trusted_root_forest
from groot_graph.ops.selective_tree_scan.api import trusted_selective_tree_scan


class TextLayout:
    r"""Where the tokens of a batch of texts stand, and which of them may be joined.

    The nodes of a text are its places, padding included, and after them its readouts: nodes without
    an input, to which the states of its last tokens pass unchanged, one node for each of the
    `state_size` states of a token.

    Args:
        start (LongTensor): The place of every text's first token, of shape :obj:`[batch, 1]`.
        stop (LongTensor): The place after its last token, of shape :obj:`[batch, 1]`.
        context_stop (LongTensor): The place after the last token of its context, of shape
            :obj:`[batch, 1]`.
        num_places (int): The number of places of every text.
        window (int): How many places back a token may be joined to.
        num_readouts (int, optional): The number of readouts of every text. (default: :obj:`0`)
        is_token (BoolTensor, optional): Which places hold a token, of shape
            :obj:`[batch, num_places]`. (default: all)
    """

    def __init__(
        self,
        start: Tensor,
        stop: Tensor,
        context_stop: Tensor,
        num_places: int,
        window: int,
        num_readouts: int = 0,
        is_token: Tensor | None = None,
    ):
        self.start = start
        self.stop = stop
        self.context_stop = context_stop
        self.num_places = num_places
        self.window = window
        self.num_readouts = num_readouts
        self.is_token = is_token
        self.batch_size = start.size(0)
        self.num_nodes = num_places + num_readouts
        self._elsewhere: dict[torch.device, TextLayout] = {}

    def on(self, device: torch.device) -> "TextLayout":
        r"""The same texts on a device; layers on the same one share what is made of them."""
        if device == self.start.device:
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = TextLayout(
                self.start.to(device), self.stop.to(device), self.context_stop.to(device),
                self.num_places, self.window, self.num_readouts,
                None if self.is_token is None else self.is_token.to(device),
            )  # fmt: skip
        return self._elsewhere[device]

    @cached_property
    def node(self) -> Tensor:
        r"""The nodes of one text."""
        return torch.arange(self.num_nodes, device=self.start.device)

    @cached_property
    def chain(self) -> Forest:
        r"""Every node below the one before it in its text."""
        return disjoint_forest((self.node - 1).clamp(min=0).expand(self.batch_size, -1))

    @cached_property
    def is_in_reach(self) -> Tensor:
        r"""Which node follows a token of its text at distance 1, 2, ..., `window`, of shape
        :obj:`[batch, num_nodes, window]`.
        """
        distance = torch.arange(1, self.window + 1, device=self.start.device)
        return (self.node[:, None] - distance)[None] >= self.start[:, :, None]

    @cached_property
    def is_in_context(self) -> Tensor:
        r"""Which node may be joined to the ones at these distances: in the context to all, else to
        the one before it, over padding and readouts too.
        """
        is_context = self.node[None] < self.context_stop
        is_chain = torch.arange(self.window, device=self.start.device) == 0
        return is_chain | (is_context[:, :, None] & self.is_in_reach)

    @cached_property
    def is_below_token(self) -> Tensor:
        r"""Which token may have the ones at these distances as its parent."""
        is_token = (self.node[None] >= self.start) & (self.node[None] < self.stop)
        return is_token[:, :, None] & self.is_in_reach

    @cached_property
    def edge_index_of_one(self) -> Tensor:
        r"""Every node of one text and those at most `window` before it."""
        return text_edge_index(self.num_nodes, self.window, device=self.start.device)

    @cached_property
    def edge_index(self) -> Tensor:
        r"""Every node and those at most `window` before it, text after text."""
        return text_edge_index(
            self.num_nodes, self.window, num_graphs=self.batch_size, device=self.start.device
        )

    def without_readouts(self) -> "TextLayout":
        r"""The same texts, of which nothing is read out."""
        return TextLayout(
            self.start, self.stop, self.context_stop, self.num_places, self.window,
            is_token=self.is_token,
        )  # fmt: skip

    def last_tokens(self, count: int) -> tuple[Tensor, Tensor]:
        r"""The places of every text's last tokens, the very last first, and which of them it has,
        both of shape :obj:`[batch, count]`.
        """
        place = self.stop - 1 - torch.arange(count, device=self.stop.device)
        return place.clamp(min=0), place >= self.start

    def without_padding(self, x: Tensor) -> Tensor:
        r"""Features of shape :obj:`[batch, num_places, channels]` with zeros at padding."""
        return x if self.is_token is None else x * self.is_token[:, :, None].to(x.dtype)

    def with_readouts(self, x: Tensor) -> Tensor:
        r"""Features of the places, and zeros for the readouts."""
        return F.pad(x, (0, 0, 0, self.num_readouts))


def disjoint_forest(parent: Tensor) -> Forest:
    r"""The forest of several texts from the parent of each node in its own text, which stands
    before it or is the node itself, of shape :obj:`[batch, num_nodes]`.
    """
    batch_size, num_nodes = parent.shape
    order = torch.arange(batch_size * num_nodes, device=parent.device)
    return Forest._of(order, (parent + order.view_as(parent)[:, :1]).flatten())


def cosine_dissimilarity(product: Tensor, norms: Tensor) -> Tensor:
    r"""The dissimilarity of the state inputs :math:`\boldsymbol\Delta \mathbf{B} \mathbf{u}` of
    pairs of tokens,

    .. math::
        w_{ij} = \exp \left( - \cos(\mathbf{v}_i, \mathbf{v}_j) \, \cos(\mathbf{B}_i, \mathbf{B}_j)
        \right), \qquad \mathbf{v}_i = \boldsymbol\Delta_i \odot \mathbf{u}_i

    since these are outer products.

    Args:
        product (Tensor): The scalar products of the state inputs.
        norms (Tensor): The products of their norms.
    """
    similarity = product / norms.clamp(min=1e-12)
    # Equal tokens are ties, which rounding must not decide.
    similarity = torch.where(similarity > 1 - 1e-6, 1.0, similarity)
    return torch.exp(-similarity)


def state_input_norm(v: Tensor, B: Tensor) -> Tensor:
    r"""The norms of state inputs, the outer products of `v` and `B`."""
    return torch.linalg.vector_norm(v, dim=-1) * torch.linalg.vector_norm(B, dim=-1)


def state_input_product(v_i: Tensor, B_i: Tensor, v_j: Tensor, B_j: Tensor) -> Tensor:
    r"""The scalar products of pairs of state inputs, the outer products of `v` and `B`."""
    dot = "...c,...c->..."
    return torch.einsum(dot, v_i, v_j) * torch.einsum(dot, B_i, B_j)


class TextTree(nn.Module):
    r"""A kind of tree over texts: how it is grown from the tokens, how states pass along it, and
    what the next token needs of it. No gradient flows through the choice of its edges.

    Args:
        window (int): How many places back a token may be joined to.
    """

    def __init__(self, window: int):
        super().__init__()
        self.window = window

    @torch.no_grad()
    def forward(self, v: Tensor, B: Tensor, layout: TextLayout) -> Forest:
        r"""Grows one tree over every text.

        Args:
            v (Tensor): The inputs times their steps, of shape :obj:`[batch, num_places, channels]`.
            B (Tensor): The input matrices, of shape :obj:`[batch, num_places, state_size]`.
            layout (TextLayout): Where the tokens stand.

        Returns:
            Forest: The trees over the nodes of all texts, text after text.
        """
        weight = v.new_zeros(*v.shape[:2], self.window)
        with autocast_off(v.device):
            norm = state_input_norm(v, B)
            for distance in range(1, min(self.window, layout.num_places - 1) + 1):
                product = state_input_product(
                    v[:, :-distance], B[:, :-distance], v[:, distance:], B[:, distance:]
                )
                norms = norm[:, :-distance] * norm[:, distance:]
                weight[:, distance:, distance - 1] = cosine_dissimilarity(product, norms)
        return self.grow(layout.with_readouts(weight), layout)

    def grow(self, weight: Tensor, layout: TextLayout) -> Forest:
        r"""Grows the trees.

        Args:
            weight (Tensor): The dissimilarities of every node and those at distance 1, 2, ...,
                `window` before it, of shape :obj:`[batch, num_nodes, window]`.
            layout (TextLayout): Where the tokens stand.
        """
        raise NotImplementedError

    def scan(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, forest: Forest
    ) -> Tensor:
        r"""Passes states along the trees and reads them, as
        :func:`groot_graph.selective_tree_scan` does.
        """
        raise NotImplementedError

    def step_of_edge(self, delta: Tensor) -> Tensor:
        r"""The steps whose transitions pass from every node to its parent and back.

        Args:
            delta (Tensor): The steps of all nodes, of shape :obj:`[num_nodes, channels]`.
        """
        raise NotImplementedError

    def num_readouts(self, state_size: int) -> int:
        r"""How many nodes it takes to read out of every text what the next token needs."""
        raise NotImplementedError

    def remember(self, chain: Tensor, tree: Tensor, scale: float) -> dict[str, Tensor]:
        r"""What the next token needs of the states.

        Args:
            chain (Tensor): The readouts of the chain, of shape
                :obj:`[batch, num_readouts, channels]`.
            tree (Tensor): The readouts of the tree, of the same shape.
            scale (float): How much of the tree's states is added to those of the chain.
        """
        raise NotImplementedError

    def remember_tokens(self, v: Tensor, B: Tensor, layout: TextLayout) -> dict[str, Tensor]:
        r"""What the next token needs of the tokens before it; arguments are those of
        :meth:`forward`.
        """
        raise NotImplementedError

    def step(
        self, memory: dict[str, Tensor], transition: Tensor, v: Tensor, B: Tensor, scale: float
    ) -> Tensor:
        r"""Adds the next token of every text to its chain and its tree.

        Args:
            memory (dict): What is remembered of the texts, brought up to date in place.
            transition (Tensor): The transitions of the token, of shape
                :obj:`[batch, state_size, channels]`.
            v (Tensor): Its input times its step, of shape :obj:`[batch, channels]`.
            B (Tensor): Its input matrix, of shape :obj:`[batch, state_size]`.
            scale (float): How much of the tree's states is added to those of the chain.

        Returns:
            Tensor: The sum of its states, of shape :obj:`[batch, state_size, channels]`.
        """
        raise NotImplementedError


class ContextTree(TextTree):
    r"""The published tree: the minimum spanning tree over the context, and the chain of what
    follows, rooted at the last token, scanned from its leaves to its root. A token of the context
    may hear a later one.

    A chain follows the context, so chain and tree have one state between them to remember.
    """

    def grow(self, weight: Tensor, layout: TextLayout) -> Forest:
        weight = weight.masked_fill(~layout.is_in_context, torch.inf)
        before, token = layout.edge_index_of_one
        edge_weight = weight[:, token, token - before - 1].flatten()
        num_nodes = layout.batch_size * layout.num_nodes
        edge_mask = trusted_minimum_spanning_forest(
            layout.edge_index, edge_weight, num_nodes, weight_name="hidden_states"
        )
        return trusted_root_forest(layout.edge_index, edge_mask, num_nodes, root="last")

    def scan(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, forest: Forest
    ) -> Tensor:
        step = self.step_of_edge(delta)
        return trusted_selective_tree_scan(
            u, delta, A, B, C, forest, direction="up", transition_delta=step
        )

    def step_of_edge(self, delta: Tensor) -> Tensor:
        # The edge from a token carries the transition of the next one.
        return delta.roll(-1, dims=0)

    def num_readouts(self, state_size: int) -> int:
        return state_size

    def remember(self, chain: Tensor, tree: Tensor, scale: float) -> dict[str, Tensor]:
        return {"state": torch.add(chain, tree, alpha=scale)}

    def remember_tokens(self, v: Tensor, B: Tensor, layout: TextLayout) -> dict[str, Tensor]:
        # The next token joins the last one, whatever it is.
        return {}

    def step(
        self, memory: dict[str, Tensor], transition: Tensor, v: Tensor, B: Tensor, scale: float
    ) -> Tensor:
        x = v[:, None] * B[:, :, None]
        memory["state"] = transition * memory["state"] + (1 + scale) * x
        return memory["state"]


class CausalTree(TextTree):
    r"""Every token below the most similar one of the `window` before it, scanned from the root, the
    first token, to the leaves: no token hears a later one.
    """

    def grow(self, weight: Tensor, layout: TextLayout) -> Forest:
        is_candidate = layout.is_below_token
        weight = weight.masked_fill(~is_candidate, torch.inf)
        parent = layout.node - 1 - weight.argmin(dim=-1)
        parent = torch.where(is_candidate.any(dim=-1), parent, layout.node)
        if layout.num_readouts > 0:
            parent[:, layout.num_places :] = self._read(layout)
        return disjoint_forest(parent)

    def _read(self, layout: TextLayout) -> Tensor:
        r"""The readouts' parents: of each of the last tokens those that read its states, or none
        where a text is shorter.
        """
        token, exists = layout.last_tokens(self.window)
        readout = layout.node[layout.num_places :].view(self.window, -1)
        return torch.where(exists[:, :, None], token[:, :, None], readout).flatten(1)

    def scan(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, forest: Forest
    ) -> Tensor:
        return trusted_selective_tree_scan(u, delta, A, B, C, forest, direction="down")

    def step_of_edge(self, delta: Tensor) -> Tensor:
        return delta

    def num_readouts(self, state_size: int) -> int:
        return self.window * state_size

    def remember(self, chain: Tensor, tree: Tensor, scale: float) -> dict[str, Tensor]:
        # Copies, because views would keep the outputs of all tokens alive.
        states = tree.clone().unflatten(1, (self.window, -1))
        return {"state": chain[:, : states.size(2)].clone(), "window_state": states}

    def remember_tokens(self, v: Tensor, B: Tensor, layout: TextLayout) -> dict[str, Tensor]:
        token, exists = layout.last_tokens(self.window)
        return {
            "window_v": _take(v, token),
            "window_B": _take(B, token),
            "window_exists": exists,
        }

    def step(
        self, memory: dict[str, Tensor], transition: Tensor, v: Tensor, B: Tensor, scale: float
    ) -> Tensor:
        x = v[:, None] * B[:, :, None]
        state = transition * self._states_above(memory, v[:, None], B[:, None]) + x
        memory["state"] = transition * memory["state"] + x
        exists = torch.ones_like(memory["window_exists"][:, 0])
        newest = {"state": state, "v": v, "B": B, "exists": exists}
        for name, value in newest.items():
            window = memory[f"window_{name}"]
            memory[f"window_{name}"] = torch.cat([value[:, None], window[:, :-1]], dim=1)
        return torch.add(memory["state"], state, alpha=scale)

    def _states_above(self, memory: dict[str, Tensor], v: Tensor, B: Tensor) -> Tensor:
        r"""The states of the most similar one of the tokens in the window."""
        window = memory["window_v"], memory["window_B"]
        with autocast_off(v.device):
            norms = state_input_norm(*window) * state_input_norm(v, B)
            weight = cosine_dissimilarity(state_input_product(*window, v, B), norms)
        parent = weight.masked_fill(~memory["window_exists"], torch.inf).argmin(dim=1)
        return memory["window_state"][torch.arange(len(parent), device=parent.device), parent]


def _take(x: Tensor, place: Tensor) -> Tensor:
    return x.gather(1, place[:, :, None].expand(-1, -1, x.size(2)))


TEXT_TREES: dict[str, type[TextTree]] = {"context": ContextTree, "causal": CausalTree}
