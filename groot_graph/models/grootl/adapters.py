r"""Adapters of peft over GrootL: their configuration tells of the tree, so that peft's auto classes
do not take the Mamba below for the whole model.
"""

from collections.abc import Callable
from functools import wraps
from pathlib import Path

from peft import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForFeatureExtraction,
    PeftModel,
)
from transformers import MambaConfig, MambaPreTrainedModel
from transformers.utils import logging

from groot_graph.models.grootl import model as grootl
from groot_graph.models.grootl.config import mapping_of_adapter, note_tree
from groot_graph.models.grootl.model import GrootLPreTrainedModel
from groot_graph.models.grootl.training import without_adapter

logger = logging.get_logger(__name__)


def telling_the_tree(save_pretrained: Callable) -> Callable:
    r"""Notes class and tree of the model beside each of its adapters that are saved."""

    @wraps(save_pretrained)
    def save(model: PeftModel, save_directory: str, *args, **kwargs) -> None:
        save_pretrained(model, save_directory, *args, **kwargs)
        base = without_adapter(model)
        if not isinstance(base, GrootLPreTrainedModel):
            return
        for name in model.peft_config:
            note_tree(Path(save_directory, "" if name == "default" else name), base)

    return save


def reading_the_tree(from_pretrained: Callable) -> Callable:
    r"""Loads the model below an adapter as the GrootL that the adapter tells of."""

    @wraps(from_pretrained)
    def load(cls, pretrained_model_name_or_path, *args, **kwargs):
        mapping = mapping_of_adapter(pretrained_model_name_or_path, **kwargs)
        if mapping is None:
            return from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs)
        target = getattr(grootl, mapping["base_model_class"], grootl.GrootLForCausalLM)
        over_grootl = type(cls.__name__, (cls,), {"_target_class": target})
        kwargs = {**mapping["tree"], **kwargs}
        return from_pretrained(over_grootl, pretrained_model_name_or_path, *args, **kwargs)

    return load


def compared_by_transformers(load_adapter: Callable) -> Callable:
    r"""A Mamba, as which transformers' own auto classes read the model below an adapter, does not
    take one that was learned with a tree, and a GrootL warns where it has another tree.
    """

    @wraps(load_adapter)
    def load(model: MambaPreTrainedModel, peft_model_id=None, *args, **kwargs):
        if peft_model_id is not None:
            _compare("peft_model_id", peft_model_id, model, kwargs)
        return load_adapter(model, peft_model_id, *args, **kwargs)

    return load


def compared_by_peft(load_adapter: Callable) -> Callable:
    r"""As :func:`compared_by_transformers`, in peft's way to put an adapter on a model."""

    @wraps(load_adapter)
    def load(model: PeftModel, model_id, *args, **kwargs):
        _compare("model_id", model_id, without_adapter(model), kwargs)
        return load_adapter(model, model_id, *args, **kwargs)

    return load


def _compare(name: str, adapter, base, where: dict) -> None:
    mapping = mapping_of_adapter(adapter, **where)
    if mapping is None:
        return
    tree, model_class = mapping["tree"], mapping["base_model_class"]
    if isinstance(base, GrootLPreTrainedModel):
        _warn_of_another_tree(adapter, tree, base.config)
        return
    raise ValueError(
        f"'{name}' must be an adapter of a {type(base).__name__}, got one of a {model_class} with "
        f"{tree}: {model_class}.from_pretrained('{adapter}') reads it"
    )


def _warn_of_another_tree(adapter, tree: dict, config: MambaConfig) -> None:
    other = {name: getattr(config, name) for name in tree if getattr(config, name) != tree[name]}
    if other:
        learned = {name: tree[name] for name in other}
        logger.warning(f"'{adapter}' was learned with {learned}; the model here has {other}")


PeftModel.save_pretrained = telling_the_tree(  # type: ignore[method-assign]
    PeftModel.save_pretrained
)
for auto_class in (AutoPeftModel, AutoPeftModelForCausalLM, AutoPeftModelForFeatureExtraction):
    load = vars(auto_class.__base__)["from_pretrained"].__func__
    auto_class.from_pretrained = classmethod(  # type: ignore[method-assign, assignment]
        reading_the_tree(load)
    )
PeftModel.load_adapter = compared_by_peft(  # type: ignore[method-assign]
    PeftModel.load_adapter
)
MambaPreTrainedModel.load_adapter = compared_by_transformers(  # type: ignore[method-assign]
    MambaPreTrainedModel.load_adapter
)
