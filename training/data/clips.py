"""Clips, and the sources that they come from: what a row of any data set is turned into before it is decoded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from datasets import Dataset, IterableDataset

from training.common.naming import printable
from training.data.fetching import fetch
from training.data.waveforms import BadAudio, audio_length, read_audio


if TYPE_CHECKING:
    from training.data.archives import TarArchives


class Clip(NamedTuple):
    """A clip: how to report it, its path, URL or encoded bytes, or why there are none, and its place in the file."""

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


class Source(NamedTuple):
    """
    An opened source: `column` holds the audio; None means rows of path, offset and duration. A row that cannot be used
    says why as `bad_line`.
    """

    name: str
    dataset: "Dataset | IterableDataset | TarArchives | Sequence[dict]"
    column: str | None

    def clip(self, row: dict, number: int | str) -> Clip:
        if self.column is None:
            offset = 0.0 if row["offset"] is None else row["offset"]
            return Clip(printable(row["path"]), row.get("bad_line") or row["path"], offset, row["duration"])
        audio = row[self.column]
        path, content = (audio.get("path"), audio.get("bytes")) if isinstance(audio, dict) else (None, audio)
        name = path or (content if isinstance(content, str) else f"{self.name}[{number}]")
        return Clip(printable(name), (path or "") if content is None else content)
