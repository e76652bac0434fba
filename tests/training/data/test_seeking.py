"""A piece of a file is the same as in the whole, wherever it begins, whether the format can seek or not."""

import io

import numpy as np
import pytest
import soundfile
from encoded_audio import wander

import training.data.waveforms
from training.data.waveforms import audio_length, read_audio


def swelling(seed: int, seconds: float = 7.0) -> np.ndarray:
    """Noise whose loudness changes every 50 ms: one frame needs far more bits than the next."""
    rng = np.random.default_rng(seed)
    loudness = np.repeat(rng.uniform(0, 1, round(seconds * 20)), 800)
    return (loudness * rng.uniform(-0.9, 0.9, len(loudness))).astype(np.float32)


def written(samples: np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format=kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("OGG", {"subtype": "VORBIS"}),
        ("OGG", {"subtype": "OPUS"}),
        ("MP3", {"bitrate_mode": "VARIABLE", "compression_level": 0.6}),
        ("MP3", {"bitrate_mode": "CONSTANT"}),
        ("FLAC", {}),
    ],
)
@pytest.mark.parametrize("seconds", [1.0, 7.0])
def test_pieces_are_those_of_the_whole(tmp_path, kind, options, seconds):
    """Late by up to 30 ms near the end of Vorbis; wrong in the first 10 ms of MP3."""
    for seed in range(3):
        content = written(swelling(seed, seconds), kind, **options)
        whole = read_audio(content)
        (tmp_path / "clip").write_bytes(content)
        for number, start in enumerate(range(0, len(whole) - 400, 1601 if seconds > 1 else 501)):
            source = content if number % 2 else tmp_path / "clip"
            piece = read_audio(source, offset=start / 16000, duration=0.2)
            np.testing.assert_allclose(piece, whole[start : start + 3200], atol=1e-4, err_msg=f"from {start} on")


def test_the_last_page_of_vorbis_may_last_seconds():
    """A quiet end: its packets are of few bytes, so that 255 of them, all that fit in a page, last long."""
    content = written(np.concatenate([swelling(0, 3.0), 1e-5 * wander(9.0)]), "OGG", subtype="VORBIS")
    whole = read_audio(content)
    for start in range(len(whole) - 90_000, len(whole) - 400, 4001):
        piece = read_audio(content, offset=start / 16000, duration=0.2, silence=True)
        np.testing.assert_allclose(piece, whole[start : start + 3200], rtol=0, atol=1e-7)


def test_blocks_follow_one_another(monkeypatch):
    content = written(swelling(1), "MP3", bitrate_mode="VARIABLE", compression_level=0.6)
    whole = read_audio(content)
    monkeypatch.setattr(training.data.waveforms, "BLOCK", 5000)
    np.testing.assert_allclose(read_audio(content), whole, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        ("WAV", "GSM610"),
        ("AIFF", "GSM610"),
        ("W64", "GSM610"),
        ("WAV", "G721_32"),
        ("AU", "G723_24"),
    ],
)
def test_what_cannot_seek_is_read_from_the_front(tmp_path, monkeypatch, kind, subtype):
    content = written(swelling(2, 3.0), kind, subtype=subtype)
    (tmp_path / "clip").write_bytes(content)
    samples, _ = soundfile.read(tmp_path / "clip", dtype="float32")
    for source in (content, tmp_path / "clip"):
        assert audio_length(source) == len(samples)
        np.testing.assert_array_equal(read_audio(source), samples)
    decoded = []
    original = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda self, frames, **how: decoded.append(frames) or original(self, frames, **how),
    )
    np.testing.assert_array_equal(read_audio(content, offset=1.5, duration=0.5), samples[24000:32000])
    assert sum(decoded) == 32000, "no further than the piece"
