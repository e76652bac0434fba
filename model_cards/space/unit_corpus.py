"""A corpus of units beside the page, as `training.units` writes it: where each unit stands, and its clips."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from segments import MOST, Segment, cut

from training.corpus.output import units_settings
from training.corpus.reading import Corpus
from training.data.waveforms import BadAudio


class UnitCorpus:
    """
    Args:
        folder: with Parquet of `python -m training.units`, its clips where they were then.

    Attributes:
        settings: what `corpus.json` says of the units and of the clips.
        num_clips: how many there are.

    Raises:
        ValueError: if the folder holds no such corpus, or its clips are gone or others.
    """

    def __init__(self, folder: str):
        self.name, self.settings = folder, read_settings(folder)
        columns = ["number", "name", "run_units", "run_starts", "run_seconds"]
        shards = [pq.read_table(file, columns=columns) for file in sorted(Path(folder).glob("units-*.parquet"))]
        table = pa.concat_tables(shards)
        self.num_clips = len(table)
        self._numbers, self._names = table["number"].to_numpy(), table["name"]
        units, self._starts, self._seconds = (
            table[name].combine_chunks().flatten().to_numpy() for name in columns[2:]
        )
        self._clips = np.repeat(np.arange(len(table)), [len(runs) for runs in table["run_units"]])
        self._order = np.argsort(units, kind="stable")
        self._first = np.searchsorted(units[self._order], np.arange(self.settings["components"] + 1))
        self._corpus = self._open()

    def _open(self) -> Corpus:
        known = self.settings
        try:
            named = {"audio_column": known.get("audio_column")}  # which corpora of before do not tell
            corpus = Corpus(known["data"], known["clips_per_shard"], known["columns"], **named)
        except ValueError as error:
            raise ValueError(f"The clips that {self.name} holds units of cannot be opened: {error}") from None
        if corpus.size is None or corpus.settings["data as it was"] != known["data as it was"]:
            raise ValueError(
                f"The clips that {self.name} holds units of ({', '.join(known['data'])}) are not as they were, or can"
                " only be read from front to back: make the units anew, of clips that lie in files."
            )
        return corpus

    def count(self, unit: int) -> tuple[int, int]:
        """How many runs a unit has, in how many clips."""
        runs = self._runs(unit)
        return len(runs), len(np.unique(self._clips[runs]))

    def segments(self, unit: int) -> list[Segment]:
        """The longest run of a unit in each of the clips that have the longest; clips that are gone do not count."""
        runs = self._runs(unit)
        runs = runs[np.argsort(-self._seconds[runs], kind="stable")]
        first_of_clip = np.sort(np.unique(self._clips[runs], return_index=True)[1])
        found = []
        for run in runs[first_of_clip][: 2 * MOST]:
            clip = self._clips[run]
            try:
                samples = self._corpus.row(int(self._numbers[clip])).clip.read()
            except BadAudio:
                continue
            found.append(cut(self._names[clip].as_py(), samples, float(self._starts[run]), float(self._seconds[run])))
            if len(found) == MOST:
                break
        return found

    def _runs(self, unit: int) -> np.ndarray:
        return self._order[self._first[unit] : self._first[unit + 1]]


def read_settings(folder: str) -> dict:
    """What a corpus of units says of itself. Raises ValueError if the page cannot play it."""
    settings = units_settings(folder)
    if settings["format"] != "parquet":
        raise ValueError(f"`units` {folder} is {settings['format']}: the page reads --format parquet.")
    if settings["clusters"] == "fitted":
        raise ValueError(
            f"`units` {folder} are of fitted clusters: the page shows those of a checkpoint of pretraining."
        )
    return settings
