"""Clips, and the sources that they come from: what a row of any data set is turned into before it is decoded."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from datasets import Dataset, IterableDataset

from sjepa_hf.frames import SAMPLING_RATE
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

    def listed_length(self) -> int:
        """Samples as a manifest says, without a look at the file; `length` where it does not."""
        return self.length() if self.duration is None else round(self.duration * SAMPLING_RATE)


Sample = tuple[Clip, dict[str, str | None]]  # a clip, and its labels by name


class Source(NamedTuple):
    """
    An opened source, whose rows are samples; or dicts of the audio, in `column`, and of the labels.
    """

    name: str
    dataset: "Dataset | IterableDataset | TarArchives | Sequence[Sample]"
    column: str | None = None

    def sample(self, row: Sample | dict, number: int | str) -> Sample:
        """A row, which has that number, as a clip with its labels."""
        if self.column is None:
            return row
        audio, labels = row[self.column], {name: row[name] for name in row if name != self.column}
        path, content = (audio.get("path"), audio.get("bytes")) if isinstance(audio, dict) else (None, audio)
        name = path or (content if isinstance(content, str) else f"{self.name}[{number}]")
        return Clip(printable(name), (path or "") if content is None else content), labels

    def clip(self, row: Sample | dict, number: int | str) -> Clip:
        """The clip of a row."""
        return self.sample(row, number)[0]

    def samples(self) -> Iterator[Sample]:
        """All rows in their order."""
        return (self.sample(row, number) for number, row in enumerate(self.dataset))
