"""Clips to try the page with: those of a folder, else those of `make demo`, else five vowels that are made here."""

import tempfile
from pathlib import Path

import numpy as np
import soundfile

from sjepa_hf.frames import SAMPLING_RATE


MOST = 8
SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif"}
DEMO = "demo-output/speech-*/test"
# The first three formants in Hz (Peterson & Barney 1952, men).
VOWELS = {
    "heed": (270, 2290, 3010),
    "head": (530, 1840, 2480),
    "hod": (730, 1090, 2440),
    "hawed": (570, 840, 2410),
    "who'd": (300, 870, 2240),
}


def find_examples(folder: str | None) -> list[Path]:
    """
    At most eight clips, in the order of their names.

    Raises:
        ValueError: if a folder is named and has none.
    """
    folders = [Path(folder)] if folder else sorted(Path().glob(DEMO))[-1:]
    clips = sorted(path for place in folders for path in place.rglob("*") if path.suffix.lower() in SUFFIXES)
    if folder and not clips:
        raise ValueError(f"`examples` {folder} is no folder with audio ({', '.join(sorted(SUFFIXES))}).")
    if clips:
        return clips[:: max(1, len(clips) // MOST)][:MOST]
    path = Path(tempfile.mkdtemp(prefix="sjepa-example-")) / "vowels.wav"
    soundfile.write(path, vowels(), SAMPLING_RATE)
    return [path]


def vowels() -> np.ndarray:
    """The vowels of heed, head, hod, hawed and who'd on one breath, 2.5 s: samples `(40000,)` in float32."""
    each = SAMPLING_RATE // 2
    count = each * len(VOWELS)
    pitch = np.linspace(130, 95, count) + 3 * np.sin(np.arange(count) * 2 * np.pi * 5 / SAMPLING_RATE)
    pulses = np.diff(np.floor(np.cumsum(pitch) / SAMPLING_RATE), prepend=0) + 0.01 * np.random.default_rng(0).normal(
        size=count
    )
    spoken = []
    for number, formants in enumerate(VOWELS.values()):
        spectrum = np.fft.rfft(pulses[number * each : (number + 1) * each], 2 * each)
        turn = np.exp(-1j * np.pi / each * np.arange(each + 1))  # of one sample's delay, at each frequency
        for formant, width in zip(formants, (60, 90, 150)):
            radius = np.exp(-np.pi * width / SAMPLING_RATE)
            poles = [1, -2 * radius * np.cos(2 * np.pi * formant / SAMPLING_RATE), radius**2]
            spectrum *= sum(poles) / (poles[0] + poles[1] * turn + poles[2] * turn**2)
        sound = np.fft.irfft(spectrum)[:each]
        fade = np.minimum(1, np.minimum(np.arange(each), np.arange(each)[::-1]) / (0.04 * SAMPLING_RATE))
        spoken.append(fade * sound / np.abs(sound).max())
    return (0.5 * np.concatenate(spoken)).astype(np.float32)
