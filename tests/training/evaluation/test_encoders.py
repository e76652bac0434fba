import logging

import pytest
import torch

from sjepa_hf import SJepaModel
from sjepa_hf.saving import feature_extractor
from training.evaluation.encoders import TransformersEncoder, open_encoder


@pytest.fixture
def checkpoint(tmp_path, make_config):
    SJepaModel(make_config()).save_pretrained(tmp_path / "checkpoint")
    feature_extractor().save_pretrained(tmp_path / "checkpoint")
    return str(tmp_path / "checkpoint")


def test_digest_follows_weights_and_configuration(checkpoint, make_config):
    encoder = open_encoder(checkpoint)
    assert open_encoder(checkpoint).digest == encoder.digest
    assert open_encoder(f"untrained:{checkpoint}", untrained_seed=5).digest != encoder.digest
    with torch.no_grad():
        next(encoder.model.parameters()).view(-1)[0] += 1e-4
    assert TransformersEncoder("same", encoder.model, encoder.extractor).digest != encoder.digest
    before = TransformersEncoder("same", encoder.model, encoder.extractor).digest
    encoder.model.config.layer_norm_eps = 1e-3
    assert TransformersEncoder("same", encoder.model, encoder.extractor).digest != before


def test_untrained_encoders_are_drawn_from_their_seed_alone(checkpoint):
    state = torch.get_rng_state()
    first, again, other = (open_encoder(f"untrained:{checkpoint}", untrained_seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.digest == again.digest != other.digest


def test_what_cannot_be_opened_gets_a_sentence(tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    with pytest.raises(ValueError, match="nowhere cannot be opened as a directory or a name on the Hub"):
        open_encoder(str(tmp_path / "nowhere"))
