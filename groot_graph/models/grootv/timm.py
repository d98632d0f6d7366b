r"""GrootV for timm: importing this module registers grootv_micro, grootv_tiny, grootv_small and
grootv_base.
"""

import torch
from torch import Tensor, nn

try:
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from timm.layers import SelectAdaptivePool2d, create_classifier
    from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
    from timm.models._features import feature_take_indices
    from timm.models._manipulate import MATCH_PREV_GROUP
except ImportError as error:
    raise ImportError("groot_graph.models.grootv.timm needs timm: pip install timm") from error

from groot_graph.models.grootv.blocks import reset_projection
from groot_graph.models.grootv.checkpoint import convert_grootv_checkpoint
from groot_graph.models.grootv.network import GrootV
from groot_graph.nn.grid_tree_ssm import laid_out

__all__ = ["TimmGrootV"]


class TimmGrootV(GrootV):
    r"""A :class:`~groot_graph.models.GrootV` with the interface that timm expects of a network.
    It has the weights of :class:`~groot_graph.models.GrootV` under the same names, so that
    :func:`~groot_graph.models.load_grootv` fills it.

    Args:
        channels (int, optional): See :class:`~groot_graph.models.GrootV`. (default: :obj:`80`)
        depths (tuple of int, optional): See :class:`~groot_graph.models.GrootV`.
            (default: :obj:`(2, 2, 9, 2)`)
        num_classes (int, optional): See :class:`~groot_graph.models.GrootV`.
            (default: :obj:`1000`)
        in_chans (int, optional): The channels of an image. (default: :obj:`3`)
        global_pool (str, optional): How the head pools, as timm names it; :obj:`""` not at all,
            which goes with :obj:`num_classes=0`. (default: :obj:`"avg"`)
        drop_rate (float, optional): The dropout before the last layer. (default: :obj:`0.0`)
        **kwargs (optional): Further arguments of :class:`~groot_graph.models.GrootV`, such as
            :obj:`drop_path_rate` or :obj:`initializer_range`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a size is below one, a name is unknown, or there are classes and no pooling.

    Example:
        >>> import timm, torch
        >>> import groot_graph.models.grootv.timm
        >>> backbone = timm.create_model("grootv_tiny", features_only=True, channels=8)
        >>> [tuple(map.shape) for map in backbone(torch.randn(1, 3, 64, 64))]
        [(1, 8, 16, 16), (1, 16, 8, 8), (1, 32, 4, 4), (1, 64, 2, 2)]
    """

    global_pool: SelectAdaptivePool2d

    def __init__(
        self,
        channels: int = 80,
        depths: tuple[int, ...] = (2, 2, 9, 2),
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        **kwargs,
    ):
        super().__init__(channels, depths, 0, in_chans, **kwargs)
        self.in_chans = in_chans
        self.num_features = self.channels[-1]
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**stage, "module": f"stages.{stage}"}
            for stage, width in enumerate(self.channels)
        ]
        self.head_act = nn.GELU()
        self.head_drop = nn.Dropout(drop_rate)
        self.head_in_features = self.head_conv.out_channels
        self.reset_classifier(num_classes, global_pool)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:  # type: ignore[override]
        r"""The last map, of shape :obj:`[batch, num_features, height / 32, width / 32]`."""
        return super().forward_features(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        r"""The logits of the last map, or, with `pre_logits`, what the last layer would get."""
        if torch.compiler.is_compiling():
            x = laid_out(x)
        x = self.head_act(self.head_norm(self.head_conv(x)))
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        r"""The maps of the stages.

        Args:
            x (Tensor): The images, of shape :obj:`[batch, in_chans, height, width]`.
            indices (int or list of int, optional): The stages, or how many of the last ones.
                (default: all)
            norm (bool, optional): Has no effect: every map is normalized. (default: :obj:`False`)
            stop_early (bool, optional): If set to :obj:`True`, later stages than the last one of
                `indices` are left out, and its map is the last. (default: :obj:`False`)
            output_fmt (str, optional): Must be :obj:`"NCHW"`. (default: :obj:`"NCHW"`)
            intermediates_only (bool, optional): If set to :obj:`True`, returns the maps alone, and
                otherwise the last map and the maps. (default: :obj:`False`)

        Returns:
            list of Tensor, or tuple of Tensor and list of Tensor: The maps.

        Raises:
            ValueError: If `output_fmt` is another.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"'output_fmt' must be 'NCHW', got {output_fmt!r}")
        stages, last = feature_take_indices(len(self.stages), indices)
        _, *maps = self._forward_stages(x, last + 1 if stop_early else len(self.stages))
        intermediates = [maps[stage] for stage in stages]
        return intermediates if intermediates_only else (maps[-1], intermediates)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        r"""Removes what the maps of `indices` do not need: later stages, and with `prune_head` the
        head. The norms stay, because each is a part of its stage. Returns `indices` as numbers.
        """
        stages, last = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        self.stages[-1].downsample = nn.Identity()
        if prune_head or last < len(self.channels) - 1:
            nothing = nn.Identity()
            self.head_conv = self.head_norm = self.head_act = nothing  # type: ignore[assignment]
            self.num_features = self.head_in_features = self.channels[last]
            self.reset_classifier(0, "")
        return stages

    def get_classifier(self) -> nn.Module:
        r"""The last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        r"""Puts a new last layer in place of the old, and with `global_pool` another pooling."""
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        if num_classes > 0 and not pool_type:
            raise ValueError("'global_pool' must name a pooling where there are classes, got ''")
        old = self.stem.conv1.weight
        self.num_classes = num_classes
        self.global_pool, head = create_classifier(
            self.head_in_features, num_classes, pool_type, device=old.device, dtype=old.dtype
        )
        self.head = head
        self.head_hidden_size = self.head_in_features * self.global_pool.feat_mult()
        if num_classes > 0:
            reset_projection(head, self.initializer_range)

    def group_matcher(self, coarse: bool = False) -> dict:
        r"""Which parameters form a layer, from the images on; with `coarse` a stage is one."""
        blocks = [
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.(?:norm|downsample)", MATCH_PREV_GROUP),
        ]
        return {
            "stem": r"^stem",
            "blocks": r"^stages\.(\d+)" if coarse else blocks,
        }


def _default_cfg() -> dict:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv1",
        "classifier": "head",
    }


default_cfgs = generate_default_cfgs(
    {
        name: _default_cfg()
        for name in ("grootv_micro", "grootv_tiny", "grootv_small", "grootv_base")
    }
)


def _create_grootv(variant: str, pretrained: bool, **kwargs) -> nn.Module:
    return build_model_with_cfg(
        TimmGrootV,
        variant,
        pretrained,
        pretrained_filter_fn=lambda state_dict, model: convert_grootv_checkpoint(state_dict),
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **kwargs,
    )


@register_model
def grootv_micro(pretrained: bool = False, **kwargs) -> nn.Module:
    r"""The small GrootV for :func:`timm.create_model`, see
    :func:`groot_graph.models.grootv_micro`.
    """
    sizes = {"channels": 24, "depths": (1, 1, 2, 1)}
    return _create_grootv("grootv_micro", pretrained, **{**sizes, **kwargs})


@register_model
def grootv_tiny(pretrained: bool = False, **kwargs) -> nn.Module:
    r"""GrootV-T for :func:`timm.create_model`, see :func:`groot_graph.models.grootv_tiny`."""
    sizes = {"channels": 80, "depths": (2, 2, 9, 2)}
    return _create_grootv("grootv_tiny", pretrained, **{**sizes, **kwargs})


@register_model
def grootv_small(pretrained: bool = False, **kwargs) -> nn.Module:
    r"""GrootV-S for :func:`timm.create_model`, see :func:`groot_graph.models.grootv_small`."""
    sizes = {"channels": 96, "depths": (2, 2, 13, 2)}
    return _create_grootv("grootv_small", pretrained, **{**sizes, **kwargs})


@register_model
def grootv_base(pretrained: bool = False, **kwargs) -> nn.Module:
    r"""GrootV-B for :func:`timm.create_model`, see :func:`groot_graph.models.grootv_base`."""
    sizes = {"channels": 128, "depths": (2, 2, 13, 2)}
    return _create_grootv("grootv_base", pretrained, **{**sizes, **kwargs})
