"""Arguments of a fine-tuning: what both heads share, from recipes and the command line."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import training.common.onednn  # noqa: F401


# isort: split
import torch
from accelerate import PartialState
from transformers import TrainingArguments

from sjepa_hf.command import own_words
from sjepa_hf.frames import MIN_SAMPLES, SAMPLING_RATE
from sjepa_hf.opening import open_config
from sjepa_hf.push import open_repo
from training.common.command_line import given, parse_dataclasses
from training.common.device import on_cpu
from training.common.output_directory import claim, lock_of
from training.common.processes import of_first
from training.common.ranges import check_ranges
from training.common.signals import check_system
from training.finetuning.resuming import choose_checkpoint
from training.finetuning.trainer_settings import check_training, equal_intervals


SOURCES = "Each is a folder with metadata.csv, a JSONL manifest, Parquet, or on the Hub (name::config::split)."

MIN_SECONDS = MIN_SAMPLES / SAMPLING_RATE  # of a clip that is trained on or scored: all that gives a frame


@dataclass
class FineTuningArguments:
    """Data, checkpoint and what of it is trained."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to start from: S-JEPA, HuBERT, wav2vec 2.0, WavLM, ..."}
    )
    from_scratch: bool = field(
        default=False, metadata={"help": "Take the checkpoint's configuration with fresh weights: a baseline."}
    )
    train_data: list[str] | None = field(default=None, metadata={"help": f"Sources to train on. {SOURCES}"})
    train_hours: float | None = field(
        default=None,
        metadata={
            "help": "Train on clips drawn at random up to that many hours, the same share of each class. Default: all."
        },
    )
    eval_data: list[str] | None = field(
        default=None, metadata={"help": "Sources by which the best checkpoint is chosen, together."}
    )
    eval_fraction: float = field(
        default=0.1, metadata={"help": "Share of the training clips that is held out where there is no eval_data."}
    )
    test_data: list[str] | None = field(
        default=None, metadata={"help": "Sources that are scored at the end only, each by itself."}
    )
    audio_column: str | None = field(default=None, metadata={"help": "Column with the audio in Hub data and Parquet."})
    min_seconds: float = field(
        default=MIN_SECONDS, metadata={"help": "Shorter clips are left out. Default: 400 samples, one frame."}
    )
    max_seconds: float = field(default=20.0, metadata={"help": "Longer training clips are left out."})
    max_bad_fraction: float = field(
        default=0.05, metadata={"help": "Share of clips that may be bad audio or lack a label before the run stops."}
    )
    min_steps: int = field(
        default=0,
        metadata={
            "help": "Train for more epochs than the recipe's where the clips are so few that they give fewer steps."
            " Not with --num_train_epochs or --max_steps on the command line."
        },
    )
    freeze_feature_encoder: bool | None = field(
        default=None,
        metadata={"help": "Keep the front end, but its stem, as it is. Default: true, false with from_scratch."},
    )
    freeze_encoder_steps: int = field(
        default=0, metadata={"help": "Steps in which the head alone is trained, before all is."}
    )
    reinit_layers: int = field(
        default=0,
        metadata={
            "help": "Top layers of the encoder that start afresh: they have turned into what pretraining predicted"
            " (arXiv 2107.04734). Worth a try with few hours of transcripts."
        },
    )
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the head. Default: learning_rate."}
    )
    lora_rank: int = field(
        default=0,
        metadata={
            "help": "Train low-rank adapters of this rank and the head instead of all weights, which asks for a higher"
            " learning_rate: ten times as high served."
        },
    )
    mask_time_prob: float | None = field(
        default=None, metadata={"help": "SpecAugment: share of frames masked. Default: the checkpoint's."}
    )
    mask_feature_prob: float | None = field(
        default=None, metadata={"help": "SpecAugment: share of feature dimensions masked. Default: the checkpoint's."}
    )
    p_noise: float = field(
        default=0.0,
        metadata={
            "help": "Probability that a training clip is heard among noise, at -5 to 20 dB: coloured noise, which is"
            " made. Clips that are scored stay as they are."
        },
    )
    dropout: float | None = field(
        default=None,
        metadata={
            "help": "Every dropout of encoder, adapters and head. Default: the checkpoint's, and of adapters 0.05."
        },
    )
    dry_run: bool = field(default=False, metadata={"help": "Say what the run would do, and stop before it does it."})

    def __post_init__(self):
        check_ranges(
            self,
            positive="train_hours eval_fraction",
            share="p_noise",
            below_1="eval_fraction mask_time_prob mask_feature_prob dropout",
            a_frame="min_seconds",
            not_negative="lora_rank freeze_encoder_steps reinit_layers min_steps head_learning_rate",
        )
        if self.freeze_feature_encoder is None:
            self.freeze_feature_encoder = not self.from_scratch
        if self.from_scratch and (self.lora_rank or self.freeze_encoder_steps or self.reinit_layers):
            raise ValueError(
                "`from_scratch` trains all weights, fresh ones: it goes with none of lora_rank, freeze_encoder_steps"
                " and reinit_layers."
            )
        if self.reinit_layers and self.lora_rank:
            raise ValueError("`reinit_layers` leaves layers to be learned, which `lora_rank` would keep as they are.")


class FineTuningSettings(NamedTuple):
    """What a fine-tuning is asked for."""

    arguments: FineTuningArguments
    training: TrainingArguments
    hub: dict | None  # where the result is to be pushed, as `publish` takes it


@contextmanager
def finetuning_settings(
    argv: list[str] | None, group: type, recipe: Path, description: str, higher_is_better: Mapping[str, bool]
) -> Iterator[FineTuningSettings]:
    """
    Settings from `--config RECIPE.yaml` (without it, `recipe`) and `--field value`. Within the block the output
    directory is this run's alone; a dry run locks nothing, and leaves no directory behind.

    Args:
        group: the dataclass of the command's own arguments.
        higher_is_better: metrics that may choose the best checkpoint.

    Raises:
        ValueError: for a recipe that is absent or holds an unknown field, missing fields, settings of the Trainer that
            cannot work, and an output directory that holds another run, or that another run is at work in.
        UserError: on Windows.
    """
    argv = sys.argv[1:] if argv is None else argv
    asked = given(argv, (group, TrainingArguments))
    argv = [*argv, *equal_intervals(asked)]
    if "WORLD_SIZE" in os.environ and on_cpu():
        argv = ["--use_cpu", "true", *argv]
    try:
        chosen, training = parse_dataclasses((group, TrainingArguments), argv, description, recipe=str(recipe))[:2]
    except (ValueError, ImportError, TypeError, KeyError) as error:  # Transformers' own, over several lines
        message = " ".join(own_words(error).split())
        if "load_best_model_at_end" in message:
            message += ". With --load_best_model_at_end false the last checkpoint is the result."
        raise ValueError(message) from error
    check_system()
    for name in ("model_name_or_path", "train_data"):
        if not getattr(chosen, name):
            raise ValueError(f"`{name}` is missing: give it as --{name} or in the recipe.")
    check_training(training, asked, higher_is_better)
    if training.max_steps > 0 or "num_train_epochs" in asked:
        chosen.min_steps = 0
    if chosen.freeze_encoder_steps and training.ddp_find_unused_parameters is None:
        training.ddp_find_unused_parameters = True  # with checkpointing Transformers would expect all gradients
    training.remove_unused_columns = False  # the collator needs what the model's forward does not name
    training.dataloader_pin_memory &= torch.cuda.is_available()  # else torch warns
    output_dir = Path(training.output_dir)
    lock = lock_of(output_dir)
    absent = [path for path in (output_dir, *output_dir.parents) if not path.exists()]

    def begin() -> str | None:
        claim(output_dir, lock, chosen.dry_run)
        return choose_checkpoint(training.resume_from_checkpoint, output_dir)

    try:
        training.resume_from_checkpoint = of_first(begin, PartialState())
        if training.resume_from_checkpoint:
            training.eval_on_start = False  # it was evaluated when it began
        hub = open_hub(chosen, training)
        training.push_to_hub = False  # the result at the end, rather than whatever the Trainer saves on its way
        yield FineTuningSettings(chosen, training, hub)
    finally:
        lock.release()
        for path in absent if chosen.dry_run else ():  # the Trainer makes its output directory in any case
            with suppress(OSError):
                path.rmdir()


def open_hub(chosen: FineTuningArguments, training: TrainingArguments) -> dict | None:
    """See in the first process that the result can be pushed, where that is asked for; `hub` of the settings."""
    if not training.push_to_hub or chosen.dry_run:
        return None
    repo_id = training.hub_model_id or Path(training.output_dir).resolve().name
    hub = {"repo_id": repo_id, "private": training.hub_private_repo, "token": training.hub_token}
    if training.process_index == 0:
        hub["repo_id"] = open_repo(kind=open_config(chosen.model_name_or_path).model_type, **hub)
    return hub
