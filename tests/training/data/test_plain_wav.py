"""Plain WAV files give the samples of libsndfile, and whatever is unusual is left to it."""

import io
import struct

import numpy as np
import pytest
import soundfile
from encoded_audio import encoded, piped_wav, wander

from training.data.plain_wav import open_plain_wav
from training.data.waveforms import audio_length, read_audio


SIGNED = b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf58.29.100\0"


def wav(num_frames: int = 300, channels: int = 1, rate: int = 16000, before: bytes = b"", seed: int = 0) -> bytes:
    """Full-scale noise as ffmpeg and sox write it, with chunks before the samples."""
    samples = np.random.default_rng(seed).integers(-(1 << 15), 1 << 15, (num_frames, channels)).astype("<i2").tobytes()
    kind = struct.pack("<IHHIIHH", 16, 1, channels, rate, 2 * rate * channels, 2 * channels, 16)
    body = b"WAVEfmt " + kind + before + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


def by_libsndfile(content: bytes) -> tuple[int, np.ndarray]:
    samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    return rate, samples


@pytest.mark.parametrize("before", [b"", SIGNED, SIGNED + SIGNED])
@pytest.mark.parametrize(("channels", "rate"), [(1, 16000), (2, 44100), (3, 8000)])
def test_samples_are_those_of_libsndfile(tmp_path, before, channels, rate):
    content = wav(channels=channels, rate=rate, before=before)
    (tmp_path / "a.wav").write_bytes(content)
    expected = by_libsndfile(content)[1]
    for source in (content, tmp_path / "a.wav", str(tmp_path / "a.wav")):
        file = open_plain_wav(source)
        assert (file.samplerate, file.channels, file.frames) == (rate, channels, 300)
        np.testing.assert_array_equal(file.read(1000), expected)
        file.seek(100)
        np.testing.assert_array_equal(np.concatenate([file.read(50), file.read(70)]), expected[100:220])
        assert file.read(1000).dtype == np.float32 and len(file.read(1)) == 0
        file.close()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        wav()[:40],
        wav()[:-2],
        wav() + b"\0\0",
        wav() + SIGNED,
        wav(0),
        piped_wav(wander(0.1), 0),
        piped_wav(wander(0.1), 0xFFFFFFFF),
        wav(before=SIGNED[:16] + b"\xff" + SIGNED[17:]),
        wav(before=b"junk" + SIGNED[4:]),
        wav().replace(b"RIFF", b"RIFX"),
        *(encoded(wander(0.1), "WAV", subtype) for subtype in ("PCM_U8", "PCM_24", "FLOAT", "ULAW", "IMA_ADPCM")),
        *(encoded(wander(0.1), kind) for kind in ("WAVEX", "FLAC", "AIFF")),
    ],
)
def test_what_is_unusual_is_left_to_libsndfile(tmp_path, content):
    (tmp_path / "a.wav").write_bytes(content)
    assert open_plain_wav(content) is None and open_plain_wav(tmp_path / "a.wav") is None


def test_damaged_files_that_are_taken_are_those_that_libsndfile_takes():
    rng, taken = np.random.default_rng(0), 0
    for number in range(500):
        content = bytearray(wav(20, 1 + number % 2, before=SIGNED * (number % 3), seed=number))
        for place in rng.integers(0, content.find(b"data") + 8, number % 4):
            content[place] = rng.choice([content[place] ^ 1 << int(rng.integers(8)), 0, 255])
        file = open_plain_wav(bytes(content))
        if file is not None:
            taken += 1
            rate, samples = by_libsndfile(bytes(content))
            assert rate == file.samplerate
            np.testing.assert_array_equal(file.read(file.frames), samples)
    assert 150 < taken < 400


def test_plain_files_are_read_without_libsndfile(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    path.write_bytes(wav(16000, 2))
    whole = read_audio(path)
    monkeypatch.setattr(soundfile, "SoundFile", None)
    np.testing.assert_array_equal(read_audio(path), whole)
    assert audio_length(path.read_bytes()) == 16000
    crop = read_audio(path, max_seconds=0.5, rng=np.random.default_rng(0))
    start = int(np.random.default_rng(0).integers(8001))
    np.testing.assert_array_equal(crop, whole[start : start + 8000])


def test_a_file_that_is_cut_off_while_it_is_open_ends_there(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(wav(300))
    file = open_plain_wav(path)
    with path.open("r+b") as shorter:
        shorter.truncate(44 + 2 * 100 + 1)
    assert len(file.read(300)) == 100
    file.close()
