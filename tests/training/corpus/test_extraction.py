"""What is made of a shard: batches by length, long clips in pieces, bad ones named."""

import numpy as np
import pytest
import torch
from checkpoints import save

from sjepa_hf import SJepaForPreTraining, SJepaModel
from sjepa_hf.frames import frame_lengths
from sjepa_hf.opening import open_sjepa
from training.corpus.extraction import extract_shard, feature_extractor, in_whole_pieces, unit_extractor
from training.corpus.reading import Corpus


@pytest.mark.parametrize("source", ["mixture", "prediction"])
def test_units_of_a_shard_are_those_of_each_clip(corpus_folder, clustered, source):
    (_, rows), *rest = Corpus([str(corpus_folder)], clips_per_shard=20).shards()
    extractor = unit_extractor(clustered, source, top_k=2, device="cpu")
    done = extract_shard(extractor.extract, rows, batch_seconds=6, max_seconds=60)
    assert not rest and sorted(done.found) == [0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12] and done.in_pieces == 0
    assert {place: reason for place, (_, reason) in done.bad.items()} == {4: "empty", 9: "corrupt"}
    model, same, frames = open_sjepa(SJepaForPreTraining, clustered).eval(), 0, 0
    for place, found in done.found.items():
        samples = rows[place].clip.read()
        assert done.seconds[place] == len(samples) / 16000
        expected = model.units(torch.from_numpy(samples)[None], source=source).units[0]
        assert len(found["units"]) == len(expected) == frame_lengths(len(samples))
        same, frames = same + int((found["units"] == expected).sum()), frames + len(expected)
        assert found["top_units"].shape == found["posteriors"].shape == (len(expected), 2)
    assert same >= 0.999 * frames


def test_features_are_those_of_the_layers(corpus_folder, clustered):
    (_, rows), *_ = Corpus([str(corpus_folder)], clips_per_shard=20).shards()
    encoder = SJepaModel.from_pretrained(clustered).eval()
    with torch.no_grad():
        states = encoder(torch.from_numpy(rows[0].clip.read())[None], output_hidden_states=True).hidden_states
    expected = torch.stack([states[3][0], states[1][0]], 1)
    extractor = feature_extractor(clustered, [3, 1], False, False, "float16", "cpu")
    found = extract_shard(extractor.extract, rows, 60, 60).found[0]["features"]
    torch.testing.assert_close(found.float(), expected, atol=2e-3, rtol=2e-3)
    extractor = feature_extractor(clustered, [3, 1], True, True, "float32", "cpu")
    pooled = extract_shard(extractor.extract, rows, 60, 60, pooled=torch.float32).found[0]["features"]
    torch.testing.assert_close(pooled[0, 0], expected.mean((0, 1)), atol=1e-4, rtol=1e-4)


def test_pieces_meet_without_a_gap():
    """An extractor that tells where in the whole each frame begins."""
    waveform = np.arange(16000 * 11 + 123, dtype=np.float32)

    def extract(waveforms):
        return [{"first": torch.from_numpy(w[: frame_lengths(len(w)) * 320 : 320].copy())} for w in waveforms]

    found = in_whole_pieces(extract, waveform, max_seconds=3)["first"]
    assert found.equal(torch.arange(frame_lengths(len(waveform))) * 320.0)
    with pytest.raises(ValueError, match=r"longer than `max_seconds` \(3\) cannot be read in pieces: raise it"):
        in_whole_pieces(
            lambda waveforms: [{"every 10 ms": torch.zeros(len(w) // 160)} for w in waveforms], waveform, 3
        )


def test_long_clips_are_counted(corpus_folder, clustered):
    (_, rows), *_ = Corpus([str(corpus_folder)], clips_per_shard=20).shards()
    extractor = unit_extractor(clustered, "mixture", 0, "cpu")
    done = extract_shard(extractor.extract, rows, batch_seconds=60, max_seconds=1.0)
    assert done.in_pieces == sum(seconds > 1 for seconds in done.seconds.values()) > 0
    assert all(len(done.found[p]["units"]) == frame_lengths(round(16000 * s)) for p, s in done.seconds.items())


def test_what_a_checkpoint_does_not_have_gets_a_sentence(clustered, make_config, tmp_path):
    alone = save(SJepaModel(make_config()), tmp_path / "encoder")
    with pytest.raises(ValueError, match="has no clusters that can be read, .*: fit some"):
        unit_extractor(alone, "mixture", 0, "cpu")
    with pytest.raises(ValueError, match="`top_k` is 11; it must lie between 0 and the 10"):
        unit_extractor(clustered, "mixture", 11, "cpu")
    with pytest.raises(ValueError, match="`layers` has 4, but the encoder has layers 0 to 3"):
        feature_extractor(clustered, [4], False, False, "float16", "cpu")
