from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode

from sjepa_hf.configuration_sjepa import MIXTURE_FEATURES
from sjepa_hf.frame_features import FRAME_FEATURES, LogMelFeatures, MfccFeatures, num_features
from sjepa_hf.frames import frame_lengths


GOLDEN = Path(__file__).parents[1] / "golden" / "reference_targets.safetensors"


def torchaudio_features(waveform: torch.Tensor) -> torch.Tensor:
    """Features of one clip `(num_samples,)` alone, by torchaudio."""
    transforms = pytest.importorskip("torchaudio.transforms")
    compute_deltas = pytest.importorskip("torchaudio.functional").compute_deltas
    mfcc = transforms.MFCC(16000, 13, melkwargs={"n_fft": 400, "hop_length": 320, "n_mels": 23, "center": False})(
        waveform
    )
    deltas = compute_deltas(mfcc)
    return torch.cat([mfcc, deltas, compute_deltas(deltas)]).T


def clips() -> list[torch.Tensor]:
    """Speech-like clips: coloured noise under a syllable-rate envelope, loud to faint; the last one ends in a bang."""
    rng = torch.Generator().manual_seed(0)
    made = []
    for length, loudness in [(16000, 1e-3), (9999, 1.0), (12345, 0.05), (400, 0.3), (1100, 1e-5), (7039, 0.02)]:
        noise = torch.randn(length, generator=rng).cumsum(0)
        noise = noise - torch.nn.functional.avg_pool1d(noise[None], 101, 1, 50)[0]
        envelope = (torch.arange(length) / 16000 * 2 * torch.pi * 4).sin().clamp(min=0) ** 2
        made.append(loudness * noise / noise.abs().max() * envelope)
    made[-1][-300:] = 1.0  # heard by the frame after the last one only in part
    made[1][3000:6000] = 0.0  # digital silence
    return made


def padded(waveforms: list[torch.Tensor], extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    batch = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    return torch.nn.functional.pad(batch, (0, extra)), lengths


def test_released_features():
    """The released code's windows are centred on multiples of the hop: ours of a clip mirrored at its ends."""
    golden = load_file(GOLDEN)
    features = MfccFeatures()(torch.nn.functional.pad(golden["mfcc.waveform"], (200, 200), mode="reflect")[:, 0])
    expected = golden["mfcc.features_centered"].transpose(1, 2)
    assert features.shape == (2, 51, 39)
    assert torch.allclose(features, expected, rtol=1e-5, atol=3e-5)


def test_every_clip_of_a_padded_batch_equals_torchaudio_on_the_clip_alone():
    waveforms = clips()
    batch, lengths = padded(waveforms, extra=1234)
    features = MfccFeatures()(batch, lengths)
    for waveform, row in zip(waveforms, features):
        expected = torchaudio_features(waveform)
        assert torch.allclose(row[: len(expected)], expected, rtol=1e-5, atol=3e-5)
        assert (row[len(expected) :] == 0).all()


def test_a_clip_less_the_mean_of_what_is_heard_keeps_the_deltas():
    waveforms = clips()
    batch, lengths = padded(waveforms, extra=500)
    plain, subtracted = MfccFeatures()(batch, lengths), MfccFeatures(subtract_mean=True)(batch, lengths)
    assert torch.allclose(plain[..., 13:], subtracted[..., 13:], atol=1e-4)
    for row, length in enumerate(frame_lengths(lengths).tolist()):
        windows = waveforms[row].unfold(0, 400, 320) * torch.hann_window(400)
        heard = (torch.fft.rfft(windows).abs().square() @ MfccFeatures().mel_bands > 1e-10).any(1)
        assert heard.any() and (row != 1 or not heard.all())
        expected = plain[row, :length, :13] - plain[row, :length, :13][heard].mean(0)
        assert torch.allclose(subtracted[row, :length, :13], expected, atol=1e-4)
        assert not subtracted[row, length:].any()


def test_log_mel_features_are_what_mfcc_are_made_of():
    batch, lengths = padded(clips(), extra=500)
    bands = LogMelFeatures()(batch, lengths)
    assert bands.shape[-1] == num_features("log_mel") == 69
    cosines = MfccFeatures().cosines
    mfcc = torch.cat([part @ cosines for part in bands.split(23, dim=-1)], dim=-1)
    assert torch.allclose(mfcc, MfccFeatures()(batch, lengths), atol=1e-3)


@pytest.mark.parametrize("name", FRAME_FEATURES)
def test_features_by_name_have_the_size_they_say(name):
    assert FRAME_FEATURES[name]()(torch.randn(1, 800)).shape == (1, 2, num_features(name))


def test_batching_changes_nothing():
    waveforms = clips()
    batch, lengths = padded(waveforms, extra=777)
    module = MfccFeatures()
    features = module(batch, lengths)
    for waveform, row in zip(waveforms, features):
        alone = module(waveform[None])[0]
        assert torch.allclose(row[: len(alone)], alone, rtol=1e-5, atol=1e-5)


def test_sound_in_the_padding_is_not_heard():
    batch, lengths = padded(clips())
    dirty = batch + 10.0 * (torch.arange(batch.shape[1]) >= lengths[:, None])
    module = MfccFeatures()
    assert torch.allclose(module(dirty, lengths), module(batch, lengths), rtol=1e-5, atol=1e-5)


def test_frames_are_those_of_the_encoder():
    lengths = torch.tensor([0, 399, 400, 719, 720, 16000, 240000])
    assert frame_lengths(lengths).tolist() == [0, 0, 1, 1, 2, 49, 749]
    assert MfccFeatures()(torch.randn(2, 16000)).shape == (2, 49, 39)
    silent = MfccFeatures()(torch.zeros(2, 800), torch.tensor([800, 100]))
    assert silent.isfinite().all() and (silent[1] == 0).all()


def test_autocast_and_half_precision_input_do_not_lower_the_precision():
    batch, lengths = padded(clips())
    module = MfccFeatures()
    expected = module(batch, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = module(batch, lengths)
    assert features.dtype == torch.float32 and torch.equal(features, expected)
    assert module(batch.half(), lengths).dtype == torch.float32


def test_nothing_waits_for_values():
    module = MfccFeatures()
    with FakeTensorMode(allow_non_fake_inputs=True):  # tensors without values
        features = module(torch.zeros(2, 1600), torch.zeros(2, dtype=torch.long))
    assert features.shape == (2, 4, 39)


def test_nothing_is_saved_with_a_model():
    assert not MfccFeatures().state_dict()


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match="400"):
        MfccFeatures()(torch.zeros(2, 399))
    with pytest.raises(ValueError, match="input_values"):
        MfccFeatures()(torch.zeros(2, 1, 800))
    with pytest.raises(ValueError, match="lengths"):
        MfccFeatures()(torch.zeros(2, 800), torch.tensor([800]))


def test_a_mixture_can_be_over_each_of_them():
    assert {*FRAME_FEATURES, "encoder"} == set(MIXTURE_FEATURES)
