r"""The mixer of GrootL, and the ways in which texts come to it."""

from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.mamba.modeling_mamba import MambaMixer

from groot_graph.forest import Forest
from groot_graph.models.grootl.cache import GrootLCache
from groot_graph.models.grootl.config import GrootLConfig
from groot_graph.models.grootl.trees import TEXT_TREES, TextLayout
from groot_graph.ops.selective_tree_scan.api import trusted_selective_tree_scan


class WholeTexts:
    r"""Texts that are read from their first token on, and of which nothing is remembered.

    Args:
        layout (TextLayout): Where their tokens stand.
    """

    def __init__(self, layout: TextLayout):
        self.layout = layout

    def mixed_by(self, mixer: "GrootLMixer", u: Tensor) -> Tensor:
        return mixer.scan(u, self.layout.on(u.device))


class Prompts:
    r"""Texts that are read from their first token on, and gone on with later.

    Args:
        layout (TextLayout): Where their tokens stand, with the readouts of the tree.
        cache (GrootLCache): What is remembered of them.
    """

    def __init__(self, layout: TextLayout, cache: GrootLCache):
        self.layout = layout
        self.cache = cache

    def mixed_by(self, mixer: "GrootLMixer", u: Tensor) -> Tensor:
        return mixer.prefill(u, self.layout.on(u.device), self.cache.layers[mixer.layer_idx])


class NextTokens:
    r"""Tokens that follow the texts of a cache.

    Args:
        cache (GrootLCache): What is remembered of these texts.
    """

    def __init__(self, cache: GrootLCache):
        self.cache = cache

    def mixed_by(self, mixer: "GrootLMixer", u: Tensor) -> Tensor:
        return mixer.step(u, self.cache.layers[mixer.layer_idx])


class SeenTexts:
    r"""Whole texts of which is kept what a mixer passes along, in place of what comes of it.

    Args:
        layout (TextLayout): Where their tokens stand.
    """

    def __init__(self, layout: TextLayout):
        self.layout = layout

    def mixed_by(self, mixer: "GrootLMixer", u: Tensor) -> Tensor:
        self.seen = mixer.look(u, self.layout.on(u.device))
        return torch.zeros_like(u)


Texts: TypeAlias = WholeTexts | Prompts | NextTokens | SeenTexts


class Operands(NamedTuple):
    r"""What a selective scan takes, of a batch of texts or of all their nodes."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor

    def of_nodes(self) -> "Operands":
        r"""The operands of a batch of texts, text after text."""
        u, delta, A, B, C = self
        return Operands(u.flatten(0, 1), delta.flatten(0, 1), A, B.flatten(0, 1), C.flatten(0, 1))


class StepProjection(nn.Linear):
    r"""A linear layer that adds its bias in single precision, because that of Mamba's step is many
    times as large as what it is added to.
    """

    def forward(self, x: Tensor) -> Tensor:
        return at_least_single(F.linear(x, self.weight)) + self.bias


class RowConvolution(nn.Conv1d):
    r"""A convolution of each channel over what it is given and no padding, computed as that of an
    image of one row with its channels last, because a conv1d copies to channels first.
    """

    @classmethod
    def of(cls, conv1d: nn.Conv1d) -> "RowConvolution":
        r"""The convolution with the same parameters, of which none is drawn anew."""
        channels, size = conv1d.out_channels, conv1d.kernel_size[0]
        convolution = cls(channels, channels, size, groups=channels, bias=False, device="meta")
        convolution.weight, convolution.bias = conv1d.weight, conv1d.bias
        return convolution

    def forward(self, x: Tensor) -> Tensor:
        row = x.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        row = F.conv2d(row, self.weight.unsqueeze(2), self.bias, groups=self.groups)
        return row.squeeze(2)


class GrootLMixer(MambaMixer):
    r"""The mixer of Mamba, with its parameters, whose states are those of the chain and
    `tree_scale` times those of the tree.

    Args:
        config (GrootLConfig): The configuration.
        layer_idx (int): The number of the layer, by which it finds its part of a cache.
    """

    def __init__(self, config: GrootLConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.conv1d = RowConvolution.of(self.conv1d)
        self.dt_proj = StepProjection(self.time_step_rank, self.intermediate_size)
        self.tree = TEXT_TREES[config.tree_mode](config.tree_window)

    def forward(self, hidden_states: Tensor, texts: Texts) -> Tensor:
        r"""Mixes the tokens.

        Args:
            hidden_states (Tensor): Of shape :obj:`[batch, num_places, hidden_size]`.
            texts (WholeTexts or Prompts or NextTokens): The texts, which know whether
                :meth:`scan`, :meth:`prefill` or :meth:`step` mixes them.

        Returns:
            Tensor: Of the shape and dtype of `hidden_states`.
        """
        u, gate = self.in_proj(hidden_states).chunk(2, dim=-1)
        y = texts.mixed_by(self, u)
        return self.out_proj((y * F.silu(gate)).to(hidden_states.dtype))

    def scan(self, u: Tensor, layout: TextLayout) -> Tensor:
        r"""Mixes whole texts.

        Args:
            u (Tensor): The inputs, of shape :obj:`[batch, num_places, channels]`.
            layout (TextLayout): Where the tokens stand.
        """
        return self._scan(self._operands_of_texts(self._from_the_start(u, layout), layout), layout)

    def prefill(self, u: Tensor, layout: TextLayout, memory: dict[str, Tensor]) -> Tensor:
        r"""Mixes whole texts, and remembers what their next tokens need.

        Args:
            u (Tensor): The inputs, of shape :obj:`[batch, num_places, channels]`.
            layout (TextLayout): Where the tokens stand, with the readouts of the tree.
            memory (dict): What this layer remembers, filled here.
        """
        u = self._from_the_start(u, layout)
        memory["inputs"] = self._last_inputs(u, layout)
        operands = self._operands_of_texts(u, layout)
        nodes = self._with_readouts(operands, layout).of_nodes()
        v = self._tree_input(operands)
        chain, tree = self._scan_chain(nodes, layout), self._scan_tree(nodes, v, operands.B, layout)
        scale, num_places = self.config.tree_scale, layout.num_places
        memory.update(self.tree.remember(chain[:, num_places:], tree[:, num_places:], scale))
        memory.update(self.tree.remember_tokens(v, operands.B, layout))
        return torch.add(chain, tree, alpha=scale)[:, :num_places]

    def step(self, u: Tensor, memory: dict[str, Tensor]) -> Tensor:
        r"""Mixes the next tokens, one after the other.

        Args:
            u (Tensor): The inputs, of shape :obj:`[batch, num_tokens, channels]`.
            memory (dict): What this layer remembers, brought up to date in place.
        """
        u = torch.cat([memory["inputs"], u], dim=1)
        memory["inputs"] = u[:, u.size(1) - self.conv_kernel_size + 1 :].clone()
        u, delta, A, B, C = self._operands(self._convolve(u))
        v, A = delta * u, A.t()
        scale = self.config.tree_scale
        states = [
            self.tree.step(
                memory, (delta[:, place, None] * A).exp(), v[:, place], B[:, place], scale
            )
            for place in range(u.size(1))
        ]
        return (torch.stack(states, dim=1) * C[..., None]).sum(dim=2) + self._skip() * u

    def forest_and_transition(self, hidden_states: Tensor, texts: Texts) -> tuple[Forest, Tensor]:
        r"""What the states of whole texts pass along.

        Args:
            hidden_states (Tensor): Of shape :obj:`[batch, num_places, hidden_size]`.
            texts (WholeTexts or Prompts): The texts.

        Returns:
            (Forest, Tensor): The trees over the places of all texts, text after text, and the
            transitions of their edges, of shape :obj:`[batch * num_places, channels * state_size]`.

        Raises:
            ValueError: If the tokens follow texts of a cache, whose trees are forgotten.
        """
        if isinstance(texts, NextTokens):
            raise ValueError("'past_key_values' must be empty for a forest over whole texts")
        texts = SeenTexts(texts.layout.without_readouts())
        # Through the call, which puts weights in their place that are kept elsewhere.
        self(hidden_states, texts)
        return texts.seen

    def look(self, u: Tensor, layout: TextLayout) -> tuple[Forest, Tensor]:
        r"""The trees over whole texts and the transitions of their edges.

        Args:
            u (Tensor): The inputs, of shape :obj:`[batch, num_places, channels]`.
            layout (TextLayout): Where the tokens stand.
        """
        operands = self._operands_of_texts(self._from_the_start(u, layout), layout)
        forest = self.tree(self._tree_input(operands), operands.B, layout)
        step = self.tree.step_of_edge(operands.of_nodes().delta)
        return forest, (step[:, :, None] * operands.A).exp().flatten(1)

    def _from_the_start(self, u: Tensor, layout: TextLayout) -> Tensor:
        r"""The inputs of the convolution, with nothing before the first."""
        nothing = u.new_zeros(u.size(0), self.conv_kernel_size - 1, u.size(2))
        return torch.cat([nothing, layout.without_padding(u)], dim=1)

    def _last_inputs(self, u: Tensor, layout: TextLayout) -> Tensor:
        r"""The inputs that the convolution of the next token reads."""
        row = layout.stop + torch.arange(self.conv_kernel_size - 1, device=u.device)
        return u.gather(1, row[:, :, None].expand(-1, -1, u.size(2)))

    def _convolve(self, u: Tensor) -> Tensor:
        return self.act(self.conv1d(u.transpose(1, 2)).transpose(1, 2))

    def _operands_of_texts(self, u: Tensor, layout: TextLayout) -> Operands:
        operands = self._operands(layout.without_padding(self._convolve(u)))
        # Steps of zero let states pass unchanged.
        return operands._replace(delta=layout.without_padding(operands.delta))

    def _operands(self, u: Tensor) -> Operands:
        sizes = [self.time_step_rank, self.ssm_state_size, self.ssm_state_size]
        delta, B, C = self.x_proj(u).split(sizes, dim=-1)
        delta = F.softplus(self.dt_proj(delta))
        u, A_log, B, C = map(at_least_single, (u, self.A_log, B, C))
        return Operands(u, delta, -A_log.exp(), B, C)

    def _skip(self) -> Tensor:
        return at_least_single(self.D)

    def _scan(self, operands: Operands, layout: TextLayout) -> Tensor:
        nodes, scale = operands.of_nodes(), self.config.tree_scale
        chain = self._scan_chain(nodes, layout)
        if scale == 0:
            return chain
        tree = self._scan_tree(nodes, self._tree_input(operands), operands.B, layout)
        return torch.add(chain, tree, alpha=scale)

    @torch.no_grad()
    def _tree_input(self, operands: Operands) -> Tensor:
        return operands.delta * operands.u

    def _scan_chain(self, nodes: Operands, layout: TextLayout) -> Tensor:
        y = trusted_selective_tree_scan(*nodes, layout.chain, self._skip(), "down")
        return y.view(layout.batch_size, layout.num_nodes, -1)

    def _scan_tree(self, nodes: Operands, v: Tensor, B: Tensor, layout: TextLayout) -> Tensor:
        shape = layout.batch_size, layout.num_nodes, -1
        if self.config.tree_scale == 0:
            return torch.zeros_like(nodes.u).view(shape)
        return self.tree.scan(*nodes, self.tree(v, B, layout)).view(shape)

    def _with_readouts(self, operands: Operands, layout: TextLayout) -> Operands:
        r"""The operands of places and readouts."""
        u, delta, A, B, C = operands
        u, delta, B, C = map(layout.with_readouts, (u, delta, B, C))
        # A readout gives its own one of the states.
        states = torch.eye(self.ssm_state_size, dtype=C.dtype, device=C.device)
        num_read = layout.num_readouts // self.ssm_state_size
        C[:, layout.num_places :] = states.repeat(num_read, 1)
        return Operands(u, delta, A, B, C)


def at_least_single(x: Tensor) -> Tensor:
    r"""The values in single precision, or double where they have it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
