"""Pack a corpus into shards: 16 kHz FLAC or Opus in Parquet or tar.

    python -m training.pack --data my_audio/ --columns text speaker --output packed
    python -m training.pack --data list.jsonl --codec opus --kbits 32 --format tar --output packed

A million small files starve a GPU, and data sets on the Hub want Parquet: `--train_data packed` then reads few large
ones (`--streaming true` in place; tar always so). FLAC holds 16-bit samples and is read back bit for bit after it was
written; clips that are 16 kHz mono of 16 bits come out as they were, samples beyond full scale are clipped, and told.
Opus is lossy: its signal-to-noise ratio is told. Shards are resumable as those of `training.units`; `corpus.json` has
the counts and names each clip that could not be used.
"""

import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from accelerate import PartialState

from sjepa_hf.command import command
from training.common.command_line import parse_dataclasses
from training.common.device import on_cpu
from training.common.naming import several
from training.common.ranges import check_ranges, refuse_unread
from training.corpus.output import OutputFolder
from training.corpus.packing import OPUS_RATES, PACKED_COLUMNS, pack_row, write_packed
from training.corpus.reading import Corpus, Row, check_names
from training.corpus.shards import CorpusProgress, Shard, print_totals, write_shards
from training.data.waveforms import BadAudio


logger = logging.getLogger(__name__)


@dataclass
class PackArguments:
    """What is packed, and how."""

    data: list[str] = field(metadata={"help": "Sources, as in pretraining: folders, manifests, Parquet, tar, Hub."})
    output: str = field(metadata={"help": "The folder to write, or one to go on with."})
    format: Literal["parquet", "tar"] = field(default="parquet", metadata={"help": "Parquet, or tar for WebDataset."})
    codec: Literal["flac", "opus"] = field(default="flac", metadata={"help": "FLAC of 16 bits, or Opus."})
    kbits: float | None = field(
        default=None, metadata={"help": "Opus: kilobits a second, about; 6 to 256. Default: 32."}
    )
    columns: list[str] = field(default_factory=list, metadata={"help": "Columns of the data that are kept."})
    streaming: bool = field(default=False, metadata={"help": "Read from front to back: Hub, Parquet, tar archives."})
    audio_column: str | None = field(default=None, metadata={"help": "Column with the audio in Parquet and Hub data."})
    clips_per_shard: int = field(default=1000, metadata={"help": "Clips in a file. Held in memory, encoded."})
    max_bad_fraction: float = field(default=0.05, metadata={"help": "Stop when more of the clips cannot be used."})
    threads: int = field(default=1, metadata={"help": "Clips that are decoded and encoded side by side."})

    def __post_init__(self):
        check_ranges(self, at_least_1="clips_per_shard threads", share="max_bad_fraction")
        check_names(self.columns, PACKED_COLUMNS)
        if self.kbits is not None and not OPUS_RATES[0] <= self.kbits <= OPUS_RATES[1]:
            raise ValueError(f"`kbits` must lie between {OPUS_RATES[0]} and {OPUS_RATES[1]}, got {self.kbits}.")
        if self.codec == "flac":
            refuse_unread(self, "kbits", "is of Opus: take --codec opus")
        elif self.kbits is None:
            self.kbits = 32.0


def run(arguments: PackArguments, state: PartialState) -> dict | None:
    """
    Write the shards of this process that are not there yet; returns the totals, None while others are not done.

    Raises:
        ValueError: if the data do not open, or the output holds something else.
        BadAudioError: if too many clips cannot be used.
    """
    corpus = Corpus(
        arguments.data, arguments.clips_per_shard, arguments.columns, arguments.streaming, arguments.audio_column
    )
    settings = {"what": "packed audio", "format": arguments.format}
    settings |= {"codec": arguments.codec, "kbits": arguments.kbits}
    output = OutputFolder(arguments.output, settings | corpus.settings, state.process_index)
    progress = CorpusProgress("Packing", corpus, output, state)

    def make(number: int, rows: Sequence[Row]) -> Shard:
        kept, packed, bad = [], [], []
        with ThreadPoolExecutor(arguments.threads) as pool:
            for row, found in zip(rows, pool.map(lambda row: pack_row(row, arguments.codec, arguments.kbits), rows)):
                progress(1, 0.0 if isinstance(found, BadAudio) else found.seconds)
                if isinstance(found, BadAudio):
                    bad.append((row.clip.name, found.reason))
                else:
                    kept.append(row)
                    packed.append(found)
        facts = {
            "clips": len(kept),
            "seconds": round(sum(each.seconds for each in packed), 4),
            "bytes": sum(len(each.content) for each in packed),
            "exact": sum(each.exact for each in packed),
            "clipped": sum(each.clipped for each in packed),
            "energy": sum(each.energy for each in packed),
            "error": sum(each.error for each in packed),
        }
        if clipped := [row.clip.name for row, each in zip(kept, packed) if each.clipped]:
            logger.warning("Clipped at full scale, %d of shard %d: %s.", len(clipped), number, several(clipped, 5))
        name = f"{'train' if arguments.format == 'parquet' else 'clips'}-{number:05d}"
        options = (name, arguments.format, arguments.codec, kept, packed, arguments.columns)
        return Shard(facts, bad, lambda folder: write_packed(folder, *options))

    return write_shards(corpus, output, state, arguments.max_bad_fraction, make)


def decibels(totals: dict) -> float:
    """Signal-to-noise ratio of all clips together; infinite where nothing was lost."""
    return 10 * math.log10(totals["energy"] / totals["error"]) if totals["error"] else math.inf


def details(arguments: PackArguments, totals: dict) -> str:
    """What there is to say of the files: their size, and what was lost."""
    exact = "lossy" if arguments.codec == "opus" else f"{totals['exact']:,} sample for sample, the others rounded"
    if totals["clipped"]:
        exact += f"; {totals['clipped']:,} pass full scale and were clipped there: make them softer before packing"
    said = f", {totals['bytes'] / 1e6:,.1f} MB; {exact}"
    return said + (f"; signal to noise {decibels(totals):.1f} dB" if totals["error"] else "")


@command
def main(argv: list[str] | None = None) -> None:
    arguments = parse_dataclasses((PackArguments,), argv, "A corpus in few large files.")[0]
    print_totals(arguments.output, run(arguments, PartialState(cpu=on_cpu())), partial(details, arguments))


if __name__ == "__main__":
    main()
