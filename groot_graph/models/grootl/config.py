r"""The configuration of GrootL."""

import json
import math
from os import PathLike
from pathlib import Path

from transformers import AutoConfig, MambaConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import find_adapter_config_file

from groot_graph.checks import check_choice, check_number, check_positive_int
from groot_graph.models.grootl.cache import CACHE_NAME
from groot_graph.models.grootl.trees import TEXT_TREES

TREE_SETTINGS = ("tree_window", "tree_scale", "tree_mode")


class GrootLConfig(MambaConfig):
    r"""The configuration of :class:`~groot_graph.models.GrootLForCausalLM`: that of a Mamba, and
    of its tree.

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
    def of_mamba(cls, config: PreTrainedConfig, **kwargs) -> "GrootLConfig":
        r"""The configuration of a Mamba, or of a GrootL, with a tree.

        Args:
            config (transformers.MambaConfig): The configuration. It is left as it is.
            **kwargs (optional): Arguments of this class that differ.

        Raises:
            TypeError: If `config` is of another model.
        """
        if not isinstance(config, MambaConfig):
            raise TypeError(
                f"'config' must be a GrootLConfig or a MambaConfig, got {type(config).__name__}"
            )
        given = config.to_dict()
        for name in ("model_type", "architectures"):
            given.pop(name, None)
        return cls(**{**given, **kwargs})

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


def tree_of_adapter(name_or_path: str | PathLike, **kwargs) -> dict | None:
    r"""The settings of the tree that an adapter of GrootL tells of, or None without one; arguments
    as :func:`mapping_of_adapter` has.
    """
    mapping = mapping_of_adapter(name_or_path, **kwargs)
    return None if mapping is None else mapping["tree"]


def mapping_of_adapter(name_or_path: str | PathLike, **kwargs) -> dict | None:
    r"""What :func:`note_tree` has written beside an adapter of GrootL, or None.

    Args:
        name_or_path (str or Path): Where an adapter may be.
        **kwargs (optional): Where to look for it on the Hub, among other things.
    """
    names = ("cache_dir", "force_download", "token", "revision", "local_files_only", "subfolder")
    where = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
    path = find_adapter_config_file(str(name_or_path), **where)
    if path is None:
        return None
    mapping = json.loads(Path(path).read_text()).get("auto_mapping") or {}
    return mapping if "tree" in mapping else None


def note_tree(folder: Path, model: PreTrainedModel) -> None:
    r"""Notes class and tree of a GrootL beside an adapter of it that has been saved, if one has."""
    path = folder / "adapter_config.json"
    # Not there where another process saves, or another adapter was asked for.
    if not path.exists():
        return
    config = json.loads(path.read_text())
    config["auto_mapping"] = {
        "base_model_class": type(model).__name__,
        "parent_library": type(model).__module__,
        "tree": {name: getattr(model.config, name) for name in TREE_SETTINGS},
    }
    path.write_text(json.dumps(config, indent=2, sort_keys=True))


AutoConfig.register(GrootLConfig.model_type, GrootLConfig)
