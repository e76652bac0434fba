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
from training.common.ranges import refuse_unread
from training.corpus.output import OutputFolder
from training.corpus.packing import OPUS_RATES, PACKED_COLUMNS, pack_row, write_packed
from training.corpus.reading import CorpusArguments, Row, check_names
from training.corpus.shards import CorpusProgress, Shard, print_totals, write_shards
from training.data.waveforms import BadAudio


logger = logging.getLogger(__name__)


@dataclass
class PackArguments(CorpusArguments):
    """What is packed, and how."""

    format: Literal["parquet", "tar"] = field(default="parquet", metadata={"help": "Parquet, or tar for WebDataset."})
    codec: Literal["flac", "opus"] = field(default="flac", metadata={"help": "FLAC of 16 bits, or Opus."})
    kbits: float | None = field(
        default=None, metadata={"help": "Opus: kilobits a second, about; 6 to 256. Default: 32."}
    )

    def __post_init__(self):
        super().__post_init__()
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
    corpus = arguments.open()
    settings = {"what": "packed audio", "format": arguments.format}
    settings |= {"codec": arguments.codec, "kbits": arguments.kbits}
    output = OutputFolder(arguments.output, settings | corpus.settings, state.process_index)
    progress = CorpusProgress("Packing", corpus, output, state)

    def make(number: int, rows: Sequence[Row]) -> Shard:
        kept, packed, bad = [], [], []
        with ThreadPoolExecutor(arguments.threads) as pool:
            for row, clip in zip(rows, pool.map(lambda row: pack_row(row, arguments.codec, arguments.kbits), rows)):
                progress(1, 0.0 if isinstance(clip, BadAudio) else clip.seconds)
                if isinstance(clip, BadAudio):
                    bad.append((row.clip.name, clip.reason))
                else:
                    kept.append(row)
                    packed.append(clip)
        facts = {
            "clips": len(kept),
            "seconds": round(sum(clip.seconds for clip in packed), 4),
            "bytes": sum(len(clip.content) for clip in packed),
            "exact": sum(clip.exact for clip in packed),
            "clipped": sum(clip.clipped for clip in packed),
            "energy": sum(clip.energy for clip in packed),
            "error": sum(clip.error for clip in packed),
        }
        if clipped := [row.clip.name for row, clip in zip(kept, packed) if clip.clipped]:
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
