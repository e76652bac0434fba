"""Sounds for the page."""

from pathlib import Path

import numpy as np
import soundfile


def speechlike(seconds: float, rate: int = 16000) -> np.ndarray:
    """A tone that wanders and swells, with noise: samples `(num_samples,)`."""
    time = np.arange(round(seconds * rate)) / rate
    pitch = 200 + 100 * np.sin(5 * time)
    tone = np.sin(2 * np.pi * np.cumsum(pitch) / rate) * (0.2 + 0.1 * np.sin(9 * time))
    return (tone + 0.01 * np.random.default_rng(0).standard_normal(len(time))).astype(np.float32)


def write_two_hours(path: Path) -> None:
    """Two hours at 8 kHz by header and size; all but the first 61 s is a hole in the file."""
    soundfile.write(path, speechlike(61, 8000), 8000, subtype="PCM_U8")
    size = 2 * 3600 * 8000
    with path.open("r+b") as file:
        assert file.read(44)[36:40] == b"data"
        file.seek(4)
        file.write((size + 36).to_bytes(4, "little"))
        file.seek(40)
        file.write(size.to_bytes(4, "little"))
        file.truncate(44 + size)
