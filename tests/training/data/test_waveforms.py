"""The gate: a length that no header gives, limits of rate, channels, length and memory, and files that lie."""

import io
import os
import pickle
import socket
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile

import sjepa_hf.resampling
import training.data.waveforms
from benchmarks.fuzz_audio import mutated, originals
from sjepa_hf.frames import SAMPLING_RATE
from training.data.unsized import BIT_RATES
from training.data.waveforms import LONGEST, RATES, BadAudio, audio_length, check_samples, read_audio


def wander(seconds: float, rate: int = SAMPLING_RATE, seed: int = 0) -> np.ndarray:
    """Noise that swells from nothing: every place of it is different, and no coder gives it a constant bit rate."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, len(time))
    return (noise * (1 - np.exp(-time))).astype(np.float32)


def encoded(samples: np.ndarray, kind: str, subtype: str | None = None, rate: int = SAMPLING_RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def piped_flac(samples: np.ndarray, frames: int = 0, rate: int = SAMPLING_RATE) -> bytes:
    """As an encoder leaves it that cannot go back to write the number of frames."""
    content = bytearray(encoded(samples, "FLAC", rate=rate))
    content[21] = content[21] & 0xF0 | frames >> 32
    content[22:26] = struct.pack(">I", frames & 0xFFFFFFFF)
    return bytes(content)


def piped_wav(samples: np.ndarray, size: int) -> bytes:
    content = bytearray(encoded(samples, "WAV", "PCM_16"))
    place = content.find(b"data")
    content[4:8] = content[place + 4 : place + 8] = struct.pack("<I", size)
    return bytes(content)


def piped_mp3(samples: np.ndarray) -> bytes:
    """Of variable bit rate, without the first frame, which tells how many follow."""
    content = encoded(samples, "MP3")
    assert b"Xing" in content[:100] or b"Info" in content[:100]
    return content[72_000 * BIT_RATES[False][(content[2] >> 4) - 1] // SAMPLING_RATE + (content[2] >> 1 & 1) :]


def chained_ogg(*pieces: np.ndarray) -> bytes:
    content = [encoded(piece, "OGG", "VORBIS") for piece in pieces]
    assert len({part[14:18] for part in content}) == len(pieces)  # each stream has a number of its own
    return b"".join(content)


def reason(source, **options) -> str:
    with pytest.raises(BadAudio) as caught:
        read_audio(source, **options)
    return caught.value.reason


@pytest.mark.parametrize("frames", [0, 1 << 35, (1 << 36) - 1])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_flac_of_a_pipe_is_read_like_any_other(tmp_path, rate, frames):
    samples = wander(3.0, rate)
    (tmp_path / "piped.flac").write_bytes(piped_flac(samples, frames, rate))
    (tmp_path / "whole.flac").write_bytes(encoded(samples, "FLAC", rate=rate))
    options = [{}, {"offset": 1.2}, {"offset": 0.5, "duration": 1.0}, {"max_seconds": 1.0}]
    options += [{"max_seconds": 0.5, "offset": 0.25, "rng": 7}, {"max_seconds": 1.0, "rng": 1}]
    for option in options:
        found = []
        for source in ("whole.flac", "piped.flac", "piped.flac as bytes"):
            path = tmp_path / source.split()[0]
            given = option | ({"rng": np.random.default_rng(option["rng"])} if "rng" in option else {})
            found.append(read_audio(path.read_bytes() if "bytes" in source else path, **given))
        np.testing.assert_array_equal(found[0], found[1])
        np.testing.assert_array_equal(found[0], found[2])
    for source in (tmp_path / "piped.flac", (tmp_path / "piped.flac").read_bytes()):
        assert audio_length(source) == 48000
        assert audio_length(source, offset=1.0) == 32000
        assert reason(source, offset=3.5) == "empty"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda samples: piped_wav(samples, 0), id="wav, 0"),
        pytest.param(lambda samples: piped_wav(samples, 0xFFFFFFFF), id="wav, -1"),
        pytest.param(lambda samples: piped_wav(samples, 0x7FFFFFFF), id="wav, 2 GB"),
        pytest.param(piped_mp3, id="mp3"),
        pytest.param(lambda samples: piped_mp3(samples[::-1].copy()), id="mp3, loud first"),
        pytest.param(lambda samples: chained_ogg(samples[:30000], samples[30000:]), id="chained ogg"),
    ],
)
def test_nothing_of_a_file_without_a_length_is_lost(tmp_path, content):
    samples = wander(4.0)
    content = content(samples)
    (tmp_path / "clip").write_bytes(content)
    for source in (content, tmp_path / "clip"):
        whole = read_audio(source)
        assert len(whole) == audio_length(source) == pytest.approx(64000, abs=2500)
        start = int(np.random.default_rng(5).integers(len(whole) - 16000 + 1))
        crop = read_audio(source, max_seconds=1.0, rng=np.random.default_rng(5))
        np.testing.assert_allclose(crop, whole[start : start + 16000], atol=1e-4)


def test_a_wav_file_that_holds_nothing_but_a_title_is_empty():
    content = piped_wav(wander(0.1), 0)
    place = content.find(b"data") + 8
    title = b"LIST" + struct.pack("<I", 400) + b"INFOINAM" + bytes(392)
    assert reason(content[:place]) == reason(content[:place] + title) == "empty"


def test_a_length_is_counted_once(tmp_path, monkeypatch):
    (tmp_path / "piped.flac").write_bytes(piped_flac(wander(2.0)))
    opened = []
    original = training.data.waveforms._Forward.__init__
    monkeypatch.setattr(
        training.data.waveforms._Forward,
        "__init__",
        lambda self, *given: opened.append(given) or original(self, *given),
    )
    for source in (tmp_path / "piped.flac", (tmp_path / "piped.flac").read_bytes()):
        opened.clear()
        assert [audio_length(source) for _ in range(3)] == [32000] * 3
        assert len(opened) == 1
    (tmp_path / "piped.flac").write_bytes(piped_flac(wander(1.0)))
    assert audio_length(tmp_path / "piped.flac") == 16000, "another file of that name"


def with_rate(rate: int, seconds: float = 1.0) -> bytes:
    content = bytearray(encoded(wander(seconds), "WAV", "PCM_16"))
    content[24:28] = struct.pack("<I", rate)
    return bytes(content)


@pytest.mark.parametrize("bit", range(32))
def test_a_flipped_bit_of_the_rate_costs_nothing(bit):
    rate = 16000 ^ 1 << bit
    content = with_rate(rate)
    if not RATES[0] <= rate <= RATES[1]:
        with pytest.raises(BadAudio, match=f"corrupt: sampling rate {rate} Hz" if rate < 1 << 31 else "corrupt"):
            read_audio(content)
    else:
        assert len(read_audio(content)) == pytest.approx(16000 * 16000 / rate, rel=2e-3, abs=2)


def test_no_rate_needs_a_large_filter():
    """The filter, and the products that a second of audio takes."""
    rates = [*range(RATES[0], RATES[1], 997), 191_987, 190_801]
    for rate in rates:
        ratio = Fraction(rate, SAMPLING_RATE).limit_denominator(640)
        if ratio != 1:
            reach = 2 * np.ceil(6 * max(1, ratio) / 0.99) + ratio.numerator
            assert ratio.denominator * reach < 6e6, rate
            assert SAMPLING_RATE * reach < 2e8, rate


@pytest.mark.parametrize("rate", [8000, 44100, 48000, 11025])
def test_long_clips_are_resampled_in_pieces_without_a_seam(rate, monkeypatch):
    samples = wander(3.0, rate)
    whole = sjepa_hf.resampling.resample(samples, rate)
    monkeypatch.setattr(sjepa_hf.resampling, "PIECE", 5000)
    np.testing.assert_allclose(sjepa_hf.resampling.resample(samples, rate), whole, atol=1e-6)
    np.testing.assert_allclose(read_audio(encoded(samples, "WAV", "FLOAT", rate)), whole, atol=1e-6)


@pytest.mark.parametrize(("channels", "wrong"), [(64, None), (65, "65 channels"), (1000, "1000 channels")])
def test_no_speech_has_a_thousand_channels(channels, wrong):
    content = encoded(np.repeat(wander(0.05)[:, None], channels, axis=1), "WAV", "PCM_16")
    if wrong is None:
        assert len(read_audio(content)) == 800
    else:
        with pytest.raises(BadAudio, match=wrong):
            read_audio(content)


@pytest.mark.parametrize("value", [1e30, -101.0, 3e38])
def test_samples_far_beyond_full_scale_are_corrupt(value):
    samples = wander(1.0)
    samples[100] = value
    with pytest.raises(BadAudio, match="corrupt: peak"):
        read_audio(encoded(samples, "WAV", "FLOAT"))
    with pytest.raises(BadAudio, match="corrupt: peak"):
        check_samples(samples)


def hole(path: Path, seconds: float, channels: int = 1) -> Path:
    """A WAV file of that length that takes no space: the first second has sound."""
    soundfile.write(path, np.repeat(wander(1.0)[:, None], channels, axis=1), SAMPLING_RATE, subtype="PCM_16")
    size = round(seconds * SAMPLING_RATE) * 2 * channels
    with path.open("r+b") as file:
        file.seek(4)
        file.write(struct.pack("<I", size + 36))
        file.seek(40)
        file.write(struct.pack("<I", size))
        file.truncate(44 + size)
    return path


def test_of_a_long_file_a_part_is_read_and_not_the_whole(tmp_path):
    path = hole(tmp_path / "long.wav", 4 * 3600)
    assert audio_length(path) == 4 * 3600 * SAMPLING_RATE
    with pytest.raises(BadAudio, match="too_long: 14400 s .*offset and duration") as caught:
        read_audio(path)
    assert caught.value.reason == "too_long" and 4 * 3600 > LONGEST
    assert len(read_audio(path, duration=2.0)) == len(read_audio(path, max_seconds=2.0)) == 32000
    assert reason(path, max_seconds=2.0, rng=np.random.default_rng(0)) == "silent"


def test_a_length_that_takes_too_long_to_count_is_refused(monkeypatch):
    monkeypatch.setattr(training.data.waveforms, "MOST_COUNTED", 40_000)
    monkeypatch.setattr(training.data.waveforms, "BLOCK", 10_000)
    assert reason(piped_flac(wander(4.0))) == "too_long"
    assert audio_length(piped_flac(wander(2.0))) == 32000


def test_what_a_header_claims_takes_no_memory(tmp_path):
    """In a process that may not have what the headers claim."""
    (tmp_path / "lie.flac").write_bytes(piped_flac(wander(1.0), (1 << 26) * 3))
    hole(tmp_path / "channels.wav", 60, channels=64)
    code = f"""
import resource, numpy as np
from training.data.waveforms import audio_length, read_audio
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
assert len(read_audio({str(tmp_path / "lie.flac")!r})) == 16000
assert len(read_audio({str(tmp_path / "channels.wav")!r}, max_seconds=60.0)) == 960000
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s.wav"))
        (tmp_path / "zero.wav").symlink_to("/dev/zero")
        (tmp_path / "loop.wav").symlink_to("loop.wav")
        for name in ("pipe.wav", "s.wav", "zero.wav", "loop.wav"):
            for read in (read_audio, audio_length):
                with pytest.raises(BadAudio) as caught:
                    read(tmp_path / name)
                assert caught.value.reason == "missing"
    for path in ("/dev/zero", "/dev/stdin", "/proc/self"):
        assert reason(path) == "missing"
    assert reason("/proc/self/maps") == "empty"


def test_bad_audio_travels_between_processes():
    error = pickle.loads(pickle.dumps(BadAudio("corrupt", "why")))
    assert (error.reason, error.detail, str(error)) == ("corrupt", "why", "corrupt: why")


def test_mutated_files_end_in_samples_or_are_bad():
    files = originals(seconds=1.0)
    for number in range(60):
        _, content = mutated(files, number)
        for options in ({}, {"max_seconds": 0.5, "rng": np.random.default_rng(number)}):
            try:
                samples = read_audio(content, **options)
                assert audio_length(content) > 0
            except BadAudio:
                continue
            assert samples.dtype == np.float32 and np.isfinite(samples).all() and np.abs(samples).max() < 1000
