"""Turn a corpus into units, or into features of layers, on disk.

    python -m training.units runs/mine/final --data my_audio/ --output units
    python -m training.units runs/mine/final --data list.jsonl --columns speaker --top_k 3 --format jsonl --output soft
    python -m training.units facebook/hubert-base-ls960 --data my_audio/ --features 6 9 --format safetensors --output h
    accelerate launch --num_processes 2 -m training.units runs/mine/final --data my_audio/ --output units

Units are those of the checkpoint's mixture or of its prediction (`--clusters`), or of clusters that
`training.fit_units` has fitted to any encoder. `--features` writes hidden states of layers instead, their `--mean`,
or `--pooled` over each clip.

The output is cut into shards of `--clips_per_shard` clips in the order of the data. A run that was killed goes on
with the shards that are missing when the same command is given again; files are the same however often it was killed
and on however many processes it ran. `corpus.json` says what was made, and names every clip that could not be read.
Clips longer than `--max_seconds` are read in pieces with 2 s around them: as many frames, at the same times, but not
the very numbers of one pass over the whole.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import training.common.onednn  # noqa: F401


# isort: split
import torch
import transformers
from accelerate import PartialState

from sjepa_hf.command import command
from sjepa_hf.durations import audio_amount, duration
from training.common.command_line import parse_dataclasses
from training.common.device import on_cpu
from training.common.memory import keep_freed_memory
from training.common.ranges import check_ranges, refuse_unread
from training.corpus.extraction import Extractor, extract_shard, layer_extractor, unit_extractor
from training.corpus.output import OutputFolder
from training.corpus.reading import Corpus, CorpusArguments, Row, check_names
from training.corpus.shards import CorpusProgress, Shard, print_totals, write_shards
from training.corpus.tables import (
    COLUMNS_OF_FEATURES,
    COLUMNS_OF_UNITS,
    FEATURE_FORMATS,
    UNIT_FORMATS,
    write_features,
    write_units,
)


logger = logging.getLogger(__name__)

UNITS_A_SHARD, FRAMES_A_SHARD = 1000, 200  # clips in a shard of units or means, and of features by frame


@dataclass
class UnitArguments(CorpusArguments):
    """What is made of which clips, and where it goes."""

    format: Literal["parquet", "jsonl", "text", "npy", "safetensors"] = field(
        default="parquet",
        metadata={"help": "Units: parquet, jsonl or text (a line a clip). Features: parquet, npy or safetensors."},
    )
    clusters: Literal["mixture", "prediction"] | None = field(
        default=None,
        metadata={"help": "Units of the checkpoint's mixture (default), or of the cluster head's prediction."},
    )
    top_k: int = field(default=0, metadata={"help": "Also the k likeliest units of each frame, and their posteriors."})
    features: list[int] | None = field(
        default=None, metadata={"help": "Features of these layers in place of units, numbered as in hidden_states."}
    )
    mean: bool = field(default=False, metadata={"help": "Features: the mean of the layers."})
    pooled: bool = field(default=False, metadata={"help": "Features: the mean over each clip's frames."})
    dtype: Literal["float16", "bfloat16", "float32"] | None = field(
        default=None,
        metadata={"help": "Of features as they are written; default: float16. bfloat16 in safetensors alone."},
    )
    batch_seconds: float = field(default=60.0, metadata={"help": "Audio that is encoded at once, padding included."})
    max_seconds: float = field(default=60.0, metadata={"help": "Longer clips are read in pieces of this length."})
    clips_per_shard: int | None = field(
        default=None,
        metadata={"help": "Clips in a file; default: 1000, or 200 of features by frame. Held in memory."},
    )
    precision: Literal["fp32", "bf16", "fp16"] = field(default="fp32", metadata={"help": "In which the encoder runs."})

    def __post_init__(self):
        super().__post_init__()
        check_ranges(self, positive="batch_seconds", a_frame="max_seconds", not_negative="top_k")
        formats, what = (UNIT_FORMATS, "units") if self.features is None else (FEATURE_FORMATS, "features")
        if self.format not in formats:
            raise ValueError(f"`format` is {self.format!r}, but {what} are written as {', '.join(formats)}.")
        check_names(self.columns, COLUMNS_OF_UNITS if self.features is None else COLUMNS_OF_FEATURES)
        if self.features is None:
            refuse_unread(self, "mean pooled dtype", "is of features: name layers with --features")
        else:
            refuse_unread(self, "clusters top_k", "is of units, not of features: leave out --features")
        if self.format == "text":
            refuse_unread(self, "columns top_k", "is not written as text: take --format parquet or jsonl")
        if self.dtype == "bfloat16" and self.format != "safetensors":
            raise ValueError(f"`dtype` is 'bfloat16', which {self.format} does not know: take --format safetensors.")
        self.dtype = self.dtype or "float16"
        if self.clips_per_shard is None:
            by_frame = self.features is not None and not self.pooled
            self.clips_per_shard = FRAMES_A_SHARD if by_frame else UNITS_A_SHARD


def open_extractor(checkpoint: str, arguments: UnitArguments, device: torch.device) -> Extractor:
    """What the command line asks for. Raises ValueError if the checkpoint does not have it."""
    if arguments.features is None:
        return unit_extractor(checkpoint, arguments.clusters, arguments.top_k, device, arguments.precision)
    return layer_extractor(checkpoint, arguments.features, arguments.mean, device, arguments.precision)


def settings_of(arguments: UnitArguments, extractor: Extractor, corpus: Corpus) -> dict:
    """What decides the contents of the output."""
    what = {"what": "units"}
    if arguments.features is not None:
        what = {"what": "features", "pooled": arguments.pooled, "dtype": arguments.dtype}
    return {
        **what,
        **extractor.description,
        "format": arguments.format,
        **corpus.settings,
        "batch_seconds": arguments.batch_seconds,
        "max_seconds": arguments.max_seconds,
    }


def run(checkpoint: str, arguments: UnitArguments, state: PartialState) -> dict | None:
    """
    Write the shards of this process that are not there yet.

    Returns:
        The totals of the corpus; None if shards of other processes are not done yet.

    Raises:
        ValueError: if checkpoint or data do not open, or the output holds something else.
        BadAudioError: if too many clips cannot be used.
    """
    extractor = open_extractor(checkpoint, arguments, state.device)
    corpus = arguments.open()
    output = OutputFolder(arguments.output, settings_of(arguments, extractor, corpus), state.process_index)
    progress = CorpusProgress("Corpus", corpus, output, state)
    if arguments.features is None:
        name, write, dtype = "units", partial(write_units, top_k=arguments.top_k), None
    else:
        name, write = "features", partial(write_features, dtype=arguments.dtype)
        dtype = getattr(torch, arguments.dtype)

    def make(number: int, rows: Sequence[Row]) -> Shard:
        limits = (arguments.batch_seconds, arguments.max_seconds)
        extracted = extract_shard(
            extractor.extract, rows, *limits, arguments.pooled, dtype, arguments.threads, progress
        )
        facts = {
            "clips": len(extracted.tensors),
            "seconds": round(sum(extracted.seconds[place] for place in sorted(extracted.seconds)), 4),
            "clips_in_pieces": sum(seconds > arguments.max_seconds for seconds in extracted.seconds.values()),
        }
        bad = [extracted.bad[place] for place in sorted(extracted.bad)]
        options = (f"{name}-{number:05d}", arguments.format, rows, extracted, arguments.columns)
        return Shard(facts, bad, lambda folder: write(folder, *options))

    totals = write_shards(corpus, output, state, arguments.max_bad_fraction, make)
    if progress.clips and state.process_index == 0:
        taken = time.monotonic() - progress.began
        logger.info(
            "This process read %s in %s, %.0f times real time.",
            *(audio_amount(progress.seconds / 3600), duration(taken), progress.seconds / taken),
        )
    return totals


def details(arguments: UnitArguments, totals: dict) -> str:
    """What else there is to say: that long clips were read in pieces."""
    if not totals["clips_in_pieces"]:
        return ""
    return f"; {totals['clips_in_pieces']} longer than {arguments.max_seconds:g} s were read in pieces"


@command
def main(argv: list[str] | None = None) -> None:
    transformers.logging.set_verbosity_error()
    keep_freed_memory()
    arguments, rest = parse_dataclasses(
        (UnitArguments,),
        argv,
        "A corpus to units, or to features of layers.",
        checkpoint=dict(help="A directory or Hub name; for units of pretraining, or one of training.fit_units."),
    )
    totals = run(rest.checkpoint, arguments, PartialState(cpu=on_cpu()))
    print_totals(arguments.output, totals, partial(details, arguments))


if __name__ == "__main__":
    main()
