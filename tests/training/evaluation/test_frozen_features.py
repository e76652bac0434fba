import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from sjepa_hf import SJepaModel
from sjepa_hf.feature_extraction import feature_extractor
from sjepa_hf.frame_features import MfccFeatures
from training.data.clips import Clip
from training.data.labelled import open_labelled
from training.data.waveforms import BadAudio
from training.evaluation import frozen_features
from training.evaluation.encoders import open_encoder
from training.evaluation.frozen_features import FeatureStore, FrozenFeatures, clip_keys


SECONDS = (0.5, 1.3, 0.3, 0.9)


class Counting:
    """An encoder that notes how many clips it is given."""

    def __init__(self, encoder):
        self.encoder, self.name, self.digest, self.clips = encoder, encoder.name, encoder.digest, 0

    def __call__(self, waveforms):
        self.clips += len(waveforms)
        return self.encoder(waveforms)


@pytest.fixture
def folder(tmp_path):
    """Four clips of noise, each in the folder of its label."""
    rng = np.random.default_rng(0)
    for i, seconds in enumerate(SECONDS):
        path = tmp_path / "audio" / "ab"[i % 2] / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal(int(seconds * 16000)), 16000)
    return tmp_path / "audio"


@pytest.fixture
def clips(folder):
    return open_labelled([str(folder)], ["label"], classes=True)


@pytest.fixture
def checkpoint(tmp_path, make_config):
    SJepaModel(make_config()).save_pretrained(tmp_path / "checkpoint")
    feature_extractor().save_pretrained(tmp_path / "checkpoint")
    return str(tmp_path / "checkpoint")


@pytest.fixture
def encoder(checkpoint):
    return Counting(open_encoder(checkpoint))


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "features", max_gigabytes=1)


def test_frames_are_the_hidden_states_of_each_clip_alone(clips, encoder, store):
    features = FrozenFeatures(encoder, clips, store, pooled=False)
    for i, states in enumerate(features[range(4)]):
        waveform = torch.from_numpy(clips[i]["input_values"])[None]
        with torch.no_grad():
            alone = torch.cat(encoder.encoder.model(waveform, output_hidden_states=True).hidden_states)
        assert states.shape == alone.shape == (4, (len(waveform[0]) - 400) // 320 + 1, 48)
        torch.testing.assert_close(states, alone, rtol=1e-3, atol=2e-3)  # fp16 on disk


def test_pooled_features_are_means_over_the_frames(clips, encoder, store):
    pooled = FrozenFeatures(encoder, clips, store, pooled=True)[range(4)]
    frames = FrozenFeatures(encoder, clips, store, pooled=False)[range(4)]
    for mean, states in zip(pooled, frames):
        assert mean.shape == (4, 48) and mean.dtype == torch.float32
        torch.testing.assert_close(mean, states.mean(1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pooled", [True, False])
def test_an_encoder_that_breaks_is_not_scored(clips, encoder, store, pooled):
    encoder.encoder.model.feature_projection.projection.bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="gives NaN or infinite features of clip 0: it is not scored"):
        FrozenFeatures(encoder, clips.select([0]), store, pooled)[[0]]


@pytest.mark.parametrize("pooled", [True, False])
def test_a_second_run_does_not_encode(clips, encoder, store, pooled):
    first = FrozenFeatures(encoder, clips, store, pooled)[[0, 1, 2, 3]]
    assert encoder.clips == 4
    again = FrozenFeatures(encoder, clips, FeatureStore(store.directory, 1), pooled)[[3, 1]]
    assert encoder.clips == 4
    assert torch.equal(again[0], first[3]) and torch.equal(again[1], first[1])
    subset = FrozenFeatures(encoder, clips.select([2]), FeatureStore(store.directory, 1), pooled)
    assert encoder.clips == 4 and torch.equal(subset[[0]][0], first[2])


def test_features_are_found_by_content(clips, encoder, store, folder, tmp_path):
    FrozenFeatures(encoder, clips, store, pooled=True)
    moved = folder.rename(tmp_path / "elsewhere")
    FrozenFeatures(encoder, open_labelled([str(moved)], ["label"], classes=True), store, pooled=True)
    assert encoder.clips == 4
    soundfile.write(moved / "a" / "0.wav", 0.1 * np.random.default_rng(9).standard_normal(8000), 16000)
    frozen_features._file_hash.cache_clear()
    changed = FrozenFeatures(encoder, open_labelled([str(moved)], ["label"], classes=True), store, pooled=True)
    assert encoder.clips == 5 and changed[[0]][0] is not None


def test_cut_out_clips_of_one_file_differ(tmp_path, folder):
    manifest = tmp_path / "cut.jsonl"
    rows = [f'{{"audio_filepath": "audio/b/1.wav", "offset": {start}, "duration": 0.4}}' for start in (0, 0.4, 0)]
    manifest.write_text("\n".join(rows))
    first, second, same = clip_keys(open_labelled([str(manifest)], []))
    assert first == same != second


@pytest.mark.parametrize("pooled", [True, False])
def test_beyond_the_bound_features_are_computed_on_the_fly(clips, encoder, store, tmp_path, caplog, pooled):
    stored = FrozenFeatures(encoder, clips, store, pooled)[[0, 1, 2, 3]]
    small = FeatureStore(tmp_path / "small", max_gigabytes=1e-6)
    features = FrozenFeatures(encoder, clips, small, pooled)
    assert "do not fit" in caplog.text and small.num_bytes == 0
    encoder.clips = 0
    for one, other in zip(features[[0, 1, 2, 3]], stored):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert encoder.clips == (0 if pooled else 4)  # means stay in memory


def test_what_fits_is_stored_and_the_rest_is_not(clips, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen_features, "SHARD_BYTES", 1)
    monkeypatch.setattr(frozen_features, "BATCH_SECONDS", 0.1)
    store = FeatureStore(tmp_path / "features", max_gigabytes=5e-5)
    features = FrozenFeatures(encoder, clips, store, pooled=False)
    assert 0 < store.num_bytes < 5e4 and 0 < len(store.folder(features._folder)) < 4
    assert [x.shape[1] for x in features[range(4)]] == [
        (int(s * 16000) - 400) // 320 + 1 for s in (0.5, 0.3, 1.3, 0.9)
    ]  # folder a, then b


def test_an_interrupted_write_leaves_nothing(store, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(frozen_features.os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        store.add("encoder/means", {"clip": torch.ones(3)})
    assert not [path for path in store.directory.rglob("*") if path.is_file()]
    assert "clip" not in store.folder("encoder/means")


def test_what_another_run_is_writing_is_not_counted(store):
    store.add("encoder/means", {"clip": torch.ones(3)})
    before = store.num_bytes
    written = store.directory / "encoder" / "means" / ".incomplete-x" / "files" / "y.safetensors"
    written.parent.mkdir(parents=True)
    written.write_bytes(b"half a sh")
    assert store.num_bytes == before > 0
    assert FeatureStore(store.directory, 1).folder("encoder/means").keys() == {"clip"}


def test_a_torn_shard_is_named_and_its_features_are_made_again(clips, encoder, store, caplog):
    first = FrozenFeatures(encoder, clips, store, pooled=True)[[0, 1]]
    (shard,) = store.directory.rglob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-100])
    for stored in (FeatureStore(store.directory, 1), FeatureStore(store.directory, 1)):
        again = FrozenFeatures(encoder, clips, stored, pooled=True)[[0, 1]]
        assert all(map(torch.equal, first, again)) and encoder.clips == 8
    assert caplog.text.count(f"{shard} is damaged") == 1 and "its features are computed again" in caplog.text


def test_values_beyond_half_precision_are_kept(clips, store):
    class Loud:
        name, digest = "loud", "loud"

        def __call__(self, waveforms):
            return [torch.full((1, 5, 2), 1e6 if len(w) > 16000 else 1.0) for w in waveforms]

    features = FrozenFeatures(Loud(), clips, store, pooled=False)
    assert sorted(float(x.max()) for x in features[range(4)]) == [1, 1, 1, 1e6]
    (shard,) = store.directory.rglob("*.safetensors")
    assert {x.dtype for x in load_file(shard).values()} == {torch.float16, torch.float32}


@pytest.mark.parametrize("pooled", [True, False])
def test_clips_that_break_when_decoded_have_no_features(folder, encoder, store, pooled):
    soundfile.write(folder / "a" / "2.wav", np.full(8000, np.nan), 16000, subtype="FLOAT")
    clips = open_labelled([str(folder)], ["label"], classes=True)
    for _ in range(2):
        features = FrozenFeatures(encoder, clips, store, pooled)
        assert [x is None for x in features[range(4)]] == [False, True, False, False]


def test_a_clip_that_is_gone_when_its_key_is_formed_has_no_features(clips, encoder, store, folder):
    (folder / "a" / "2.wav").unlink()
    for _ in range(2):
        features = FrozenFeatures(encoder, clips, store, pooled=True)
        assert [x is None for x in features[range(4)]] == [False, True, False, False]
    assert frozen_features._clip_key(Clip("x", BadAudio("missing")), 10) is None
    assert len(set(FrozenFeatures(encoder, clips, store, True, keys=[None] * 4).keys)) == 4


def test_other_encoders_get_clips_unpadded_and_normed(tmp_path, clips, store):
    config = HubertConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=[16] * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    model = HubertModel(config).eval()
    model.save_pretrained(tmp_path / "hubert")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path / "hubert")
    features = FrozenFeatures(open_encoder(str(tmp_path / "hubert")), clips, store, pooled=False)
    for i, states in enumerate(features[range(4)]):
        waveform = torch.from_numpy(clips[i]["input_values"])[None]
        normed = (waveform - waveform.mean()) / waveform.std(correction=0)
        with torch.no_grad():
            alone = torch.cat(model(normed, output_hidden_states=True).hidden_states)
            raw = torch.cat(model(waveform, output_hidden_states=True).hidden_states)
        torch.testing.assert_close(states, alone, rtol=2e-3, atol=4e-3)
        assert (states - alone).abs().max() < (raw - alone).abs().max()


def test_mfcc_has_the_frames_of_the_encoder(clips, encoder, store):
    mfcc = FrozenFeatures(open_encoder("mfcc"), clips, store, pooled=False)[range(4)]
    frames = FrozenFeatures(encoder, clips, store, pooled=False)[range(4)]
    assert [x.shape for x in mfcc] == [(1, states.shape[1], 39) for states in frames]
    expected = MfccFeatures()(torch.from_numpy(clips[1]["input_values"])[None])
    torch.testing.assert_close(mfcc[1], expected, rtol=1e-3, atol=0.1)


def test_a_gain_is_that_of_the_waveforms_and_has_features_of_its_own(clips, tmp_path):
    class Level:
        name, digest = "level", "level"

        def __call__(self, waveforms):
            return [torch.tensor([[[float(np.abs(waveform).max())]]]) for waveform in waveforms]

    store = FeatureStore(tmp_path / "store", 1)
    plain, soft = (FrozenFeatures(Level(), clips, store, True, gain=gain)[[0, 1]] for gain in (0.0, -6.0))
    torch.testing.assert_close(torch.stack(soft), torch.stack(plain) * 10 ** (-6 / 20))
