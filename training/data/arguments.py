"""Arguments of the data: what to train on and how to cut it into batches."""

from dataclasses import dataclass, field

from sjepa_hf.frames import MIN_SAMPLES, SAMPLING_RATE
from training.common.ranges import check_ranges


@dataclass
class DataArguments:
    """What to train on and how to cut it into batches.

    Raises:
        ValueError: if a value is out of range; the message names the field.
    """

    train_data: list[str] = field(
        metadata={
            "help": "Sources, each PATH_OR_HUB_NAME[::config[::split]] (split 'train' by default): a folder of audio "
            "(if its metadata.csv, .jsonl or .parquet has a file_name column, that is the list), a JSONL manifest "
            "with wav_path or audio_filepath and optionally offset and duration in seconds, a Parquet file, folder or "
            "quoted glob, tar archives as WebDataset has them (with streaming), or a data set on the Hub."
        }
    )
    train_data_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "Relative frequency of each source, in clips. Without it an epoch is every clip of every source "
            "once; with it, as many draws as all sources hold clips (streaming: until the last source has been read "
            "once), small sources being repeated."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read Hub data sets and Parquet in place, shuffled through a buffer, instead of first making an "
            "Arrow copy on disk. Resuming then reads again up to eight shards of each source."
        },
    )
    audio_column: str | None = field(
        default=None,
        metadata={
            "help": "Column with the audio in Hub data sets and Parquet; by default 'audio', else the only Audio one."
        },
    )
    max_seconds: float = field(
        default=15.0, metadata={"help": "Longer clips are cropped to this, at a random place that changes each epoch."}
    )
    min_seconds: float = field(
        default=0.1, metadata={"help": "Shorter clips are skipped and reported; at least 400 samples (0.025)."}
    )
    batch_seconds: float = field(
        default=360.0,
        metadata={
            "help": "Seconds a micro-batch may hold, padding included. The default is 24 clips of 15 s, one GPU's "
            "share of the published batch."
        },
    )
    bucket_buffer_size: int = field(
        default=1024,
        metadata={"help": "Clips per worker that are sorted by length and cut into batches at a time."},
    )
    shuffle_buffer_size: int = field(
        default=1000, metadata={"help": "Streaming: clips per worker and source held, still encoded, for shuffling."}
    )
    num_workers: int = field(
        default=4, metadata={"help": "Processes that decode, per process. 0: in the training process."}
    )
    max_bad_fraction: float = field(
        default=0.05,
        metadata={
            "help": "Stop when more than this share of the clips, beyond chance, is missing, corrupt, silent or"
            " otherwise unusable."
        },
    )

    def __post_init__(self):
        if not self.train_data:
            raise ValueError("train_data is empty: name at least one folder, manifest, Parquet file or Hub data set.")
        check_ranges(
            self,
            positive="train_data_weights min_seconds max_seconds batch_seconds",
            at_least_1="bucket_buffer_size shuffle_buffer_size",
            not_negative="num_workers",
            share="max_bad_fraction",
        )
        if self.train_data_weights is not None:
            if len(self.train_data_weights) != len(self.train_data):
                raise ValueError(
                    f"train_data_weights has {len(self.train_data_weights)} values for {len(self.train_data)} sources "
                    "in train_data: give one each."
                )
        if self.min_seconds * SAMPLING_RATE < MIN_SAMPLES:
            raise ValueError(f"min_seconds must be at least {MIN_SAMPLES / SAMPLING_RATE}, got {self.min_seconds}.")
        if not self.min_seconds <= self.max_seconds <= self.batch_seconds:
            raise ValueError(
                f"min_seconds ({self.min_seconds}), max_seconds ({self.max_seconds}) and batch_seconds "
                f"({self.batch_seconds}) must not decrease in this order: a batch holds at least one whole clip."
            )
