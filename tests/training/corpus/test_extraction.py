"""What is made of a shard: batches by length, long clips in pieces, bad ones named."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoints import save
from safetensors.torch import save_file

from sjepa_hf import SJepaForPreTraining, SJepaModel
from sjepa_hf.encoding import weights_hash
from sjepa_hf.frames import frame_lengths
from sjepa_hf.opening import EMA_ENCODER, open_sjepa
from training.corpus.extraction import _ahead, extract_shard, in_whole_pieces, layer_extractor, unit_extractor
from training.corpus.reading import Corpus
from training.data.clips import Clip


def all_rows(folder):
    ((_, rows),) = Corpus([str(folder)], clips_per_shard=20).shards()
    return list(rows)


@pytest.mark.parametrize("source", ["mixture", "prediction"])
def test_units_of_a_shard_are_those_of_each_clip(corpus_folder, clustered, source):
    rows = all_rows(corpus_folder)
    extractor = unit_extractor(clustered, source, top_k=2, device="cpu")
    done = extract_shard(extractor.extract, rows, batch_seconds=6, max_seconds=60)
    assert sorted(done.tensors) == [0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12]
    assert {place: reason for place, (_, reason) in done.bad.items()} == {4: "empty", 9: "corrupt"}
    model, same, frames = open_sjepa(SJepaForPreTraining, clustered).eval(), 0, 0
    known = {"checkpoint": clustered, "weights": weights_hash(model), "clusters": source, "components": 10}
    known |= {"mixture features": "mfcc_cmn", "layers": None, "top_k": 2, "ema encoder": False, "precision": "fp32"}
    assert extractor.description == known
    for place, found in done.tensors.items():
        samples = rows[place].clip.read()
        assert done.seconds[place] == len(samples) / 16000
        units = model.units(torch.from_numpy(samples)[None], top_k=2, source=source)
        expected = units.units[0]
        assert len(found["units"]) == len(expected) == frame_lengths(len(samples))
        same, frames = same + int((found["units"] == expected).sum()), frames + len(expected)
        assert found["posteriors"].dtype == torch.float16 and found["units"].dtype == torch.int32
        assert found["top_units"].shape == (len(expected), 2) and found["top_units"][:, 0].equal(found["units"])
        torch.testing.assert_close(found["posteriors"].float(), units.top_posteriors[0], atol=2e-3, rtol=0)
    assert same >= 0.999 * frames


def test_units_over_the_encoder_are_those_of_the_ema_encoder_and_predictions_of_the_encoder(make_config, tmp_path):
    model = SJepaForPreTraining(make_config("log_mel", num_hidden_layers=1)).eval()
    model.replace_mixture(6, 48)
    model.describe_mixture("encoder", [1])
    clip = 0.1 * np.random.randn(8000).astype(np.float32)
    path, audio = save(model, tmp_path), torch.from_numpy(clip)[None]
    (tmp_path / EMA_ENCODER).parent.mkdir()
    ema = {name: 1.5 * value for name, value in model.sjepa.state_dict().items()}
    save_file(ema, tmp_path / EMA_ENCODER)
    extractors = {source: unit_extractor(path, source, 6, "cpu") for source in (None, "prediction")}
    found = {source: extractor.extract([clip], ["a"])[0] for source, extractor in extractors.items()}
    for source, weights in (("prediction", {}), (None, ema)):
        model.sjepa.load_state_dict(weights, strict=bool(weights))
        expected = model.units(audio, top_k=6, source=source or "mixture").top_posteriors[0]
        torch.testing.assert_close(found[source]["posteriors"].float(), expected, atol=1e-3, rtol=0)
    told = [
        (extractor.description["ema encoder"], extractor.description["layers"]) for extractor in extractors.values()
    ]
    assert told == [(True, [1]), (False, None)]


def test_features_are_those_of_the_layers(corpus_folder, clustered):
    rows = all_rows(corpus_folder)
    encoder = SJepaModel.from_pretrained(clustered).eval()
    with torch.no_grad():
        states = encoder(torch.from_numpy(rows[0].clip.read())[None], output_hidden_states=True).hidden_states
    expected = torch.stack([states[3][0], states[1][0]], 1)
    extractor = layer_extractor(clustered, [3, 1], False, "cpu")
    known = {"checkpoint": clustered, "weights": weights_hash(encoder), "layers": [3, 1]}
    assert extractor.description == known | {"mean": False, "precision": "fp32"}
    found = extract_shard(extractor.extract, rows, 60, 60, dtype=torch.float16).tensors[0]["features"]
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, atol=2e-3, rtol=2e-3)
    extractor = layer_extractor(clustered, [3, 1], True, "cpu")
    pooled = extract_shard(extractor.extract, rows, 60, 60, pooled=True).tensors[0]["features"]
    torch.testing.assert_close(pooled[0, 0], expected.mean((0, 1)), atol=1e-4, rtol=1e-4)


def test_pieces_meet_without_a_gap():
    """An extractor that tells where in the whole each frame begins."""
    waveform = np.arange(16000 * 11 + 123, dtype=np.float32)

    def extract(waveforms, names):
        return [{"first": torch.from_numpy(w[: frame_lengths(len(w)) * 320 : 320].copy())} for w in waveforms]

    found = in_whole_pieces(extract, waveform, "a", max_seconds=3)["first"]
    assert found.equal(torch.arange(frame_lengths(len(waveform))) * 320.0)
    with pytest.raises(ValueError, match=r"longer than `max_seconds` \(3\) cannot be read in pieces: raise it"):
        in_whole_pieces(lambda clips, names: [{"": torch.zeros(len(w) // 160)} for w in clips], waveform, "a", 3)


def test_a_piece_is_read_with_two_seconds_around_it():
    read = []

    def extract(waveforms, names):
        read.extend((int(w[0]) // 320, frame_lengths(len(w))) for w in waveforms)
        return [{"": torch.zeros(frame_lengths(len(w)))} for w in waveforms]

    in_whole_pieces(extract, np.arange(16000 * 11, dtype=np.float32), "a", max_seconds=3)  # 549 frames
    assert read == [(0, 250), (50, 350), (200, 349), (350, 199)]


@pytest.mark.parametrize("batch_seconds", [1, 60])
def test_only_what_is_longer_than_may_be_is_read_in_pieces(corpus_folder, batch_seconds):
    rows, read = all_rows(corpus_folder), []

    def extract(waveforms, names):
        read.extend(names)
        return [{"": torch.zeros(frame_lengths(len(w)), 1)} for w in waveforms]

    done = extract_shard(extract, rows, batch_seconds, max_seconds=2)
    expected = {
        rows[place].clip.name: 1 + (frame_lengths(round(16000 * s)) > 100) for place, s in done.seconds.items()
    }
    assert Counter(read) == expected and set(expected.values()) == {1, 2}


def test_two_batches_are_decoded_ahead():
    rows, begun = [SimpleNamespace(clip=number) for number in range(6)], []
    pool = SimpleNamespace(submit=lambda read, clip: begun.append(clip) or clip)
    found = []
    for places, decoded in _ahead(pool, rows, [[4], [2, 0], [1], [3], [5]]):
        assert decoded == places
        found.append(len(begun))
    assert begun == [4, 2, 0, 1, 3, 5] and found == [4, 5, 6, 6, 6]


def test_long_clips_have_all_their_frames(corpus_folder, clustered):
    rows = all_rows(corpus_folder)
    extractor = unit_extractor(clustered, "mixture", 0, "cpu")
    done = extract_shard(extractor.extract, rows, batch_seconds=60, max_seconds=1.0)
    assert any(seconds > 1 for seconds in done.seconds.values())
    assert all(len(done.tensors[p]["units"]) == frame_lengths(round(16000 * s)) for p, s in done.seconds.items())


def test_what_half_precision_does_not_hold_names_the_clip(corpus_folder, clustered, tmp_path):
    """Features by frame, and the mean of the frames, which is converted later; float32 holds them."""
    model = SJepaModel.from_pretrained(clustered)
    model.encoder.layers[-1].final_layer_norm.weight.data.mul_(1e6)
    loud, rows = save(model, tmp_path / "loud"), all_rows(corpus_folder)[:2]
    extract = layer_extractor(loud, [3], False, "cpu").extract
    for pooled in (False, True):
        with pytest.raises(ValueError, match=r"0\d.wav: .* NaN or infinity. Take .*--dtype float32"):
            extract_shard(extract, rows, 60, 60, pooled, torch.float16)
        assert len(extract_shard(extract, rows, 60, 60, pooled, torch.float32).tensors) == 2


def test_no_unit_stands_for_nan(corpus_folder, clustered, tmp_path):
    model = SJepaForPreTraining.from_pretrained(clustered)
    model.cluster_head.layers[-2].bias.data.fill_(1e4)
    model.cluster_head.output.weight.data.fill_(1e4)  # logits of 5e9
    loud, rows = save(model, tmp_path / "loud"), all_rows(corpus_folder)[:2]
    with pytest.raises(ValueError, match=r"0\d.wav: .* has NaN or infinity. Take --precision bf16"):
        extract_shard(unit_extractor(loud, "prediction", 0, "cpu", "fp16").extract, rows, 60, 60)
    assert len(extract_shard(unit_extractor(loud, "prediction", 0, "cpu", "bf16").extract, rows, 60, 60).tensors) == 2


def test_only_the_list_is_asked_how_long_a_clip_is_where_it_says_so(corpus_folder, clustered, monkeypatch):
    rows = all_rows(corpus_folder)
    listed = [row._replace(clip=row.clip._replace(duration=0.4)) for row in rows[:3]]
    monkeypatch.setattr(Clip, "length", lambda clip: pytest.fail("was opened for its length"))
    told = []
    extract = unit_extractor(clustered, "mixture", 0, "cpu").extract
    done = extract_shard(extract, listed, 60, 60, progress=lambda clips, seconds: told.append((clips, seconds)))
    assert list(done.seconds.values()) == [0.4] * 3 and told == [(3, pytest.approx(1.2))]


def test_clips_that_cannot_be_opened_count_as_done(corpus_folder, clustered):
    told = []
    extract = unit_extractor(clustered, "mixture", 0, "cpu").extract
    rows = all_rows(corpus_folder)
    listed = [row._replace(clip=row.clip._replace(duration=0.4)) for row in rows]  # so that reading alone fails
    for these in (rows, listed):
        done = extract_shard(extract, these, 60, 60, progress=lambda clips, seconds: told.append(clips))
        assert sum(told) == 13 and sorted(done.bad) == [4, 9]
        told.clear()


def test_what_a_checkpoint_does_not_have_gets_a_sentence(clustered, make_config, tmp_path):
    alone = save(SJepaModel(make_config()), tmp_path / "encoder")
    with pytest.raises(ValueError, match="has no clusters that can be read, .*: fit some"):
        unit_extractor(alone, "mixture", 0, "cpu")
    with pytest.raises(ValueError, match="`top_k` is 11; it must lie between 0 and the 10"):
        unit_extractor(clustered, "mixture", 11, "cpu")
    with pytest.raises(ValueError, match="`layers` has 4, but the encoder has layers 0 to 3"):
        layer_extractor(clustered, [4], False, "cpu")
