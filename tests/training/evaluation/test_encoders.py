"""Encoders that are evaluated: every bit of their layers, what their digest follows, sentences."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from other_encoders import KINDS, save_other
from transformers import ASTConfig, ASTModel, AutoModelForCTC, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

import sjepa_hf
from sjepa_hf import SJepaModel
from sjepa_hf.feature_extraction import feature_extractor
from sjepa_hf.fitted_units import FittedUnits
from training import probe
from training.corpus.extraction import layer_extractor
from training.evaluation import encoders
from training.evaluation.encoders import TransformersEncoder, open_encoder
from training.finetuning.model import open_extractor


@pytest.fixture
def checkpoint(tmp_path, make_config):
    SJepaModel(make_config()).save_pretrained(tmp_path / "checkpoint")
    feature_extractor().save_pretrained(tmp_path / "checkpoint")
    return str(tmp_path / "checkpoint")


@pytest.fixture
def waveforms() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(size).astype(np.float32) for size in (9000, 16000, 16000)]


def test_every_layer_is_what_the_model_gives_bit_for_bit(checkpoint, waveforms):
    encoder = open_encoder(checkpoint)
    padded, mask = torch.zeros(3, 16000), torch.zeros(3, 16000, dtype=torch.int32)
    for row, real, waveform in zip(padded, mask, waveforms):
        row[: len(waveform)], real[: len(waveform)] = torch.from_numpy(waveform), 1
    for rows in ([0, 1, 2], [1, 2], [0]):  # with padding, and without
        found = encoder([waveforms[n] for n in rows])
        with torch.no_grad():
            size = int(mask[rows].sum(1).max())
            wanted = encoder.model(padded[rows, :size], mask[rows, :size], output_hidden_states=True).hidden_states
        for place, (n, layers) in enumerate(zip(rows, found, strict=True)):
            assert layers.shape[:2] == (4, 27 if n == 0 else 49)
            for layer, states in zip(layers, wanted, strict=True):
                assert layer.equal(states[place, : len(layer)])


@pytest.mark.parametrize(("kind", "within"), [("hubert", 0.0), ("wavlm", 1e-5)])  # read alone, and in a batch
def test_other_encoders_give_each_clip_what_it_gets_alone(kind, within, waveforms, tmp_path):
    encoder = open_encoder(str(save_other(KINDS[kind], tmp_path / kind)))
    for waveform, layers in zip(waveforms, encoder(waveforms), strict=True):
        normed = encoder.extractor(waveform, sampling_rate=16000, return_tensors="pt").input_values
        with torch.no_grad():
            wanted = torch.cat(encoder.model(normed, output_hidden_states=True).hidden_states)
        assert len(wanted) == 4
        torch.testing.assert_close(layers, wanted, rtol=0, atol=within)


def test_an_encoder_is_frozen_whatever_its_model_was(checkpoint, waveforms):
    model = SJepaModel.from_pretrained(checkpoint).train()
    model.config.hidden_dropout = 0.5
    encoder = TransformersEncoder("mine", model, feature_extractor())
    assert encoder(waveforms[:1])[0].equal(open_encoder(checkpoint)(waveforms[:1])[0])
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())


def test_the_digest_does_not_follow_the_place(checkpoint, tmp_path):
    moved = str(shutil.copytree(checkpoint, tmp_path / "moved"))
    assert open_encoder(moved).digest == open_encoder(checkpoint).digest


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


def test_digest_follows_the_code_that_computes_and_no_other(checkpoint, tmp_path, monkeypatch):
    code = Path(shutil.copytree(Path(sjepa_hf.__file__).parent, tmp_path / "code"))
    monkeypatch.setattr(encoders.inspect, "getsourcefile", lambda _: code / "modeling_sjepa.py")
    before = open_encoder(checkpoint).digest
    for name, follows in (("push.py", False), ("front_end.py", True)):
        (code / name).write_text("# changed")
        assert (open_encoder(checkpoint).digest != before) == follows, name


def test_the_digest_of_other_encoders_follows_which_are_read_alone(tmp_path, monkeypatch):
    folder = str(save_other(KINDS["wavlm"], tmp_path / "wavlm"))
    before = open_encoder(folder).digest
    (tmp_path / "encoding.py").write_text("# changed")
    monkeypatch.setattr(encoders.encoding, "__file__", str(tmp_path / "encoding.py"))
    assert open_encoder(folder).digest != before


def test_untrained_encoders_are_drawn_from_their_seed_alone(checkpoint):
    state = torch.get_rng_state()
    first, again, other = (open_encoder(f"untrained:{checkpoint}", untrained_seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.digest == again.digest != other.digest


def test_what_cannot_be_opened_gets_a_sentence(tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    with pytest.raises(ValueError, match="nowhere cannot be opened: there is no such directory"):
        open_encoder(str(tmp_path / "nowhere"))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ASTModel(ASTConfig(**sizes)).save_pretrained(tmp_path / "pictures")  # of spectrograms, which it calls input_values
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "pictures")
    with pytest.raises(ValueError, match="pictures reads input_values: only encoders of waveforms"):
        open_encoder(str(tmp_path / "pictures"))
    WhisperFeatureExtractor().save_pretrained(save_other(KINDS["hubert"], tmp_path / "mixed"))
    with pytest.raises(ValueError, match="extractor of .*mixed gives input_features: only encoders of waveforms"):
        open_encoder(str(tmp_path / "mixed"))


@pytest.mark.parametrize(
    "opening",
    [
        open_encoder,
        lambda name: layer_extractor(name, [1], False, "cpu"),
        lambda name: FittedUnits.fit(name, [], [1]),
        lambda name: open_extractor(name, AutoModelForCTC, "CTC"),
        lambda name: probe.main([name, "--data", "nowhere", "--utterance_labels", "voice"]),
    ],
)
def test_an_encoder_at_another_rate_is_refused(opening, tmp_path):
    theirs = str(save_other(KINDS["hubert"], tmp_path / "theirs", sampling_rate=8000))
    with pytest.raises((ValueError, SystemExit), match="theirs hears audio of 8,000 Hz .* one of 16,000 Hz"):
        opening(theirs)


def test_fbank_is_kaldis_with_slopes_normed_over_the_clip():
    """Against the log-mel frames that transformers makes where torchaudio is missing, and slopes by least squares."""
    waveform = np.random.default_rng(0).standard_normal(16000).astype(np.float32) * np.linspace(0, 0.3, 16000)
    bands = spectrogram(
        waveform,
        window_function(400, "povey", periodic=False),
        *(400, 160, 512),
        center=False,
        power=2.0,
        preemphasis=0.97,
        mel_filters=mel_filter_bank(257, 80, 20.0, 8000.0, 16000, None, "kaldi", True),
        log_mel="log",
        mel_floor=torch.finfo(torch.float32).eps,
        remove_dc_offset=True,
    ).T
    (found,) = open_encoder("fbank")([waveform.astype(np.float32)])
    assert found.shape == (1, 98, 240)
    values = [bands]
    for _ in range(2):
        around = np.pad(values[-1], ((2, 2), (0, 0)), mode="edge")
        values.append(np.array([np.polyfit(range(5), around[n : n + 5], 1)[0] for n in range(98)]))
    wanted = np.concatenate(values, axis=1)
    wanted = (wanted - wanted.mean(0)) / wanted.std(0, ddof=1)
    np.testing.assert_allclose(found[0].numpy(), wanted, atol=5e-3)
    assert open_encoder("fbank")([waveform[:400].astype(np.float32)])[0].isfinite().all(), "a clip of one frame"
