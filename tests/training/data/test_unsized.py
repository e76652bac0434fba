"""A length that no header gives is found, once, and nothing of the clip is lost."""

import struct

import numpy as np
import pytest
import soundfile
from encoded_audio import chained_ogg, encoded, piped_flac, piped_mp3, piped_wav, reason, wander

import training.data.unsized
import training.data.waveforms
from training.data.waveforms import audio_length, read_audio


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


@pytest.mark.parametrize("lengths", [(4.0, 2.0), (2.0, 4.0)])
@pytest.mark.parametrize("tag", [b"", b"ID3\x03\0\0\0\0\0\x20" + bytes(32)], ids=["plain", "ID3"])
def test_mp3_files_put_together_are_read_to_the_end(lengths, tag):
    first, second = (encoded(wander(length, seed=seed), "MP3") for seed, length in enumerate(lengths))
    content = tag + first + tag + second
    whole = read_audio(content)
    assert len(whole) == audio_length(content) == pytest.approx(96000, abs=4000)
    alone = read_audio(first)[:-2000]
    np.testing.assert_allclose(whole[: len(alone)], alone, atol=1e-4)
    middle = read_audio(second)[4000:8000]
    places = range(len(alone) + 4000, len(alone) + 12_000)  # the second comes with the delay of its encoder
    assert min(np.abs(whole[place : place + 4000] - middle).max() for place in places) < 1e-3


@pytest.mark.parametrize("tail", [b"TAG" + bytes(125), b"APETAGEX" + bytes(range(256)) * 40])
def test_an_mp3_file_with_a_tag_at_its_end_is_not_counted(monkeypatch, tail):
    content = encoded(wander(4.0), "MP3")
    whole = read_audio(content)
    monkeypatch.setattr(training.data.waveforms, "is_right_after_all", None)
    np.testing.assert_array_equal(read_audio(content + tail), whole)


def test_each_opus_stream_of_a_chain_is_read_as_it_is_alone(speech):
    """libsndfile drops the pre-skip of such files only after a seek: from front to back they were 6.5 ms late."""
    pieces = sorted((speech / "arabic_speech_commands" / "test").glob("*.opus"))[:3]
    chain = b"".join(path.read_bytes() for path in pieces)
    alone = np.concatenate([soundfile.read(path, dtype="float32")[0] for path in pieces])
    np.testing.assert_array_equal(read_audio(chain), alone)


@pytest.mark.parametrize("kind", ["wav", "mp3", "ogg"])
def test_a_file_that_fails_while_its_length_is_looked_for_is_bad_audio(tmp_path, monkeypatch, kind):
    samples, path = wander(2.0), tmp_path / f"clip.{kind}"
    contents = {"wav": lambda: piped_wav(samples, 0), "mp3": lambda: piped_mp3(samples)}
    path.write_bytes(contents.get(kind, lambda: chained_ogg(samples, samples))())

    def fail(*_):
        raise OSError("Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(training.data.unsized, "_content", fail)
        patched.setattr(training.data.unsized, "piece", fail)
        assert reason(path) == "corrupt"
    audio_length(path)
    monkeypatch.setattr(training.data.waveforms, "is_doubtful", lambda *_: True)
    monkeypatch.setattr(training.data.unsized, "_content", fail)  # once its length is known
    assert reason(path) == "corrupt"


def test_a_wav_file_that_holds_nothing_but_a_title_is_empty():
    content = piped_wav(wander(0.1), 0)
    place = content.find(b"data") + 8
    title = b"LIST" + struct.pack("<I", 400) + b"INFOINAM" + bytes(392)
    assert reason(content[:place]) == reason(content[:place] + title) == "empty"


def test_a_length_that_another_thread_has_just_forgotten_is_returned(tmp_path, monkeypatch):
    class Forgetful(dict):
        def __setitem__(self, key, value):
            self.clear()

    monkeypatch.setattr(training.data.waveforms, "_lengths", Forgetful())
    (tmp_path / "piped.flac").write_bytes(piped_flac(wander(1.0), 0, 16000))
    assert audio_length(tmp_path / "piped.flac") == 16000


def test_a_length_is_counted_once(tmp_path, monkeypatch):
    (tmp_path / "piped.flac").write_bytes(piped_flac(wander(2.0)))
    monkeypatch.setattr(training.data.waveforms, "_lengths", {})
    opened = []
    original = training.data.waveforms.parts
    monkeypatch.setattr(training.data.waveforms, "parts", lambda *given: opened.append(given) or original(*given))
    for source in (tmp_path / "piped.flac", (tmp_path / "piped.flac").read_bytes()):
        opened.clear()
        assert [audio_length(source) for _ in range(3)] == [32000] * 3
        assert len(opened) == 1
    (tmp_path / "piped.flac").write_bytes(piped_flac(wander(1.0)))
    assert audio_length(tmp_path / "piped.flac") == 16000, "another file of that name"
