"""The predictor: what it reads at hidden frames, where its positions end, and its weights before any training."""

import pytest
import torch

from sjepa_hf import SJepaForPreTraining, SJepaModel


@pytest.mark.parametrize("keeps", [False, True])
def test_what_the_predictor_reads_at_hidden_frames(make_config, keeps):
    """The token alone, or the encoder's output beside it."""
    predictor = SJepaForPreTraining(make_config(predictor_keeps_hidden=keeps)).eval().predictor
    hidden, mask = torch.randn(1, 12, 48), torch.arange(12)[None] % 3 == 0
    changed = torch.where(mask[:, :, None], torch.randn_like(hidden), hidden)
    outputs = [predictor(states, mask, torch.arange(12)) for states in (hidden, changed)]
    assert torch.equal(*outputs) != keeps


def test_a_clip_beyond_the_table_of_positions_is_an_error(make_config):
    model = SJepaForPreTraining(make_config(predictor_max_positions=20))
    mask = torch.zeros(1, 49, dtype=torch.bool)
    mask[:, :5] = True
    with pytest.raises(ValueError, match="20 frames.*0.4 s.*has 49"):
        model(torch.randn(1, 16000), mask_time_indices=mask)


def test_what_an_encoder_s_checkpoint_lacks_is_initialised(config, tmp_path):
    SJepaModel(config).save_pretrained(tmp_path)
    model = SJepaForPreTraining.from_pretrained(tmp_path)  # on memory that nobody has written to
    fresh = SJepaForPreTraining(config).state_dict()
    for name, tensor in model.state_dict().items():
        assert tensor.abs().max() <= 2 * fresh[name].abs().max() + 1e-3, name
