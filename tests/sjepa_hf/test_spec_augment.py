"""SpecAugment acts in the encoder, alone or under a head, while it is trained; pretraining draws masks of its own."""

import pytest
import torch

from sjepa_hf import SJepaForCTC, SJepaForPreTraining, SJepaModel
from sjepa_hf.spec_augment import random_spans


NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "final_dropout", "layerdrop",
     "predictor_dropout"),
    0.0,
)  # fmt: skip


def test_random_spans_reach_their_share_on_real_frames_only():
    lengths = torch.tensor([500, 200, 10, 0]).repeat(400)
    mask = random_spans(lengths, 500, prob=0.2, span=10)
    shares = mask.float().sum(1).view(400, 4).mean(0) / torch.tensor([500, 200, 1, 1])
    # Spans overlap: fewer frames are hidden than spans would cover side by side.
    assert 0.16 < shares[0] < 0.20 and 0.16 < shares[1] < 0.20
    assert not mask[lengths <= 10].any() and not mask[lengths == 200][:, 200:].any()
    runs = mask[0].int().diff(prepend=torch.tensor([0])).eq(1).sum()
    assert mask[0].sum() >= 10 * runs  # whole spans, or several run together


@pytest.mark.parametrize("what", ["mask_time", "mask_feature"])
@pytest.mark.parametrize("model_class", [SJepaModel, SJepaForCTC])
def test_it_hides_while_training_only(what, model_class, make_config, padded_batch):
    waveforms, attention_mask, _ = padded_batch
    model = model_class(make_config(**(NO_DROPOUT | {"mask_time_prob": 0.0, f"{what}_prob": 0.5})))
    clean = model.eval()(waveforms, attention_mask)[0]
    assert not torch.allclose(clean, model.train()(waveforms, attention_mask)[0], atol=1e-3)
    model.config.apply_spec_augment = False
    torch.testing.assert_close(model(waveforms, attention_mask)[0], clean)
    model.config.apply_spec_augment = True
    model.base_model.eval()  # a frozen encoder under a head that learns
    torch.testing.assert_close(model(waveforms, attention_mask)[0], clean)


def test_what_is_hidden_is_blank_before_the_encoder(make_config, padded_batch):
    waveforms, attention_mask, lengths = padded_batch
    model = SJepaModel(
        make_config(mask_time_prob=0.5, mask_feature_prob=0.2, mask_time_length=5, **NO_DROPOUT)
    ).train()
    given = []
    model.encoder.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    model(waveforms, attention_mask)
    dimensions = given[0][0].abs().sum(0) == 0
    frames = given[0].abs().sum(-1) == 0
    real = torch.arange(49) < model.config.num_frames(lengths)[:, None]
    assert 0 < dimensions.sum() < 48 and 0 < (frames & real)[:2].sum() < real.sum()
    assert frames[~real].all(), "padding is blank as ever"


@pytest.mark.parametrize("hidden", [False, True])
def test_a_mask_of_the_callers_own_switches_it_off(hidden, make_config):
    model, waveforms = (
        SJepaModel(make_config(mask_time_prob=0.9, mask_feature_prob=0.9, **NO_DROPOUT)),
        torch.randn(2, 8000),
    )
    mask = torch.zeros(2, 24, dtype=torch.bool)
    mask[:, 3:9] = hidden
    found = model.train()(waveforms, mask_time_indices=mask).last_hidden_state
    torch.testing.assert_close(found, model.eval()(waveforms, mask_time_indices=mask).last_hidden_state)


def test_pretraining_never_augments(make_config, padded_batch):
    waveforms, attention_mask, lengths = padded_batch
    model = SJepaForPreTraining(make_config(mask_time_prob=0.9, mask_feature_prob=0.9, **NO_DROPOUT))
    mask = torch.zeros(3, 49, dtype=torch.bool)
    mask[:2, 3:20] = True
    targets = torch.randn(3, 49, 10).softmax(-1)
    for inputs in ({}, {"mask_time_indices": mask}, {"mask_time_indices": mask, "target_posteriors": targets}):
        outputs = [model.train(mode)(waveforms, attention_mask, **inputs) for mode in (True, False)]
        torch.testing.assert_close(outputs[0].logits, outputs[1].logits)
        if "target_posteriors" in inputs:
            torch.testing.assert_close(outputs[0].loss, outputs[1].loss)


def test_rates_of_zero_hide_nothing(make_config):
    model = SJepaModel(make_config(mask_time_prob=0.0, mask_feature_prob=0, **NO_DROPOUT))
    waveforms = torch.randn(1, 8000)
    torch.testing.assert_close(model.train()(waveforms)[0], model.eval()(waveforms)[0])


def test_the_feature_mask_must_fit(make_config):
    for wrong in (torch.zeros(2, 48), torch.zeros(2, 24, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"`mask_feature_indices` must be bool of shape \(2, 48\)"):
            SJepaModel(make_config())(torch.randn(2, 8000), mask_feature_indices=wrong)
