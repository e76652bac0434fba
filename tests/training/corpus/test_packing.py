"""Packed clips come back: FLAC bit for bit, Opus at its length with a ratio to tell."""

import json
import tarfile

import numpy as np
import pytest
import soundfile

from training.corpus.packing import pack_clip, pack_row, write_packed
from training.corpus.reading import Corpus, Row
from training.data.clips import Clip
from training.data.sources import open_source
from training.data.waveforms import BadAudio, check_samples, read_audio


def voice(seconds=1.0):
    time = np.arange(int(16000 * seconds)) / 16000
    return (0.3 * np.sin(2 * np.pi * 180 * time) * np.sin(2 * np.pi * 3 * time)).astype(np.float32)


def test_flac_is_exact_for_16_bits_and_rounds_what_has_more():
    rounded = np.rint(voice() * 32768).astype(np.float32) / 32768
    whole = pack_clip(rounded, "flac", 0)
    assert whole.exact and whole.error == 0 and np.array_equal(read_audio(whole.content), rounded)
    finer = pack_clip(rounded + 1e-6, "flac", 0)
    assert not finer.exact and np.array_equal(read_audio(finer.content), rounded)
    assert not (whole.clipped or finer.clipped)


def test_flac_ends_at_full_scale_and_says_so():
    loud = pack_clip(4 * voice(), "flac", 0)
    assert np.abs(read_audio(loud.content)).max() <= 1 and loud.error > 0 and loud.clipped
    full = np.append(voice() / 0.3, [1, -1]).astype(np.float32)
    assert not pack_clip(full, "flac", 0).clipped, "a step less than 1 is rounding"
    assert pack_clip(np.append(voice(), np.float32(-1.1)), "flac", 0).clipped
    assert not pack_clip(4 * voice(), "opus", 64).clipped


def test_a_whisper_is_not_rounded_to_silence():
    whisper = np.tile(np.float32([0.40e-4, -0.62e-4]), 8000)
    with pytest.raises(BadAudio, match="silent"):  # what 16 bits leave of it
        check_samples(np.rint(whisper * 2**15) / 2**15)
    packed = pack_clip(whisper, "flac", 0)
    assert np.abs(read_audio(packed.content) - whisper).max() <= 2**-24


def test_opus_is_smaller_at_lower_rates_and_worse():
    low, high = (pack_clip(voice(4), "opus", kbits) for kbits in (12, 96))
    assert len(low.content) < len(high.content) and low.error > high.error
    assert len(read_audio(high.content)) == 64000 and high.energy / high.error > 100 and not high.exact


@pytest.mark.parametrize(("kbits", "level"), [(6, 1), (131, 0.5), (256, 0)])
def test_the_rate_of_opus_is_that_which_is_asked_for(monkeypatch, kbits, level):
    write, levels = soundfile.write, []
    monkeypatch.setattr(soundfile, "write", lambda *a, **b: levels.append(b["compression_level"]) or write(*a, **b))
    packed, samples = pack_clip(voice(), "opus", kbits), voice().astype(np.float64)
    assert levels == [level] and packed.energy == pytest.approx((samples**2).sum())
    assert packed.error == pytest.approx(((read_audio(packed.content) - samples) ** 2).sum())


def test_a_bad_clip_is_named():
    found = pack_row(Row(0, "", Clip("a", BadAudio("missing", "gone")), {}), "flac", 0)
    assert isinstance(found, BadAudio) and found.reason == "missing"


def test_silence_is_packed_where_it_has_a_label(tmp_path):
    soundfile.write(tmp_path / "zeros.wav", np.zeros(8000), 16000)
    clip = Clip("zeros", str(tmp_path / "zeros.wav"))
    packed = pack_row(Row(0, "", clip, {"label": "silence"}), "flac", 0)
    assert packed.exact and not read_audio(packed.content, silence=True).any()
    for labels in ({}, {"label": None}):
        found = pack_row(Row(0, "", clip, labels), "flac", 0)
        assert isinstance(found, BadAudio) and found.reason == "silent"


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_shard_without_a_usable_clip_is_no_file(tmp_path, kind):
    write_packed(tmp_path, "train-00000", kind, "flac", [], [], ["text"])
    write_packed(
        tmp_path, "train-00001", kind, "flac", [Row(1, "", Clip("a", ""), {})], [pack_clip(voice(), "flac", 0)], []
    )
    ((_, rows),) = Corpus([str(tmp_path)], 9, streaming=True).shards()
    assert [row.number for row in rows] == [0]


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_shards_are_sources_again(tmp_path, kind):
    rows = [Row(5 + n, "mine", Clip(f"{n}.wav", ""), {"text": f"words {n}"}) for n in range(3)]
    packed = [pack_clip(voice(n + 1), "flac", 0) for n in range(3)]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_packed(tmp_path / folder, "train-00000", kind, "flac", rows, packed, ["text"])
    first, second = ((tmp_path / folder / f"train-00000.{kind}").read_bytes() for folder in "ab")
    assert first == second
    source = open_source(str(tmp_path / "a"), streaming=kind == "tar", labels=("text",))
    clips, labels = zip(*source.samples())
    texts = [found["text"] for found in labels]
    if kind == "tar":
        with tarfile.open(tmp_path / "a" / "train-00000.tar") as tar:
            facts = json.load(tar.extractfile("000000006.json"))
        assert facts == {"name": "1.wav", "source": "mine", "seconds": 2.0, "text": "words 1"}
    assert texts == ["words 0", "words 1", "words 2"]
    assert kind == "tar" or clips[1].name == "000000006.flac"
    for clip, each in zip(clips, packed, strict=True):
        assert clip.content() == each.content
