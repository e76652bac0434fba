"""Clips: what a row of any data set is turned into before it is decoded."""

from typing import NamedTuple

import numpy as np

from sjepa_hf.frames import SAMPLING_RATE
from training.data.fetching import fetch
from training.data.waveforms import BadAudio, audio_length, read_audio


class Clip(NamedTuple):
    """
    A clip: its name in messages; a path, a URL, encoded bytes, or the `BadAudio` that says why there is none; offset
    and duration in the file, in seconds.
    """

    name: str
    audio: str | bytes | BadAudio
    offset: float = 0.0
    duration: float | None = None

    def content(self) -> str | bytes | BadAudio:
        """A path, the bytes of the file, fetched where it lies behind a URL, or why there are none."""
        return fetch(self.audio)

    def read(self, **options) -> np.ndarray:
        """`read_audio` of this clip."""
        return read_audio(self.content(), offset=self.offset, duration=self.duration, **options)

    def length(self) -> int:
        """`audio_length` of this clip: what its file says, whatever a manifest does."""
        return audio_length(self.content(), offset=self.offset, duration=self.duration)

    def listed_length(self) -> int:
        """Samples as a manifest says, without a look at the file; `length` where it does not."""
        return self.length() if self.duration is None else round(self.duration * SAMPLING_RATE)


Sample = tuple[Clip, dict[str, str | None]]  # a clip, and its labels by name
