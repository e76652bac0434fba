"""Adapters that PEFT puts on a model as it comes: trained, saved, opened again and merged, they are the same model."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForAudioClassification, AutoModelForCTC

from sjepa_hf import (
    SJepaForAudioFrameClassification,
    SJepaForCTC,
    SJepaForPreTraining,
    SJepaForSequenceClassification,
    SJepaForXVector,
    SJepaModel,
)


CLASSES = (
    SJepaModel,
    SJepaForPreTraining,
    SJepaForCTC,
    SJepaForSequenceClassification,
    SJepaForAudioFrameClassification,
    SJepaForXVector,
)


def first_output(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch)[0]


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:`is_gradient_checkpointing`")
@pytest.mark.parametrize(
    ("auto_class", "targets", "head", "labels"),
    [
        (AutoModel, "all-linear", None, None),
        (AutoModelForCTC, "all-linear", ["lm_head"], [[5, 6]] * 3),
        (AutoModelForCTC, "all-linear", None, [[5, 6]] * 3),
        (AutoModelForCTC, ["q_proj", "v_proj"], ["lm_head"], [[5, 6]] * 3),
        (AutoModelForAudioClassification, "all-linear", ["projector", "classifier"], [1, 0, 1]),
    ],
    ids=["encoder", "ctc", "ctc_head_fixed", "ctc_attention", "classifier"],
)
def test_adapters_opened_again_and_merged(auto_class, targets, head, labels, make_config, padded_batch, tmp_path):
    """A CTC head has another vocabulary than the checkpoint names, as after pretraining."""
    SJepaModel(make_config("log_mel")).save_pretrained(tmp_path / "base")
    vocabulary = {"vocab_size": 9} if auto_class is AutoModelForCTC else {}

    def opened():
        torch.manual_seed(0)
        return auto_class.from_pretrained(tmp_path / "base", **vocabulary)

    batch = dict(zip(("input_values", "attention_mask"), padded_batch))
    model = get_peft_model(opened(), LoraConfig(r=2, target_modules=targets, modules_to_save=head)).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(2):  # the first moves B alone
        output = model(**batch, **({"labels": torch.tensor(labels)} if labels else {}))
        (output.loss if labels else output.last_hidden_state[:, :, 0].mean()).backward()
        optimizer.step()
    expected = first_output(model, batch)
    assert not torch.allclose(first_output(opened(), batch), expected, atol=1e-3)

    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(opened(), tmp_path / "adapter")
    assert torch.equal(first_output(again, batch), expected)
    merged = again.merge_and_unload()
    assert torch.allclose(first_output(merged, batch), expected, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.allclose(first_output(auto_class.from_pretrained(tmp_path / "merged"), batch), expected, atol=1e-4)


@pytest.mark.parametrize("model_class", CLASSES)
def test_there_are_no_embeddings_of_tokens_to_get_or_resize(model_class, make_config):
    model = model_class(make_config())
    assert model.get_input_embeddings() is None
    with pytest.raises(NotImplementedError, match="open it with a new head"):
        model.resize_token_embeddings(40)
