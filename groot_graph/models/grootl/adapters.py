r"""Adapters of peft over GrootL: their configuration tells of the tree, so that peft's auto classes
do not take the Mamba below for the whole model.
"""

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from peft import AutoPeftModel, AutoPeftModelForCausalLM, PeftModel
from transformers import MambaConfig, MambaForCausalLM
from transformers.utils import logging

from groot_graph.models.grootl.config import TREE_SETTINGS, tree_of_adapter
from groot_graph.models.grootl.model import GrootLForCausalLM
from groot_graph.models.grootl.training import without_adapter

MODEL_CLASS = GrootLForCausalLM.__name__

logger = logging.get_logger(__name__)


def telling_the_tree(save_pretrained: Callable) -> Callable:
    r"""Notes class and tree of the model beside each of its adapters that are saved."""

    @wraps(save_pretrained)
    def save(model: PeftModel, save_directory: str, *args, **kwargs) -> None:
        save_pretrained(model, save_directory, *args, **kwargs)
        base = without_adapter(model)
        if not isinstance(base, GrootLForCausalLM):
            return
        tree = {name: getattr(base.config, name) for name in TREE_SETTINGS}
        for name in model.peft_config:
            folder = Path(save_directory, "" if name == "default" else name)
            _note(folder / "adapter_config.json", tree)

    return save


def _note(path: Path, tree: dict) -> None:
    # Not there where another process saves, or another adapter was asked for.
    if not path.exists():
        return
    config = json.loads(path.read_text())
    mapping = {"base_model_class": MODEL_CLASS, "parent_library": GrootLForCausalLM.__module__}
    config["auto_mapping"] = {**mapping, "tree": tree}
    path.write_text(json.dumps(config, indent=2, sort_keys=True))


def reading_the_tree(from_pretrained: Callable) -> Callable:
    r"""Loads the model below an adapter as the GrootL that the adapter tells of."""

    @wraps(from_pretrained)
    def load(cls, pretrained_model_name_or_path, *args, **kwargs):
        tree = tree_of_adapter(pretrained_model_name_or_path, **kwargs)
        if tree is None:
            return from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs)
        over_grootl = type(cls.__name__, (cls,), {"_target_class": GrootLForCausalLM})
        kwargs = {**tree, **kwargs}
        return from_pretrained(over_grootl, pretrained_model_name_or_path, *args, **kwargs)

    return load


def refusing_those_of_grootl(load_adapter: Callable) -> Callable:
    r"""A Mamba, as which transformers' own auto classes read the model below an adapter, does not
    take one that was learned with a tree.
    """

    @wraps(load_adapter)
    def load(model: MambaForCausalLM, peft_model_id=None, *args, **kwargs):
        tree = None if peft_model_id is None else tree_of_adapter(peft_model_id, **kwargs)
        if tree is not None:
            _refuse("peft_model_id", peft_model_id, tree)
        return load_adapter(model, peft_model_id, *args, **kwargs)

    return load


def comparing_the_tree(load_adapter: Callable) -> Callable:
    r"""Peft's way to put an adapter on a model: a Mamba does not take one that was learned with a
    tree, and a GrootL warns where it has another tree.
    """

    @wraps(load_adapter)
    def load(model: PeftModel, model_id, *args, **kwargs):
        tree, base = tree_of_adapter(model_id, **kwargs), without_adapter(model)
        if tree is not None and isinstance(base, GrootLForCausalLM):
            _warn_of_another_tree(model_id, tree, base.config)
        elif tree is not None:
            _refuse("model_id", model_id, tree)
        return load_adapter(model, model_id, *args, **kwargs)

    return load


def _refuse(name: str, adapter, tree: dict) -> None:
    raise ValueError(
        f"'{name}' must be an adapter of a Mamba, got one of a {MODEL_CLASS} with {tree}: "
        f"{MODEL_CLASS}.from_pretrained('{adapter}') reads it"
    )


def _warn_of_another_tree(adapter, tree: dict, config: MambaConfig) -> None:
    other = {name: getattr(config, name) for name in tree if getattr(config, name) != tree[name]}
    if other:
        learned = {name: tree[name] for name in other}
        logger.warning(f"'{adapter}' was learned with {learned}; the model here has {other}")


PeftModel.save_pretrained = telling_the_tree(  # type: ignore[method-assign]
    PeftModel.save_pretrained
)
for auto_class in (AutoPeftModel, AutoPeftModelForCausalLM):
    load = vars(auto_class.__base__)["from_pretrained"].__func__
    auto_class.from_pretrained = classmethod(  # type: ignore[method-assign, assignment]
        reading_the_tree(load)
    )
PeftModel.load_adapter = comparing_the_tree(  # type: ignore[method-assign]
    PeftModel.load_adapter
)
MambaForCausalLM.load_adapter = refusing_those_of_grootl(  # type: ignore[method-assign]
    MambaForCausalLM.load_adapter
)
