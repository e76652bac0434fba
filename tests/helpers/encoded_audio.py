"""Clips as files, in memory: as encoders write them, and as they leave them in a pipe."""

import io
import struct

import numpy as np
import pytest
import soundfile

from sjepa_hf.frames import SAMPLING_RATE
from training.data.unsized import BIT_RATES
from training.data.waveforms import BadAudio, read_audio


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
