r"""GrootL: a pretrained Mamba language model whose states also pass along a tree over the text.

The import makes it known to the Auto classes of transformers.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    from transformers import AutoConfig, AutoModelForCausalLM, MambaConfig, MambaForCausalLM
    from transformers.generation import GenerationMixin
    from transformers.modeling_layers import GradientCheckpointingLayer
    from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
    from transformers.models.mamba.modeling_mamba import (
        MambaMixer,
        MambaPreTrainedModel,
        MambaRMSNorm,
    )
    from transformers.utils.generic import can_return_tuple
except ImportError as error:
    raise ImportError(
        'GrootLForCausalLM needs transformers >= 5.5: pip install "groot-graph[text]"'
    ) from error

from groot_graph import checks
from groot_graph.checks import (
    check_choice,
    check_number,
    check_positive_int,
)
from groot_graph.models.grootl.trees import TEXT_TREES, TextLayout
from groot_graph.ops.selective_tree_scan import selective_tree_scan

# What transformers calls the memory of generation: "cache" from 5.24 on.
CACHE_NAME = "cache" if hasattr(CausalLMOutputWithPast, "cache") else "past_key_values"

# The label of tokens that the loss leaves out.
IGNORED = -100

# u, delta, A, B, C, D of a batch of texts, and u, delta, A, B, C of all their nodes.
Operands: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
NodeOperands: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class GrootLConfig(MambaConfig):
    r"""The configuration of :class:`GrootLForCausalLM`: that of a Mamba, and of its tree.

    Args:
        tree_window (int, optional): How many tokens back a token may be joined to.
            (default: :obj:`3`)
        tree_scale (float, optional): How much of the tree's states is added to those of the chain;
            :obj:`0` is exactly Mamba. (default: :obj:`0.3`)
        tree_mode (str, optional): :obj:`"context"`, the published minimum spanning tree over the
            context, in which a token of the context also hears later ones; or :obj:`"causal"`, in
            which every token hears the most similar of its `tree_window` predecessors, and through
            it that one's, and none ever hears a later one. (default: :obj:`"context"`)
        **kwargs (optional): Arguments of :class:`transformers.MambaConfig`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `tree_window` is below one, `tree_scale` is not finite or `tree_mode` is
            unknown, or if a checkpoint is read that is neither of Mamba nor of GrootL.

    Example:
        >>> from groot_graph.models.grootl import GrootLConfig
        >>> config = GrootLConfig(hidden_size=32, num_hidden_layers=2, tree_mode="causal")
        >>> config.tree_window, config.tree_scale
        (3, 0.3)
    """

    model_type = "grootl"
    keys_to_ignore_at_inference = [CACHE_NAME]

    def __init__(
        self,
        tree_window: int = 3,
        tree_scale: float = 0.3,
        tree_mode: str = "context",
        **kwargs,
    ):
        self.tree_window = tree_window
        self.tree_scale = tree_scale
        self.tree_mode = tree_mode
        self.check_tree()
        super().__init__(**kwargs)

    def check_tree(self) -> None:
        r"""Refuses settings of the tree that do not fit, with a TypeError or a ValueError."""
        check_positive_int("tree_window", self.tree_window)
        check_number("tree_scale", self.tree_scale)
        if not math.isfinite(self.tree_scale):
            raise ValueError(f"'tree_scale' must be finite, got {self.tree_scale}")
        check_choice("tree_mode", self.tree_mode, tuple(TEXT_TREES))

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        found = config.get("model_type")
        if found not in (MambaConfig.model_type, cls.model_type):
            raise ValueError(
                "'pretrained_model_name_or_path' must be a Hugging Face checkpoint of model_type "
                f"'{MambaConfig.model_type}' or '{cls.model_type}', got {found!r} in "
                f"'{pretrained_model_name_or_path}'"
            )
        return {**config, "model_type": cls.model_type}, kwargs


class GrootLCache:
    r"""What generation remembers of its texts, in memory that does not grow with them.

    Attributes:
        layers (list of dict): The tensors of every layer, with the batch as first dimension.
        num_tokens (int): The number of places so far, padding included.
    """

    # What generation asks a cache.
    is_compileable = False
    is_croppable = False
    is_linear = (False,)  # It knows its number of tokens.

    def __init__(self, num_layers: int):
        self.layers: list[dict[str, Tensor]] = [{} for _ in range(num_layers)]
        self.num_tokens = 0

    def get_seq_length(self) -> int:
        r"""The number of places so far, padding included."""
        return self.num_tokens

    def reorder_cache(self, beam_idx: Tensor) -> None:
        r"""Puts the texts of the given numbers in place of the old ones, as beam search asks."""
        for layer in self.layers:
            for name, value in layer.items():
                layer[name] = value.index_select(0, beam_idx.to(value.device))


class StepProjection(nn.Linear):
    r"""A linear layer that adds its bias in single precision, because that of Mamba's step is many
    times as large as what it is added to.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _at_least_single(F.linear(x, self.weight)) + self.bias


class GrootLMixer(MambaMixer):
    r"""The mixer of Mamba, with its parameters, whose states are those of the chain and
    `tree_scale` times those of the tree.
    """

    def __init__(self, config: GrootLConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.dt_proj = StepProjection(self.time_step_rank, self.intermediate_size)
        self.tree = TEXT_TREES[config.tree_mode](config.tree_window)

    def forward(
        self, hidden_states: Tensor, layout: TextLayout | None, memory: dict | None
    ) -> Tensor:
        r"""Mixes the tokens.

        Args:
            hidden_states (Tensor): Of shape :obj:`[batch, num_places, hidden_size]`.
            layout (TextLayout, optional): Where the tokens of whole texts stand; None where texts
                go on.
            memory (dict, optional): What this layer remembers, brought up to date in place.

        Returns:
            Tensor: Of the shape and dtype of `hidden_states`.
        """
        u, gate = self.in_proj(hidden_states).chunk(2, dim=-1)
        u = self._with_inputs_before(u, layout, memory)
        u = self.act(self._convolve(u))
        if layout is None:
            assert memory is not None
            y = self._go_on(*self._operands(u), memory)
        else:
            y = self._scan(*self._operands(u, layout), layout, memory)
        return self.out_proj((y * F.silu(gate)).to(hidden_states.dtype))

    def _with_inputs_before(
        self, u: Tensor, layout: TextLayout | None, memory: dict | None
    ) -> Tensor:
        r"""The inputs of the convolution, those before the first included."""
        num_before = self.conv_kernel_size - 1
        if layout is None:
            assert memory is not None
            u = torch.cat([memory["inputs"], u], dim=1)
            memory["inputs"] = u[:, u.size(1) - num_before :].clone()
            return u
        nothing = u.new_zeros(u.size(0), num_before, u.size(2))
        u = torch.cat([nothing, layout.without_padding(u)], dim=1)
        if memory is not None:
            row = layout.stop + torch.arange(num_before, device=u.device)
            memory["inputs"] = u.gather(1, row[:, :, None].expand(-1, -1, u.size(2)))
        return u

    def _convolve(self, u: Tensor) -> Tensor:
        # An image of one row with its channels last, because a conv1d copies to channels first.
        row = u.transpose(1, 2).unsqueeze(2).contiguous(memory_format=torch.channels_last)
        weight, bias = self.conv1d.weight.unsqueeze(2), self.conv1d.bias
        row = F.conv2d(row, weight, bias, groups=self.intermediate_size)
        return row.squeeze(2).transpose(1, 2)

    def _operands(self, u: Tensor, layout: TextLayout | None = None) -> Operands:
        u = u if layout is None else layout.without_padding(u)
        sizes = [self.time_step_rank, self.ssm_state_size, self.ssm_state_size]
        delta, B, C = self.x_proj(u).split(sizes, dim=-1)
        delta = F.softplus(self.dt_proj(delta))
        # Steps of zero let states pass unchanged.
        delta = delta if layout is None else layout.without_padding(delta)
        u, A_log, B, C, D = map(_at_least_single, (u, self.A_log, B, C, self.D))
        return u, delta, -A_log.exp(), B, C, D

    def _scan(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        layout: TextLayout,
        memory: dict | None,
    ) -> Tensor:
        scale = self.config.tree_scale
        operands = self._nodes(u, delta, A, B, C, layout, memory is not None)
        shape = layout.batch_size, -1, u.size(2)
        chain = selective_tree_scan(*operands, layout.chain, D, "down").view(shape)
        if scale == 0 and memory is None:
            return chain
        with torch.no_grad():
            v = delta * u
        tree = self._scan_tree(operands, v, B, layout).view(shape)
        if memory is not None:
            readouts = chain[:, layout.num_places :], tree[:, layout.num_places :]
            memory.update(self.tree.remember(*readouts, scale, v, B, layout))
        return torch.add(chain, tree, alpha=scale)[:, : layout.num_places]

    def _scan_tree(
        self, operands: NodeOperands, v: Tensor, B: Tensor, layout: TextLayout
    ) -> Tensor:
        if self.config.tree_scale == 0:
            return torch.zeros_like(operands[0])
        return self.tree.scan(*operands, self.tree(v, B, layout))

    def _nodes(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        layout: TextLayout,
        has_readouts: bool,
    ) -> NodeOperands:
        r"""The operands of a scan over the nodes of all texts."""
        if has_readouts:
            u, delta, B, C = map(layout.with_readouts, (u, delta, B, C))
            # A readout gives its own one of the states.
            states = torch.eye(self.ssm_state_size, dtype=C.dtype, device=C.device)
            num_read = layout.num_readouts // self.ssm_state_size
            C[:, layout.num_places :] = states.repeat(num_read, 1)
        return u.flatten(0, 1), delta.flatten(0, 1), A, B.flatten(0, 1), C.flatten(0, 1)

    def _go_on(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        memory: dict,
    ) -> Tensor:
        r"""Token by token, along the chain or the causal tree that the remembered ones began."""
        v = delta * u
        states = [
            self.tree.step(
                memory,
                (delta[:, place, None] * A.t()).exp(),
                v[:, place, None] * B[:, place, :, None],
                self.config.tree_scale,
                v[:, place],
                B[:, place],
            )
            for place in range(u.size(1))
        ]
        return (torch.stack(states, dim=1) * C[..., None]).sum(dim=2) + D * u


class GrootLBlock(GradientCheckpointingLayer):
    r"""A :class:`GrootLMixer`, normalized before and added to its input."""

    def __init__(self, config: GrootLConfig, layer_idx: int):
        super().__init__()
        self.residual_in_fp32 = config.residual_in_fp32
        self.norm = MambaRMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mixer = GrootLMixer(config, layer_idx)

    def forward(
        self, hidden_states: Tensor, layout: TextLayout | None, memory: dict | None
    ) -> Tensor:
        residual = _at_least_single(hidden_states) if self.residual_in_fp32 else hidden_states
        normalized = self.norm(hidden_states.to(self.norm.weight.dtype))
        return residual + self.mixer(normalized, layout, memory)


class GrootLPreTrainedModel(MambaPreTrainedModel):
    config_class = GrootLConfig
    _no_split_modules = ["GrootLBlock"]


class GrootLModel(GrootLPreTrainedModel):
    r"""The blocks of :class:`GrootLForCausalLM`, from tokens to their last hidden states.

    Args:
        config (GrootLConfig): The configuration.
    """

    def __init__(self, config: GrootLConfig):
        # from_pretrained() overwrites settings of a configuration that was checked before.
        config.check_tree()
        super().__init__(config)
        self.embeddings: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            GrootLBlock(config, layer_idx) for layer_idx in range(config.num_hidden_layers)
        )
        self.norm_f = MambaRMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def set_input_embeddings(self, new_embeddings: nn.Module) -> None:
        self.embeddings = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: GrootLCache | None = None,
        context_lengths: "int | Sequence[int] | Tensor | None" = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        r"""Arguments and output as those of :class:`GrootLForCausalLM`."""
        config = self.config
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of 'input_ids' and 'inputs_embeds' must be given")
        if use_cache is None:
            use_cache = config.use_cache and not self.training
        if use_cache and self.gradient_checkpointing and self.training:
            raise ValueError("'use_cache' must be False in training with gradient checkpointing")
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = GrootLCache(len(self.layers))
        layout = self._layout(x, attention_mask, context_lengths, past_key_values)

        hidden_states = []
        for index, layer in enumerate(self.layers):
            x = layer(x, layout, None if past_key_values is None else past_key_values.layers[index])
            if output_hidden_states:
                hidden_states.append(x)
        x = self.norm_f(x)
        if past_key_values is not None:
            past_key_values.num_tokens += x.size(1)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            hidden_states=(*hidden_states, x) if output_hidden_states else None,
            **{CACHE_NAME: past_key_values},  # type: ignore[arg-type]
        )

    def _layout(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        context_lengths: "int | Sequence[int] | Tensor | None",
        past_key_values: GrootLCache | None,
    ) -> TextLayout | None:
        batch_size, num_places = x.shape[:2]
        mask = _checked_mask(attention_mask, batch_size, num_places, x.device)
        if past_key_values is not None and past_key_values.num_tokens > 0:
            _check_goes_on(mask, context_lengths)
            return None
        start, length = _extent(mask, x)
        context_lengths = _checked_context_lengths(context_lengths, length, num_places)
        tree = cast(GrootLBlock, self.layers[0]).mixer.tree
        num_readouts = 0
        if past_key_values is not None:
            num_readouts = tree.num_readouts(self.config.state_size)
        return TextLayout(
            start, start + length, start + context_lengths, num_places, tree.window, num_readouts,
            mask,
        )  # fmt: skip


class GrootLForCausalLM(GrootLPreTrainedModel, GenerationMixin):
    r"""The language model of the `"GrootVL: Tree Topology is All You Need in State Space Model"
    <https://arxiv.org/abs/2406.02395>`_ paper (Section 3.3): a Mamba whose states also
    pass along a tree over the text, grown from the tokens' own state inputs.

    .. math::
        \mathbf{h}_t = \mathbf{h}^{\mathrm{chain}}_t + s \, \mathbf{h}^{\mathrm{tree}}_t, \qquad
        \mathbf{y}_t = \mathbf{C}_t \mathbf{h}_t + \mathbf{D} \odot \mathbf{u}_t

    Its parameters are those of :class:`transformers.MambaForCausalLM`, under the same names: any
    such checkpoint is loaded by :meth:`~transformers.PreTrainedModel.from_pretrained`.

    In the published mode, :obj:`tree_mode="context"`, tokens of the context (the prompt) hear later
    tokens of the context. Their logits must not be taken as a language model's prediction of the
    next token; those of the last token of the context and of all tokens after it may.
    :obj:`tree_mode="causal"` has no such tokens.

    Args:
        config (GrootLConfig): The configuration.

    Example:
        >>> import torch
        >>> from groot_graph.models import GrootLForCausalLM
        >>> from groot_graph.models.grootl import GrootLConfig
        >>> config = GrootLConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2)
        >>> model = GrootLForCausalLM(config).eval()
        >>> model(torch.arange(12).view(2, 6), context_lengths=[4, 6]).logits.shape
        torch.Size([2, 6, 50])
        >>> model.generate(torch.arange(6).view(1, 6), max_new_tokens=3, min_new_tokens=3).shape
        torch.Size([1, 9])
    """

    _tied_weights_keys = MambaForCausalLM._tied_weights_keys

    def __init__(self, config: GrootLConfig):
        super().__init__(config)
        self.backbone = GrootLModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_mamba(cls, model: MambaForCausalLM, **kwargs) -> "GrootLForCausalLM":
        r"""Copies a Mamba.

        Args:
            model (transformers.MambaForCausalLM): The Mamba. It is left as it is.
            **kwargs (optional): Arguments of :class:`~groot_graph.models.grootl.GrootLConfig` that
                differ.

        Returns:
            GrootLForCausalLM: With a copy of its weights, on its device, in its dtype and mode.

        Raises:
            TypeError: If `model` is not a Mamba.
        """
        if not isinstance(model, MambaForCausalLM):
            raise TypeError(
                f"'model' must be a transformers.MambaForCausalLM, got {type(model).__name__}"
            )
        config = GrootLConfig(**{**_without_type(model.config.to_dict()), **kwargs})
        with torch.device("meta"):
            grootl = cls(config)
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        grootl.load_state_dict(weights, assign=True)
        grootl.tie_weights()
        grootl.generation_config = deepcopy(model.generation_config)
        return grootl.train(model.training)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, new_embeddings: nn.Module) -> None:
        self.backbone.set_input_embeddings(new_embeddings)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: GrootLCache | None = None,
        labels: Tensor | None = None,
        context_lengths: "int | Sequence[int] | Tensor | None" = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: GrootLCache | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        r"""The logits of the next tokens.

        Args:
            input_ids (LongTensor, optional): The tokens, of shape :obj:`[batch, num_tokens]`.
            attention_mask (Tensor, optional): 0 at padding, which stands before or after a text, of
                shape :obj:`[batch, num_tokens]`. (default: no padding)
            inputs_embeds (Tensor, optional): The tokens' embeddings, of shape
                :obj:`[batch, num_tokens, hidden_size]`, in place of `input_ids`.
            past_key_values (GrootLCache, optional): What is remembered of the texts that the tokens
                follow; it is brought up to date in place. (default: :obj:`None`)
            labels (LongTensor, optional): The tokens to predict, of shape
                :obj:`[batch, num_tokens]`, -100 at those that the loss leaves out. They are shifted
                here: give the input itself. (default: :obj:`None`)
            context_lengths (int or list or LongTensor, optional): How many tokens from the first
                one on the tree is grown over, for all texts or for each. The mode
                :obj:`"causal"` grows it over whole texts in any case. (default: with `labels` the
                leading tokens whose label is -100, else the whole text)
            use_cache (bool, optional): Whether to return a cache.
                (default: that of the configuration, and not in training or with `labels`)
            output_hidden_states (bool, optional): Whether to return the hidden states.
                (default: that of the configuration)
            logits_to_keep (int or LongTensor, optional): For how many of the last tokens, or for
                which ones, to compute logits; :obj:`0` are all. (default: :obj:`0`)
            cache (GrootLCache, optional): `past_key_values`, under the name that transformers has
                for it from 5.24 on. (default: :obj:`None`)
            **kwargs (optional): :obj:`return_dict=False` for a tuple; and those of the loss, such
                as :obj:`num_items_in_batch`.

        Returns:
            CausalLMOutputWithPast: With :obj:`loss` if there are `labels`, :obj:`logits`,
            :obj:`hidden_states`, and the cache under the name that the installed transformers has
            for it, :obj:`past_key_values` or :obj:`cache`.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If a shape does not fit, padding stands inside a text, a context is negative
                or longer than its text, or both `past_key_values` and `cache` are given. On GPUs
                what needs the values of tensors is checked only under
                :func:`torch_geometric.set_debug`.
        """
        if labels is not None:
            use_cache = False if use_cache is None else use_cache
            if context_lengths is None:
                context_lengths = _unlabelled(labels, attention_mask)
        output = self.backbone(
            input_ids,
            attention_mask,
            inputs_embeds,
            _one_cache(past_key_values, cache),
            context_lengths,
            use_cache,
            output_hidden_states,
            return_dict=True,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden_states = output.last_hidden_state[:, kept]
        logits = self.lm_head(hidden_states.to(self.lm_head.weight.dtype)).float()
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=output.hidden_states,
            **{CACHE_NAME: output.get(CACHE_NAME)},
        )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: torch.LongTensor,
        next_sequence_length: int | None = None,
        past_key_values: GrootLCache | None = None,
        attention_mask: torch.LongTensor | None = None,
        inputs_embeds: Tensor | None = None,
        context_lengths: Tensor | None = None,
        cache: GrootLCache | None = None,
        **kwargs,
    ) -> dict[str, Any]:
        cache = _one_cache(past_key_values, cache)
        if cache is not None and cache.num_tokens > 0:
            _check_is_new(next_sequence_length, cache)
            attention_mask = context_lengths = None
        return super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,
            next_sequence_length=next_sequence_length,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            context_lengths=context_lengths,
            **{CACHE_NAME: cache},  # type: ignore[arg-type]
            **kwargs,
        )

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids=None, **kwargs
    ):
        r"""The context is the prompt also where the text so far is read anew for every token."""
        embeds = kwargs.get("inputs_embeds")
        prompt = input_ids if embeds is None else embeds
        _, length = _extent(kwargs.get("attention_mask"), prompt)
        lengths = _checked_context_lengths(kwargs.get("context_lengths"), length, prompt.size(1))
        kwargs["context_lengths"] = lengths.flatten()
        return super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size, is_encoder_decoder, input_ids, **kwargs
        )

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        # The first forward makes a GrootLCache.
        return False


def _at_least_single(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _without_type(config: dict) -> dict:
    return {k: v for k, v in config.items() if k not in ("model_type", "architectures")}


def _one_cache(
    past_key_values: GrootLCache | None, cache: GrootLCache | None
) -> GrootLCache | None:
    if past_key_values is not None and cache is not None:
        raise ValueError("'cache' must be left out with 'past_key_values', whose other name it is")
    return past_key_values if cache is None else cache


def _check_is_new(num_new: int | None, cache: GrootLCache) -> None:
    if num_new is not None and num_new < 1:
        num_tokens = cache.num_tokens
        raise ValueError(
            f"'input_ids' must hold the whole text, longer than the {num_tokens} tokens of "
            f"'{CACHE_NAME}', got {num_tokens + num_new} tokens"
        )


def _checked_mask(
    mask: Tensor | None, batch_size: int, num_places: int, device: torch.device
) -> Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise TypeError(f"'attention_mask' must be a torch.Tensor, got {type(mask).__name__}")
    if mask.dim() != 2 or mask.size(0) != batch_size or mask.size(1) < num_places:
        raise ValueError(
            f"'attention_mask' must have shape [batch, num_tokens] = [{batch_size}, {num_places}], "
            f"got {list(mask.shape)}"
        )
    mask = mask[:, mask.size(1) - num_places :].to(device).bool()
    begins = mask[:, :1].sum(dim=1) + (mask[:, 1:] & ~mask[:, :-1]).sum(dim=1)
    if checks.values_are_checked(begins) and bool((begins > 1).any()):
        text = int(begins.gt(1).nonzero()[0])
        raise ValueError(
            "'attention_mask' must have zeros before and after a text alone, got some inside text "
            f"{text}"
        )
    return mask


def _extent(mask: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Where each text starts and how many tokens it has, of shape :obj:`[batch, 1]`."""
    batch_size, num_places = x.shape[:2]
    if mask is None:
        start = torch.zeros(batch_size, 1, dtype=torch.long, device=x.device)
        return start, torch.full_like(start, num_places)
    return mask.int().argmax(dim=1, keepdim=True), mask.sum(dim=1, keepdim=True)


def _check_goes_on(mask: Tensor | None, context_lengths) -> None:
    if context_lengths is not None:
        raise ValueError(
            "'context_lengths' must be left out with a filled 'past_key_values', whose texts have "
            f"their contexts behind them, got {context_lengths}"
        )
    if mask is not None and checks.values_are_checked(mask) and not bool(mask.all()):
        raise ValueError(
            "'attention_mask' must be 1 at all tokens that follow a filled 'past_key_values', got 0"
        )


def _checked_context_lengths(lengths, length: Tensor, num_places: int) -> Tensor:
    r"""Every text's context length, of shape :obj:`[batch, 1]`."""
    if lengths is None:
        return length
    if isinstance(lengths, bool) or not isinstance(lengths, int | list | tuple | Tensor):
        raise TypeError(
            "'context_lengths' must be an int, a list of ints or a LongTensor, got "
            f"{type(lengths).__name__}"
        )
    try:
        lengths = torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"'context_lengths' must be one int per text, got {lengths}") from error
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"'context_lengths' must be integers, got {lengths.dtype}")
    if lengths.dim() > 1 or lengths.numel() not in (1, length.size(0)):
        raise ValueError(
            f"'context_lengths' must be an int or of shape [batch] = [{length.size(0)}], got shape "
            f"{list(lengths.shape)}"
        )
    lengths = lengths.view(-1, 1)
    _check_fit(lengths, torch.tensor(num_places))
    lengths = lengths.to(length.device).expand_as(length)
    _check_fit(lengths, length)
    return lengths


def _check_fit(lengths: Tensor, longest: Tensor) -> None:
    if not checks.values_are_checked(lengths):
        return
    does_fit = (lengths >= 0) & (lengths <= longest)
    if not bool(does_fit.all()):
        text = int((~does_fit).nonzero()[0, 0])
        found, most = int(lengths[text]), int(longest.expand_as(lengths)[text])
        raise ValueError(
            "'context_lengths' must not be negative or exceed the tokens of a text, got "
            f"{found} for text {text} of {most} tokens"
        )


def _unlabelled(labels: Tensor, mask: Tensor | None) -> Tensor:
    r"""How many tokens each text has before the first that the loss is taken of."""
    leading = (labels == IGNORED).cumprod(dim=1).sum(dim=1)
    if mask is None:
        return leading
    start, length = (extent.flatten() for extent in _extent(mask, mask))
    return (leading - start).clamp(min=0).minimum(length)


AutoConfig.register(GrootLConfig.model_type, GrootLConfig)
AutoModelForCausalLM.register(GrootLConfig, GrootLForCausalLM)
