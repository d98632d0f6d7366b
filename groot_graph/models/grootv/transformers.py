r"""GrootV for Hugging Face transformers. The import makes it known to the Auto classes."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

try:
    from transformers import (
        AutoBackbone,
        AutoConfig,
        AutoModel,
        AutoModelForImageClassification,
        PreTrainedConfig,
        PreTrainedModel,
    )
    from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping
    from transformers.core_model_loading import WeightRenaming
    from transformers.modeling_outputs import (
        BackboneOutput,
        BaseModelOutputWithPoolingAndNoAttention,
        ImageClassifierOutputWithNoAttention,
    )
    from transformers.utils.generic import can_return_tuple
except ImportError as error:
    raise ImportError(
        "groot_graph.models.grootv.transformers needs transformers >= 5.5: "
        'pip install "groot-graph[vision]"'
    ) from error

from groot_graph.models.grootv.blocks import GrootVBlock, GrootVStage, reset_projection
from groot_graph.models.grootv.network import GrootV
from groot_graph.nn.tree_topology import metric_of_layer


class GrootVConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""The configuration of :class:`GrootVForImageClassification`, :class:`GrootVBackbone` and
    :class:`GrootVModel`.

    The defaults are those of GrootV-T. GrootV-S has :obj:`channels=96, depths=(2, 2, 13, 2)`,
    GrootV-B :obj:`channels=128, depths=(2, 2, 13, 2)`.

    Args:
        channels (int, optional): The channels of the first stage; each further stage doubles them.
            (default: :obj:`80`)
        depths (tuple of int, optional): The number of blocks of each stage.
            (default: :obj:`(2, 2, 9, 2)`)
        num_channels (int, optional): The channels of an image. (default: :obj:`3`)
        mlp_ratio (float, optional): See :class:`~groot_graph.models.GrootV`. (default: :obj:`4.0`)
        head_scale (float, optional): See :class:`~groot_graph.models.GrootV`.
            (default: :obj:`1.5`)
        drop_path_rate (float, optional): See :class:`~groot_graph.models.GrootV`.
            (default: :obj:`0.0`)
        metric (str, optional): See :class:`~groot_graph.models.GrootV`.
            (default: :obj:`None`)
        tree (str, optional): See :class:`~groot_graph.models.GrootV`. (default: :obj:`"min"`)
        root (str, optional): See :class:`~groot_graph.models.GrootV`. (default: :obj:`"first"`)
        direction (str, optional): See :class:`~groot_graph.models.GrootV`.
            (default: :obj:`"both"`)
        initializer_range (float, optional): See :class:`~groot_graph.models.GrootV`.
            (default: :obj:`0.02`)
        edge_steps (bool, optional): See :class:`~groot_graph.models.GrootV`.
            (default: :obj:`False`)
        out_features (list of str, optional): The maps that :class:`GrootVBackbone` returns, of
            :obj:`"stem"`, :obj:`"stage1"`, :obj:`"stage2"`, :obj:`"stage3"` and :obj:`"stage4"`.
            (default: :obj:`["stage4"]`)
        out_indices (list of int, optional): The same as numbers, with :obj:`0` for the stem.
            (default: :obj:`[4]`)
        **kwargs (optional): Arguments of :class:`transformers.PreTrainedConfig`, such as
            :obj:`num_labels` or :obj:`id2label`.

    Example:
        >>> from groot_graph.models.grootv.transformers import GrootVConfig
        >>> config = GrootVConfig(channels=96, depths=(2, 2, 13, 2), out_indices=[1, 2, 3, 4])
        >>> config.out_features
        ['stage1', 'stage2', 'stage3', 'stage4']
    """

    model_type = "grootv"

    channels: int = 80
    depths: list[int] | tuple[int, ...] = (2, 2, 9, 2)
    num_channels: int = 3
    mlp_ratio: float = 4.0
    head_scale: float = 1.5
    drop_path_rate: float = 0.0
    metric: str | None = None
    tree: str = "min"
    root: str = "first"
    direction: str = "both"
    initializer_range: float = 0.02
    edge_steps: bool = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, out_features=None, out_indices=None, **kwargs):
        self.stage_names = ["stem", "stage1", "stage2", "stage3", "stage4"]
        self.set_output_features_output_indices(out_features, out_indices)
        super().__post_init__(**kwargs)


class GrootVPreTrainedModel(PreTrainedModel):
    r"""What the classes below share. Each holds a :class:`~groot_graph.models.GrootV` under
    :obj:`grootv`, so that each reads the checkpoints of the others.
    """

    config_class = GrootVConfig
    base_model_prefix = "grootv"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _no_split_modules = ["GrootVBlock"]
    grootv: GrootV

    def _initialize_weights(self, module: nn.Module, *_) -> None:
        # Without the flag for custom code, under which a TreeSSM is passed over whose projections
        # alone are missing; what was read stays in any case.
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # GrootV.reset_parameters module by module, which transformers walks through children first.
        reset = getattr(module, "reset_parameters", None)
        if isinstance(module, GrootV) or reset is None:
            return
        state = module.state_dict(keep_vars=True).values()
        loaded = [value for value in state if getattr(value, "_is_hf_initialized", False)]
        contents = [value.clone() for value in loaded]
        if isinstance(module, nn.Linear):
            reset_projection(module, self.config.initializer_range)
        else:
            reset()
        for value, content in zip(loaded, contents, strict=True):
            value.copy_(content)

    def _maps(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        return self.grootv._forward_stages(pixel_values, len(self.grootv.stages))

    def _has_hidden_states(self, output_hidden_states: bool | None) -> bool:
        if output_hidden_states is None:
            return bool(self.config.output_hidden_states)
        return output_hidden_states


class GrootVModel(GrootVPreTrainedModel):
    r"""GrootV without a last layer: its last map, and the features pooled from it.

    Args:
        config (GrootVConfig): The configuration.

    Example:
        >>> import torch
        >>> from groot_graph.models.grootv.transformers import GrootVConfig, GrootVModel
        >>> model = GrootVModel(GrootVConfig(channels=8, depths=(1, 1, 1, 1)))
        >>> output = model(torch.randn(2, 3, 64, 96))
        >>> output.last_hidden_state.shape, output.pooler_output.shape
        (torch.Size([2, 64, 2, 3]), torch.Size([2, 96]))
    """

    _keys_to_ignore_on_load_unexpected = [r"^grootv\.head\."]

    def __init__(self, config: GrootVConfig):
        super().__init__(config)
        self.grootv = _make_grootv(config, num_classes=0)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        r"""The last map and the pooled features of the images.

        Args:
            pixel_values (Tensor): The images, of shape
                :obj:`[batch, num_channels, height, width]`.
            output_hidden_states (bool, optional): If set to :obj:`True`, also returns the maps of
                the stem and the four stages. (default: that of the configuration)

        Returns:
            BaseModelOutputWithPoolingAndNoAttention: :obj:`last_hidden_state`,
            :obj:`pooler_output`, :obj:`hidden_states`.

        Raises:
            TypeError: If `pixel_values` is not a floating point tensor.
            ValueError: If its shape does not fit, or a side is smaller than 32 pixels.
        """
        has_hidden_states = self._has_hidden_states(output_hidden_states)
        maps = self._maps(pixel_values)
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=maps[-1],
            pooler_output=self.grootv.pool(maps[-1]),
            hidden_states=maps if has_hidden_states else None,
        )


class GrootVForImageClassification(GrootVPreTrainedModel):
    r"""GrootV with its classification head. :meth:`from_grootv` makes one of a trained
    :class:`~groot_graph.models.GrootV`.

    Args:
        config (GrootVConfig): The configuration; its :obj:`num_labels` is the number of classes.

    Example:
        >>> import tempfile, torch
        >>> from transformers import AutoModelForImageClassification
        >>> from groot_graph.models.grootv.transformers import (
        ...     GrootVConfig,
        ...     GrootVForImageClassification,
        ... )
        >>> config = GrootVConfig(channels=8, depths=(1, 1, 1, 1), num_labels=10)
        >>> model = GrootVForImageClassification(config)
        >>> model(torch.randn(2, 3, 32, 32), labels=torch.tensor([3, 7])).logits.shape
        torch.Size([2, 10])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     model = AutoModelForImageClassification.from_pretrained(folder)
        >>> model.grootv.head
        Linear(in_features=96, out_features=10, bias=True)
    """

    # The trainer divides the loss by the accumulation steps itself: forward takes no num_items.
    accepts_loss_kwargs = False

    def __init__(self, config: GrootVConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.grootv = _make_grootv(config, config.num_labels)  # type: ignore[arg-type]
        self.post_init()

    @classmethod
    def from_grootv(cls, model: GrootV, **kwargs) -> "GrootVForImageClassification":
        r"""Wraps a network, such as one that :func:`~groot_graph.models.load_grootv` has read.

        Args:
            model (GrootV): The network. It is not copied: both share their weights.
            **kwargs (optional): Further arguments of :class:`GrootVConfig`, such as
                :obj:`id2label`.

        Returns:
            GrootVForImageClassification: The network for transformers.

        Raises:
            TypeError: If `model` is not a :class:`~groot_graph.models.GrootV`.
            ValueError: If its metric is a function, which a configuration cannot hold, or an
                argument contradicts the network.

        Example:
            >>> from groot_graph.models import GrootV
            >>> from groot_graph.models.grootv.transformers import GrootVForImageClassification
            >>> model = GrootV(channels=8, depths=(1, 1, 1, 1), num_classes=10)
            >>> GrootVForImageClassification.from_grootv(model).config.num_labels
            10
        """
        wrapper = cls(_config_of(model, **kwargs))
        wrapper.grootv = model
        return wrapper.train(model.training)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> ImageClassifierOutputWithNoAttention:
        r"""The logits of the images, and the loss where there are labels.

        Args:
            pixel_values (Tensor): The images, of shape
                :obj:`[batch, num_channels, height, width]`.
            labels (Tensor, optional): The classes, of shape :obj:`[batch]`; for
                :obj:`problem_type="multi_label_classification"` zeros and ones of shape
                :obj:`[batch, num_labels]`, for :obj:`problem_type="regression"` the wanted output.
                (default: :obj:`None`)
            output_hidden_states (bool, optional): If set to :obj:`True`, also returns the maps of
                the stem and the four stages. (default: that of the configuration)

        Returns:
            ImageClassifierOutputWithNoAttention: :obj:`loss`, :obj:`logits`,
            :obj:`hidden_states`.

        Raises:
            TypeError: If `pixel_values` is not a floating point tensor.
            ValueError: If its shape does not fit, or a side is smaller than 32 pixels.
        """
        has_hidden_states = self._has_hidden_states(output_hidden_states)
        maps = self._maps(pixel_values)
        logits = self.grootv.head(self.grootv.pool(maps[-1]))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return ImageClassifierOutputWithNoAttention(
            loss=loss, logits=logits, hidden_states=maps if has_hidden_states else None
        )


class GrootVBackbone(BackboneMixin, GrootVPreTrainedModel):
    r"""GrootV as a backbone of the detectors and segmenters of transformers: its maps alone.

    Args:
        config (GrootVConfig): The configuration; its :obj:`out_features` or :obj:`out_indices` are
            the maps to return.

    Example:
        >>> import torch
        >>> from transformers import UperNetConfig, UperNetForSemanticSegmentation
        >>> from groot_graph.models.grootv.transformers import GrootVConfig
        >>> backbone = GrootVConfig(channels=8, depths=(1, 1, 1, 1), out_indices=[1, 2, 3, 4])
        >>> config = UperNetConfig(backbone_config=backbone, num_labels=5, hidden_size=16)
        >>> model = UperNetForSemanticSegmentation(config).eval()
        >>> model(torch.randn(1, 3, 50, 70)).logits.shape
        torch.Size([1, 5, 50, 70])
    """

    has_attentions = False
    _keys_to_ignore_on_load_unexpected = [r"^grootv\.head"]

    def __init__(self, config: GrootVConfig):
        super().__init__(config)
        self.grootv = _make_grootv(config, num_classes=0)
        # Parameters without a gradient stop distributed training.
        del self.grootv.head_conv, self.grootv.head_norm
        self.num_features = [config.channels, *self.grootv.channels]
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None
    ) -> BackboneOutput:
        r"""The maps of the images.

        Args:
            pixel_values (Tensor): The images, of shape
                :obj:`[batch, num_channels, height, width]`.
            output_hidden_states (bool, optional): If set to :obj:`True`, also returns the maps of
                the stem and the four stages. (default: that of the configuration)

        Returns:
            BackboneOutput: :obj:`feature_maps`, :obj:`hidden_states`.

        Raises:
            TypeError: If `pixel_values` is not a floating point tensor.
            ValueError: If its shape does not fit, or a side is smaller than 32 pixels.
        """
        has_hidden_states = self._has_hidden_states(output_hidden_states)
        maps = dict(zip(self.stage_names, self._maps(pixel_values), strict=True))
        return BackboneOutput(
            feature_maps=tuple(
                features for name, features in maps.items() if name in self.out_features
            ),
            hidden_states=tuple(maps.values()) if has_hidden_states else None,
        )


def _make_grootv(config: GrootVConfig, num_classes: int) -> GrootV:
    return GrootV(
        channels=config.channels,
        depths=tuple(config.depths),
        num_classes=num_classes,
        in_channels=config.num_channels,
        mlp_ratio=config.mlp_ratio,
        head_scale=config.head_scale,
        drop_path_rate=config.drop_path_rate,
        metric=config.metric,
        tree=config.tree,
        root=config.root,
        direction=config.direction,
        initializer_range=config.initializer_range,
        edge_steps=config.edge_steps,
    )


def _config_of(model: GrootV, **kwargs) -> GrootVConfig:
    if not isinstance(model, GrootV):
        raise TypeError(f"'model' must be a GrootV, got {type(model).__name__}")
    stage = cast(GrootVStage, model.stages[-1])
    block = cast(GrootVBlock, stage.blocks[-1])
    topology = block.mixer.topology
    if callable(topology.metric):
        raise ValueError(
            f"'model' must have a metric that is a name, as a configuration holds no function, got "
            f"{topology.metric}"
        )
    sizes = {
        "channels": model.channels[0],
        "depths": model.depths,
        "num_channels": model.in_channels,
        "mlp_ratio": model.mlp_ratio,
        "head_scale": model.head_scale,
        "drop_path_rate": block.drop_path_rate,
        "metric": topology.metric,
        "tree": topology.tree,
        "root": topology.root,
        "direction": block.mixer.ssm.direction,
        "initializer_range": model.initializer_range,
        "edge_steps": block.mixer.ssm.edge_steps,
    }
    sizes["num_labels"] = num_labels = _num_outputs(model)
    label2id, id2label = kwargs.get("label2id"), kwargs.get("id2label")
    if label2id is not None and id2label is None:
        # transformers reads it beside the other alone.
        kwargs["id2label"] = id2label = {number: name for name, number in label2id.items()}
    _check_labels("id2label", id2label, num_labels)
    _check_labels("label2id", None if label2id is None else label2id.values(), num_labels)
    config = GrootVConfig(**{**sizes, **kwargs})
    found = {name: getattr(config, name) for name in sizes} | {
        "depths": tuple(config.depths),
        "metric": metric_of_layer(config.metric, config.edge_steps),
    }
    for name, value in sizes.items():
        if found[name] != value:
            raise ValueError(f"'{name}' must be that of 'model', {value!r}, got {found[name]!r}")
    return config


def _num_outputs(model: GrootV) -> int:
    return model.head.out_features if isinstance(model.head, nn.Linear) else model.num_classes


def _check_labels(name: str, numbers: Iterable | None, num_labels: int) -> None:
    if numbers is not None and sorted(map(int, numbers)) != list(range(num_labels)):
        raise ValueError(
            f"'{name}' must name the classes 0 to {num_labels - 1} of 'model', got names of "
            f"{sorted(map(int, numbers))}"
        )


class _KeptName(WeightRenaming):
    r"""Gives a weight the name back that a model around the network takes from it in reading; in
    saving none does.
    """

    __slots__ = ()

    def reverse_transform(self) -> WeightRenaming:
        matches_nothing = r"(?!)"
        return WeightRenaming(matches_nothing, matches_nothing)


# A DETR renames every out_proj that it reads, those of its backbone, too.
register_checkpoint_conversion_mapping(
    GrootVConfig.model_type, [_KeptName("mixer.o_proj", "mixer.out_proj")], overwrite=True
)
AutoConfig.register(GrootVConfig.model_type, GrootVConfig)
AutoModel.register(GrootVConfig, GrootVModel)
AutoModelForImageClassification.register(GrootVConfig, GrootVForImageClassification)
AutoBackbone.register(GrootVConfig, GrootVBackbone)
