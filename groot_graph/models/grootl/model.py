r"""GrootL: a pretrained Mamba language model whose states also pass along a tree over the text."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, MambaForCausalLM, PreTrainedConfig
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.mamba.modeling_mamba import MambaPreTrainedModel, MambaRMSNorm
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from groot_graph.models.grootl.cache import (
    CACHE_NAME,
    GrootLCache,
    check_cache,
    one_cache,
    without_cache,
)
from groot_graph.models.grootl.config import (
    TREE_SETTINGS,
    GrootLConfig,
    note_tree,
    tree_of_adapter,
)
from groot_graph.models.grootl.inputs import (
    Contexts,
    PromptContexts,
    after_unlabelled,
    check_goes_on,
    check_is_longer,
    check_prompt_is_whole,
    check_told,
    checked_mask,
    contexts_of_prompts,
    layout_of,
    mask_of_leading_padding,
    mask_of_next,
    no_texts,
)
from groot_graph.models.grootl.mixer import (
    GrootLMixer,
    NextTokens,
    Prompts,
    Texts,
    WholeTexts,
    at_least_single,
)
from groot_graph.models.grootl.trees import TextTree

logger = logging.get_logger(__name__)


class GrootLBlock(GradientCheckpointingLayer):
    r"""A :class:`GrootLMixer`, normalized before and added to its input."""

    def __init__(self, config: GrootLConfig, layer_idx: int):
        super().__init__()
        self.residual_in_fp32 = config.residual_in_fp32
        self.norm = MambaRMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mixer = GrootLMixer(config, layer_idx)

    def forward(self, hidden_states: Tensor, texts: Texts) -> Tensor:
        residual = at_least_single(hidden_states) if self.residual_in_fp32 else hidden_states
        normalized = self.norm(hidden_states.to(self.norm.weight.dtype))
        return residual + self.mixer(normalized, texts)


class GrootLPreTrainedModel(MambaPreTrainedModel):
    config_class = GrootLConfig
    _no_split_modules = ["GrootLBlock"]

    def __init__(self, config: GrootLConfig):
        if not isinstance(config, GrootLConfig):
            raise TypeError(
                f"'config' must be a GrootLConfig, got {type(config).__name__}; "
                "GrootLConfig.of_mamba makes one of a MambaConfig"
            )
        # from_pretrained() overwrites settings of a configuration that was checked before.
        config.check_tree()
        super().__init__(config)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        if isinstance(config, PreTrainedConfig):
            tree = {name: kwargs.pop(name) for name in TREE_SETTINGS if name in kwargs}
            is_whole = isinstance(config, GrootLConfig) and not tree
            config = config if is_whole else GrootLConfig.of_mamba(config, **tree)
        else:
            kwargs = {**(tree_of_adapter(pretrained_model_name_or_path, **kwargs) or {}), **kwargs}
        return super().from_pretrained(
            pretrained_model_name_or_path, *args, config=config, **kwargs
        )

    def save_pretrained(self, save_directory, *args, **kwargs):
        super().save_pretrained(save_directory, *args, **kwargs)
        if self._hf_peft_config_loaded:
            note_tree(Path(save_directory), self)


class GrootLModel(GrootLPreTrainedModel):
    r"""The blocks of :class:`~groot_graph.models.GrootLForCausalLM`, from tokens to their last
    hidden states.

    Args:
        config (GrootLConfig): The configuration.
    """

    def __init__(self, config: GrootLConfig):
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
        cache: GrootLCache | None = None,
        cache_params: GrootLCache | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        r"""Arguments and output as those of :class:`~groot_graph.models.GrootLForCausalLM`."""
        config = self.config
        given = (input_ids is not None) + (inputs_embeds is not None)
        tokens, num_dims = (input_ids, 2) if inputs_embeds is None else (inputs_embeds, 3)
        if given != 1 or tokens.dim() != num_dims or 0 in tokens.shape:  # type: ignore[union-attr]
            raise no_texts(input_ids, inputs_embeds)
        past_key_values = one_cache(past_key_values, cache, cache_params)
        if use_cache is None:
            use_cache = config.use_cache and not self.training
        if use_cache or past_key_values is not None:
            self._check_remembers()
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        check_cache(past_key_values, len(self.layers), x.size(0))
        if use_cache and past_key_values is None:
            past_key_values = GrootLCache(len(self.layers))
        texts = self._texts(x, attention_mask, context_lengths, past_key_values, kwargs)

        hidden_states = []
        for layer in self.layers:
            x = layer(x, texts)
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

    def _check_remembers(self) -> None:
        r"""What checkpointing computes anew for a gradient would go on from a cache twice."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            raise ValueError(
                "'use_cache' must be False in training with gradient checkpointing, and "
                "'past_key_values' left out"
            )

    def _texts(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        context_lengths: Contexts,
        cache: GrootLCache | None,
        told: dict,
    ) -> Texts:
        mask = checked_mask(attention_mask, x, 0 if cache is None else cache.num_tokens)
        check_told(mask, told)
        if cache is not None and cache.num_tokens > 0:
            check_goes_on(mask, context_lengths)
            return NextTokens(cache)
        # Searched for, because others may have wrapped what holds it.
        tree = next(module for module in self.layers[0].modules() if isinstance(module, TextTree))
        if cache is None:
            return WholeTexts(layout_of(x, mask, context_lengths, tree.window))
        num_readouts = tree.num_readouts(self.config.state_size)
        return Prompts(layout_of(x, mask, context_lengths, tree.window, num_readouts), cache)


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
        config = GrootLConfig.of_mamba(model.config, **kwargs)
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
        cache_params: GrootLCache | None = None,
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
            cache_params (GrootLCache, optional): `past_key_values`, under the name that Mamba has
                for it. (default: :obj:`None`)
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
        past_key_values = one_cache(past_key_values, cache, cache_params)
        contexts: Contexts = context_lengths
        if labels is not None:
            use_cache = False if use_cache is None else use_cache
            begins = past_key_values is None or past_key_values.get_seq_length() == 0
            if contexts is None and begins:
                contexts = after_unlabelled(labels, attention_mask)
        elif self.training and contexts is None and past_key_values is None:
            self._warn_of_whole_context()
        output = self.backbone(
            input_ids,
            attention_mask,
            inputs_embeds,
            past_key_values,
            contexts,
            use_cache,
            output_hidden_states,
            return_dict=True,
            **kwargs,
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

    def _warn_of_whole_context(self) -> None:
        r"""A loss outside the model knows the context, but the model does not."""
        is_published = self.config.tree_mode == "context" and self.config.tree_scale != 0
        if is_published and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            logger.warning_once(
                "without 'labels' and 'context_lengths' the tree is grown over whole texts, whose "
                "tokens hear those that they are to predict: give 'context_lengths' to train with "
                "a loss of your own"
            )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: torch.LongTensor,
        next_sequence_length: int | None = None,
        attention_mask: torch.LongTensor | None = None,
        inputs_embeds: Tensor | None = None,
        context_lengths: Contexts | PromptContexts = None,
        **kwargs,
    ) -> dict[str, Any]:
        cache = kwargs.get(CACHE_NAME)
        if cache is not None and cache.num_tokens > 0:
            check_is_longer(next_sequence_length, cache)
            attention_mask = context_lengths = None
        if isinstance(context_lengths, PromptContexts):
            check_prompt_is_whole(input_ids, context_lengths, self.config.tree_mode)
            context_lengths = context_lengths.of(input_ids)
        return super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,
            next_sequence_length=next_sequence_length,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            context_lengths=context_lengths,
            **kwargs,
        )

    def _prepare_attention_mask_for_generation(  # type: ignore[override]
        self, *args, **kwargs
    ) -> Tensor:
        mask = super()._prepare_attention_mask_for_generation(*args, **kwargs)
        return mask_of_leading_padding(mask)

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids=None, **kwargs
    ):
        r"""The door of generation. The context is the prompt also where the text so far is read
        anew for every token.
        """
        cache, kwargs = without_cache(kwargs)
        embeds, mask = kwargs.get("inputs_embeds"), kwargs.get("attention_mask")
        prompt = input_ids if embeds is None else embeds
        if 0 in prompt.shape:
            raise no_texts(input_ids if embeds is None else None, embeds)
        check_cache(cache, len(self.backbone.layers), prompt.size(0))
        if cache is None or cache.num_tokens == 0:
            given = kwargs.pop("context_lengths", None)
            after = contexts_of_prompts(given, mask, prompt, expand_size)
            kwargs["context_lengths"] = PromptContexts(after.num_after, input_ids.size(1))
        else:
            check_goes_on(mask_of_next(mask, prompt, cache), kwargs.pop("context_lengths", None))
            cache = cache.repeated(expand_size) if expand_size > 1 else cache
        if cache is not None:
            kwargs[CACHE_NAME] = cache
        return super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size, is_encoder_decoder, input_ids, **kwargs
        )

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        # The first forward makes a GrootLCache.
        return False


AutoModel.register(GrootLConfig, GrootLModel)
AutoModelForCausalLM.register(GrootLConfig, GrootLForCausalLM)
# By this name Trainer knows that labels are to be shifted, and a pipeline that text is generated.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[GrootLConfig.model_type] = GrootLForCausalLM.__name__
