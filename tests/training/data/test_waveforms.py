"""Waveforms: rates, crops and segments are exact, bad files are told apart, limits hold, and files may lie."""

import csv
import os
import pickle
import socket
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
from encoded_audio import encoded, piped_flac, reason, wander
from processes import run_python

import sjepa_hf.resampling
import training.data.waveforms
from benchmarks.fuzz_audio import mutated, originals
from sjepa_hf.frames import SAMPLING_RATE
from training.data.waveforms import LONGEST, RATES, BadAudio, audio_length, check_samples, read_audio


def noise(seconds: float, rate: int = SAMPLING_RATE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate)).astype(np.float32)


def ramp(tmp_path: Path, seconds: float, rate: int = SAMPLING_RATE, name: str = "ramp.wav") -> Path:
    """A file whose sample values say where they are: value * 2**18 is the position."""
    samples = np.arange(round(seconds * rate), dtype=np.float32) / 2**18
    soundfile.write(tmp_path / name, samples, rate, subtype="FLOAT")
    return tmp_path / name


def write_bad(path: Path, kind: str) -> None:
    samples = noise(1.0)
    if kind == "corrupt":
        path.write_bytes(b"these bytes are no audio file" * 100)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "no_samples":
        soundfile.write(path, samples[:0], SAMPLING_RATE)
    elif kind == "too_short":
        soundfile.write(path, samples[:399], SAMPLING_RATE)
    elif kind in ("nan", "inf", "loud"):
        samples[500] = {"nan": np.nan, "inf": -np.inf, "loud": 20000.0}[kind]
        soundfile.write(path, samples, SAMPLING_RATE, subtype="FLOAT")
    elif kind in ("silent", "constant"):
        soundfile.write(path, 0 * samples + {"silent": 0.0, "constant": 0.25}[kind], SAMPLING_RATE)
    elif kind == "slow":
        soundfile.write(path, samples, 100)
    elif kind == "header_only":
        soundfile.write(path, samples, SAMPLING_RATE)
        path.write_bytes(path.read_bytes()[:30])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("absent", "missing"),
        ("corrupt", "corrupt"),
        ("header_only", "corrupt"),
        ("loud", "corrupt"),
        ("slow", "corrupt"),
        ("empty", "empty"),
        ("no_samples", "empty"),
        ("too_short", "too_short"),
        ("nan", "non_finite"),
        ("inf", "non_finite"),
        ("silent", "silent"),
        ("constant", "silent"),
    ],
)
def test_bad_audio_is_told_apart(tmp_path, kind, reason):
    path = tmp_path / "bad.wav"
    write_bad(path, kind)
    with pytest.raises(BadAudio) as caught:
        read_audio(path)
    assert caught.value.reason == reason
    if kind != "absent":
        with pytest.raises(BadAudio) as caught:
            read_audio(path.read_bytes())
        assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["", "a" * 300 + ".wav", "nul\0.wav", "\ud800.wav"])
def test_a_folder_and_impossible_names_are_missing(tmp_path, name):
    with pytest.raises(BadAudio) as caught:
        read_audio(f"{tmp_path}/{name}")
    assert caught.value.reason == "missing"


def test_a_soft_clip_is_not_silent(tmp_path):
    soundfile.write(tmp_path / "soft.flac", noise(1.0) * 4e-4, SAMPLING_RATE)  # 16 bit, a few steps
    assert 1e-4 < np.abs(read_audio(tmp_path / "soft.flac")).max() < 3e-4


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_cut_off_file_gives_what_is_left_or_is_bad(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    soundfile.write(path, noise(3.0), SAMPLING_RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for seed in range(5):
        try:
            samples = read_audio(path, max_seconds=1.0, rng=np.random.default_rng(seed))
        except BadAudio as error:
            assert error.reason in ("corrupt", "empty", "too_short")
        else:
            assert 400 <= len(samples) <= SAMPLING_RATE and np.isfinite(samples).all()


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000, 44056, 47999])
def test_any_rate_becomes_16_khz(tmp_path, rate):
    time = np.arange(rate) / rate
    soundfile.write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 440 * time), rate, subtype="FLOAT")
    samples = read_audio(tmp_path / "tone.wav")
    assert abs(len(samples) - SAMPLING_RATE) <= 1 and samples.dtype == np.float32
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(SAMPLING_RATE) / SAMPLING_RATE)
    middle = slice(1000, 15000)
    np.testing.assert_allclose(samples[middle], expected[middle], atol=0.03 if rate == 47999 else 2e-3)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_channels_are_averaged(tmp_path, rate):
    left, right = noise(0.5, rate, 1), noise(0.5, rate, 2)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], axis=1), rate, subtype="FLOAT")
    soundfile.write(tmp_path / "mono.wav", (left + right) / 2, rate, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "stereo.wav"), read_audio(tmp_path / "mono.wav"), atol=1e-6)


def test_bytes_and_path_give_the_same(tmp_path):
    path = ramp(tmp_path, 1.0)
    np.testing.assert_array_equal(read_audio(path), read_audio(path.read_bytes()))
    assert audio_length(path) == audio_length(path.read_bytes()) == SAMPLING_RATE


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100])
@pytest.mark.parametrize(("offset", "duration"), [(0.0, None), (0.3, None), (0.3, 0.4), (0.9, 5.0)])
def test_header_length_is_the_decoded_length(tmp_path, rate, offset, duration):
    path = ramp(tmp_path, 1.0, rate)
    length = audio_length(path, offset=offset, duration=duration)
    assert length == len(read_audio(path, offset=offset, duration=duration))
    assert length == pytest.approx(min(duration or 9.0, 1.0 - offset) * SAMPLING_RATE, abs=2)


def test_segment_starts_and_ends_where_asked(tmp_path):
    positions = read_audio(ramp(tmp_path, 2.0), offset=0.5, duration=0.25) * 2**18
    np.testing.assert_array_equal(positions, np.arange(8000, 12000))


@pytest.mark.parametrize(("offset", "duration", "reason"), [(2.0, None, "empty"), (0.0, 0.0, "empty")])
def test_segment_outside_the_file_is_empty(tmp_path, offset, duration, reason):
    path = ramp(tmp_path, 2.0)
    for read in (read_audio, audio_length):
        with pytest.raises(BadAudio) as caught:
            read(path, offset=offset, duration=duration)
        assert caught.value.reason == reason


def test_silence_is_taken_where_it_is_wanted(tmp_path):
    path = tmp_path / "silent.wav"
    soundfile.write(path, np.zeros(8000), SAMPLING_RATE)
    assert np.array_equal(read_audio(path, silence=True), np.zeros(8000, np.float32))
    soundfile.write(path, np.full(8000, np.nan), SAMPLING_RATE, subtype="FLOAT")
    with pytest.raises(BadAudio, match="non_finite"):
        read_audio(path, silence=True)


def test_min_seconds(tmp_path):
    path = ramp(tmp_path, 0.5)
    assert len(read_audio(path, min_seconds=0.5)) == 8000
    with pytest.raises(BadAudio) as caught:
        read_audio(path, min_seconds=0.51)
    assert caught.value.reason == "too_short"


def test_crop_is_random_reproducible_and_inside_the_segment(tmp_path):
    path = ramp(tmp_path, 4.0)
    starts = []
    for seed in range(40):
        crops = [
            read_audio(path, offset=1.0, duration=2.0, max_seconds=1.0, rng=np.random.default_rng(seed)) * 2**18
            for _ in range(2)
        ]
        np.testing.assert_array_equal(crops[0], crops[1])
        np.testing.assert_array_equal(crops[0], crops[0][0] + np.arange(16000))
        starts.append(crops[0][0])
    assert 16000 <= min(starts) < 20000 and 28000 < max(starts) <= 32000
    assert len(set(starts)) > 35
    assert read_audio(path, max_seconds=1.0)[0] == 0  # without a generator: the beginning


def test_crop_of_another_rate_is_exact_in_length(tmp_path):
    for rate in (8000, 11025, 44100):
        crop = read_audio(ramp(tmp_path, 3.0, rate), max_seconds=1.001, rng=np.random.default_rng(0))
        assert abs(len(crop) - 16016) <= 1


def test_only_the_crop_is_decoded(tmp_path, monkeypatch):
    paths = [ramp(tmp_path, 10.0), tmp_path / "long.flac"]
    soundfile.write(paths[1], noise(10.0), SAMPLING_RATE)
    decoded = []
    original = soundfile.SoundFile.read

    def read(self, *args, **kwargs):
        decoded.append(original(self, *args, **kwargs))
        return decoded[-1]

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    for path in paths:
        read_audio(path, max_seconds=1.0, rng=np.random.default_rng(0))
    assert [len(samples) for samples in decoded] == [16000, 16000]


@pytest.mark.parametrize("folder", ["coffee_orders", "digits_8khz", "keywords", "librispeech_251_speakers"])
def test_real_speech_has_the_listed_duration(speech, folder):
    with open(speech / folder / "metadata.csv", newline="") as file:
        rows = list(csv.DictReader(file))[::150][:5]
    for row in rows:
        samples = read_audio(speech / folder / row["file_name"])
        assert len(samples) / SAMPLING_RATE == pytest.approx(float(row["duration"]), abs=0.02)
        assert 0.005 < np.abs(samples).max() < 2.0


def test_crop_of_real_opus_is_a_piece_of_the_whole(speech):
    path = max((speech / "librispeech_251_speakers").glob("*.opus"), key=lambda path: path.stat().st_size)
    whole = read_audio(path)
    for seed in range(3):
        start = int(np.random.default_rng(seed).integers(len(whole) - 32000 + 1))
        crop = read_audio(path, max_seconds=2.0, rng=np.random.default_rng(seed))
        np.testing.assert_allclose(crop, whole[start : start + 32000], atol=1e-3)


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
    run_python(code)


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
