r"""What Trainer tells GrootL of labels that do not reach it."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from transformers import Trainer

from groot_graph.models.grootl.inputs import after_unlabelled
from groot_graph.models.grootl.model import GrootLForCausalLM


def with_contexts(prepare_inputs: Callable) -> Callable:
    r"""Adds the contexts of texts to the inputs that a Trainer prepares, for it keeps the labels to
    itself where it smooths them or takes the loss of a function of the user.
    """

    @wraps(prepare_inputs)
    def prepare(trainer: Trainer, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = prepare_inputs(trainer, inputs)
        labels = inputs.get("labels")
        if labels is None or inputs.get("context_lengths") is not None:
            return inputs
        if not isinstance(without_adapter(trainer.model), GrootLForCausalLM):
            return inputs
        contexts = after_unlabelled(labels, inputs.get("attention_mask"))
        return {**inputs, "context_lengths": contexts}

    return prepare


def without_adapter(model: Any) -> Any:
    r"""The model that peft has wrapped, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


Trainer._prepare_inputs = with_contexts(Trainer._prepare_inputs)  # type: ignore[method-assign]
