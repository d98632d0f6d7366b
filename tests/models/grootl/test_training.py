import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers", minversion="5.5")

from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    Trainer,
    TrainingArguments,
)

from groot_graph.models.grootl import GrootLConfig  # noqa: E402
from tests.equipment.grootl import MODES, grootl, mamba, tokens  # noqa: E402


def instructions() -> list[dict[str, torch.Tensor]]:
    """Texts whose prompts are of several lengths."""
    rows = []
    for text, num_prompt in zip(tokens(4, 12), (5, 8, 3, 10), strict=True):
        labels = text.clone()
        labels[:num_prompt] = -100
        rows.append({"input_ids": text, "labels": labels, "attention_mask": torch.ones(12).long()})
    # Padding on the right and on the left.
    rows[0]["attention_mask"][10:], rows[0]["labels"][10:] = 0, -100
    rows[1]["attention_mask"][:2] = 0
    return rows


def loss_of_shifted(output, labels, num_items_in_batch=None) -> torch.Tensor:
    return F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


class OwnLoss(Trainer):
    """Keeps the labels to itself, as those of trl do."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        labels = inputs.pop("labels")
        output = model(**inputs)
        loss = loss_of_shifted(output, labels)
        return (loss, output) if return_outputs else loss


WAYS = {
    "smoothing": (Trainer, {"label_smoothing_factor": 1e-9}, {}),
    "function": (Trainer, {}, {"compute_loss_func": loss_of_shifted}),
    "subclass": (OwnLoss, {}, {}),
}


def trainer_of(folder, model, rows, kind=Trainer, settings=None, given=None) -> Trainer:
    arguments = TrainingArguments(
        folder,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        max_steps=1,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        **settings or {},
    )
    return kind(model, arguments, train_dataset=rows, eval_dataset=rows, **given or {})


def losses_of(trainer: Trainer) -> list[float]:
    """Before a step, in it and after it."""
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return [before, *logged, trainer.evaluate()["eval_loss"]]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", MODES)
def test_a_loss_outside_the_model_is_that_inside_it(tmp_path, mode, way):
    rows = instructions()
    inside = losses_of(trainer_of(tmp_path, grootl(tree_mode=mode, tree_scale=2.0), rows))
    model = grootl(tree_mode=mode, tree_scale=2.0)
    outside = losses_of(trainer_of(tmp_path, model, rows, *WAYS[way]))
    assert len(inside) == 3
    assert outside == pytest.approx(inside, abs=1e-4)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("way", ["smoothing", "function"])
def test_a_loss_outside_an_adapted_model(tmp_path, way):
    peft = pytest.importorskip("peft")
    losses = []
    for kind, settings, given in ((Trainer, {}, {}), WAYS[way]):
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, target_modules=["in_proj"], task_type="CAUSAL_LM")
        model = peft.get_peft_model(grootl(), config)
        torch.manual_seed(1)
        rows = instructions()
        losses.append(losses_of(trainer_of(tmp_path, model, rows, kind, settings, given)))
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_virtual_tokens_before_a_text_leave_the_loss_as_it_is(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=4,
        num_layers=3,
        token_dim=32,
        num_attention_heads=1,
    )
    rows = instructions()
    # Left padding would stand between virtual tokens and text.
    del rows[1]
    model = peft.get_peft_model(grootl(), config)
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    with torch.no_grad():
        expected = model.eval()(**batch).loss.item()
    found = trainer_of(tmp_path, model, rows).evaluate()["eval_loss"]
    assert found == pytest.approx(expected, abs=1e-5)


def test_contexts_of_the_batch_go_before_those_of_its_labels(tmp_path):
    rows = [{**row, "context_lengths": torch.tensor(2)} for row in instructions()]
    model = grootl()
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    with torch.no_grad():
        expected = model(**batch).loss.item()
    found = trainer_of(tmp_path, model, rows, *WAYS["function"]).evaluate()["eval_loss"]
    assert found == pytest.approx(expected, abs=1e-4)


def test_other_models_are_given_what_they_were(tmp_path):
    rows, seen = instructions(), []
    model = mamba()
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True
    )
    trainer_of(tmp_path, model, rows).evaluate()
    assert seen and all("context_lengths" not in names for names in seen)


def test_a_loss_of_ones_own_without_a_context_is_warned_of(monkeypatch):
    from groot_graph.models.grootl import model as of_model

    said = []
    monkeypatch.setattr(of_model.logger, "warning_once", said.append)
    model, input_ids = grootl().train(), tokens(1, 5)
    model(input_ids, context_lengths=2), model(input_ids, labels=input_ids)
    model.eval()(input_ids)
    grootl(tree_mode="causal").train()(input_ids)
    assert not said
    model.train()(input_ids)
    assert len(said) == 1 and "give 'context_lengths'" in said[0]


def test_transformers_knows_the_model_by_name():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["grootl"] == "GrootLForCausalLM"
    config = GrootLConfig(vocab_size=9, hidden_size=16, num_hidden_layers=1)
    assert type(AutoModelForCausalLM.from_config(config)).__name__ == "GrootLForCausalLM"
