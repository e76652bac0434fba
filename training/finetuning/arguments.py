"""What fine-tuning with CTC and for classification share: arguments, data and checkpoints to start from."""

import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path


# oneDNN keeps kernels for the last 1,024 shapes, and almost every batch has its own.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

import numpy as np
import torch
from torch import nn
from transformers import AutoFeatureExtractor, PreTrainedModel, TrainingArguments, Wav2Vec2FeatureExtractor

import sjepa_hf  # noqa: F401  (registers its classes with the Auto classes)
from sjepa_hf.command import own_words
from sjepa_hf.opening import build_model, open_config, open_model, open_pretrained
from sjepa_hf.push import open_repo
from sjepa_hf.saving import feature_extractor
from training.common.command_line import parse_dataclasses
from training.data.clips import SAMPLING_RATE
from training.data.labelled import LabelledClips, open_labelled
from training.data.manifest import MissingColumn
from training.data.sources import open_source
from training.finetuning.resuming import choose_checkpoint
from training.finetuning.trainer_settings import check_training, interval, total_steps, with_equal_intervals


logger = logging.getLogger(__name__)

DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout")
SOURCES = "Each is a folder with metadata.csv, a JSONL manifest, Parquet, or on the Hub (name::config::split)."


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
        default=None, metadata={"help": "Train on clips drawn at random up to that many hours. Default: on all."}
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
    min_seconds: float = field(default=0.25, metadata={"help": "Shorter clips are left out."})
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
        default=None, metadata={"help": "Keep the front end as it is. Default: true, false with from_scratch."}
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
        default=0, metadata={"help": "Train low-rank adapters of this rank and the head instead of all weights."}
    )
    mask_time_prob: float | None = field(
        default=None, metadata={"help": "SpecAugment: share of frames masked. Default: the checkpoint's."}
    )
    mask_feature_prob: float | None = field(
        default=None, metadata={"help": "SpecAugment: share of feature dimensions masked. Default: the checkpoint's."}
    )
    dropout: float | None = field(
        default=None, metadata={"help": "Every dropout of the encoder and the head. Default: the checkpoint's."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Say what the run would do, and stop before it does it."})
    hub: dict | None = field(
        default=None, init=False
    )  # with --push_to_hub: where the result goes, as `publish` takes it

    def __post_init__(self):
        if not 0 < self.eval_fraction < 1:
            raise ValueError(f"`eval_fraction` is {self.eval_fraction}; it must lie between 0 and 1.")
        if self.train_hours is not None and self.train_hours <= 0:
            raise ValueError(f"`train_hours` is {self.train_hours}; it must be above 0.")
        if self.freeze_feature_encoder is None:
            self.freeze_feature_encoder = not self.from_scratch
        for name in ("mask_time_prob", "mask_feature_prob", "dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"`{name}` is {value}; it must lie between 0 and 1.")
        for name in ("lora_rank", "freeze_encoder_steps", "reinit_layers", "min_steps", "head_learning_rate"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"`{name}` is {value}; it must not be negative.")
        if self.from_scratch and (self.lora_rank or self.freeze_encoder_steps):
            raise ValueError("`from_scratch` trains all weights: it goes with neither lora_rank nor freezing.")
        if self.reinit_layers and self.lora_rank:
            raise ValueError("`reinit_layers` leaves layers to be learned, which `lora_rank` would keep as they are.")


def parse_finetuning(
    argv: list[str] | None, settings: type, recipe: Path, description: str, higher_is_better: Mapping[str, bool]
) -> tuple:
    """
    `(settings, TrainingArguments)` from `--config RECIPE.yaml` (without it, `recipe`) and `--field value`.

    Args:
        higher_is_better: metrics that may choose the best checkpoint.

    Raises:
        ValueError: for a recipe that is absent or holds an unknown field, missing fields, settings of the Trainer that
            cannot work, and an output directory that holds another run.
    """
    argv = with_equal_intervals(sys.argv[1:] if argv is None else argv)
    try:
        chosen, training = parse_dataclasses((settings, TrainingArguments), argv, description, recipe=str(recipe))[:2]
    except (ValueError, ImportError, TypeError, KeyError) as error:  # Transformers' own, over several lines
        said = " ".join(own_words(error).split())
        if "load_best_model_at_end" in said:
            said += ". With --load_best_model_at_end false the last checkpoint is the result."
        raise ValueError(said) from error
    for name in ("model_name_or_path", "train_data"):
        if not getattr(chosen, name):
            raise ValueError(f"`{name}` is missing: give it as --{name} or in the recipe.")
    check_training(training, argv, higher_is_better)
    training.resume_from_checkpoint = choose_checkpoint(training.resume_from_checkpoint, training.output_dir)
    if training.resume_from_checkpoint:
        training.eval_on_start = False  # it was evaluated when it began
    if training.push_to_hub and not chosen.dry_run:
        repo_id = training.hub_model_id or Path(training.output_dir).resolve().name
        chosen.hub = {"repo_id": repo_id, "private": training.hub_private_repo, "token": training.hub_token}
        if training.process_index == 0:
            chosen.hub["repo_id"] = open_repo(kind=open_config(chosen.model_name_or_path).model_type, **chosen.hub)
    training.push_to_hub = False  # the result at the end, rather than whatever the Trainer saves on its way
    if training.max_steps > 0 or any(word.replace("-", "_").startswith("__num_train_epochs") for word in argv):
        chosen.min_steps = 0
    training.remove_unused_columns = False  # the collator needs what the model's forward does not name
    training.dataloader_pin_memory &= torch.cuda.is_available()  # else torch warns
    return chosen, training


# Data


def choose_column(
    specs: Sequence[str],
    column: str | None,
    candidates: Sequence[str],
    argument: str,
    what: str,
    audio_column: str | None = None,
    classes: bool = False,
) -> str:
    """
    `column`, or the first of the candidates that the first source has.

    Args:
        argument, what: how to call the setting and its content in the error.
        audio_column, classes: as in `open_source`.

    Raises:
        ValueError: if the source cannot be opened or has none of them.
    """
    if column is not None:
        return column
    open_source(specs[0], audio_column=audio_column)  # whatever else is wrong with it, is said first
    for candidate in candidates:
        try:
            open_source(specs[0], audio_column=audio_column, labels=[candidate], classes=classes)
            return candidate
        except MissingColumn as error:
            problem = error
    names = ", ".join(candidates)
    raise ValueError(f"No column of {what} was found ({names}): {problem} If it has another name, give `{argument}`.")


def open_splits(
    arguments: FineTuningArguments, column: str, classes: bool = False
) -> tuple[LabelledClips, dict[str, LabelledClips], dict[str, LabelledClips]]:
    """
    Training clips, and clips for evaluation and for the final test by the name of their source. Those for scoring are
    never left out for being long. `classes` as in `open_source`.
    """

    def opened(specs: Sequence[str], max_seconds: float) -> LabelledClips:
        return open_labelled(
            specs,
            [column],
            audio_column=arguments.audio_column,
            min_seconds=arguments.min_seconds,
            max_seconds=max_seconds,
            max_bad_fraction=arguments.max_bad_fraction,
            classes=classes,
        )

    train = opened(arguments.train_data, arguments.max_seconds)
    if arguments.eval_data:
        evaluation = {spec: opened([spec], float("inf")) for spec in arguments.eval_data}
    else:
        if len(train) < 2:
            raise ValueError("`train_data` has a single usable clip: none can be held out. Give `eval_data`.")
        train, held_out = train.hold_out(arguments.eval_fraction)
        evaluation = {"held out": held_out}
        logger.warning(
            "No eval_data: %d of %d clips are held out at random, so their speakers may be heard in training too.",
            len(held_out),
            len(held_out) + len(train),
        )
    if arguments.train_hours is not None:
        train = drawn(train, arguments.train_hours)
    test = {spec: opened([spec], float("inf")) for spec in arguments.test_data or ()}
    hours = {"train": train.hours} | {name: clips.hours for name, clips in (evaluation | test).items()}
    logger.info("Hours of audio: %s.", ", ".join(f"{name} {value:.2f}" for name, value in hours.items()))
    return train, evaluation, test


def drawn(clips: LabelledClips, hours: float, seed: int = 0) -> LabelledClips:
    """Clips at random, the same for each seed, until they last that long; a smaller part lies in a larger one."""
    order = np.random.default_rng(seed).permutation(len(clips))
    ends = np.cumsum([clips.num_samples[i] for i in order]) / SAMPLING_RATE / 3600
    count = int(np.searchsorted(ends, hours)) + 1
    return clips.select(sorted(order[:count].tolist()))


def enough_epochs(training: TrainingArguments, min_steps: int, num_clips: int) -> None:
    """Raise the number of epochs until they make `min_steps` optimizer steps."""
    epochs = math.ceil(min_steps / total_steps(training, num_clips)[0])
    if epochs > training.num_train_epochs:
        logger.info(
            "%d clips: %d epochs instead of %g, for %d steps.", num_clips, epochs, training.num_train_epochs, min_steps
        )
        training.num_train_epochs = epochs


def settle_steps(training: TrainingArguments, min_steps: int, num_clips: int) -> None:
    """
    Make the epochs enough for `min_steps`, and shares of the run steps.

    Raises:
        ValueError: if not one step would be trained.
    """
    enough_epochs(training, min_steps, num_clips)
    total = total_steps(training, num_clips)[1]
    training.eval_steps, training.save_steps = (interval(n, total) for n in (training.eval_steps, training.save_steps))


def by_length(parts: Sequence[LabelledClips]) -> torch.utils.data.Dataset:
    """All parts one after another, each with its longest clips first: little padding, and memory runs out at once."""
    return torch.utils.data.ConcatDataset(
        [part.select(sorted(range(len(part)), key=part.num_samples.__getitem__, reverse=True)) for part in parts]
    )


# Checkpoints


def open_extractor(model_name_or_path: str, auto_class: type, what: str) -> Wav2Vec2FeatureExtractor:
    """
    The checkpoint's feature extractor, that of this package for S-JEPA, always with attention mask.

    Args:
        auto_class: `AutoModelForCTC` or `AutoModelForAudioClassification`; `what` is how the error calls its head.

    Raises:
        ValueError: if the checkpoint cannot be opened, its type has no such head, or it does not read waveforms at
            16 kHz.
    """
    named = f"`model_name_or_path` {model_name_or_path}"
    config = open_config(model_name_or_path)
    if type(config) not in auto_class._model_mapping:
        raise ValueError(f"{named} is of type {config.model_type}, which has no {what} head in Transformers.")
    if config.model_type == "sjepa":
        return feature_extractor()
    extractor = open_pretrained(AutoFeatureExtractor, model_name_or_path)
    if not isinstance(extractor, Wav2Vec2FeatureExtractor) or extractor.sampling_rate != 16000:
        raise ValueError(f"{named} does not read waveforms at 16 kHz.")
    extractor.return_attention_mask = True
    return extractor


def open_with_head(
    auto_class: type, arguments: FineTuningArguments, *, keep_head: bool = False, **changes
) -> PreTrainedModel:
    """
    The checkpoint with a head, in fp32; its weights fresh with `from_scratch`.

    Args:
        auto_class: `AutoModelForCTC` or `AutoModelForAudioClassification`.
        keep_head: take the checkpoint's head where it has one of the right size; its outputs must mean the same.
        changes: fields of the configuration.

    Raises:
        ValueError: if the checkpoint cannot be opened, or lacks weights of the encoder.
    """
    path = arguments.model_name_or_path
    config = open_config(path)
    for name in ("mask_time_prob", "mask_feature_prob"):
        if getattr(arguments, name) is not None:
            changes[name] = getattr(arguments, name)
    if arguments.dropout is not None:
        changes |= {name: arguments.dropout for name in DROPOUTS if hasattr(config, name)}
    for name, value in changes.items():
        setattr(config, name, value)
    if arguments.from_scratch:
        model = build_model(auto_class, config, path)
    else:
        model = open_model(auto_class, path, fresh_head=True, config=config, dtype=torch.float32)
    if arguments.reinit_layers and not arguments.from_scratch:
        reinitialize_top_layers(model, auto_class.from_config(config), arguments.reinit_layers)
    if not keep_head:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and not in_encoder(name, model):
                nn.init.normal_(module.weight, std=config.initializer_range)
                nn.init.zeros_(module.bias)
    if arguments.freeze_feature_encoder:
        model.freeze_feature_encoder()
    return with_adapters(model, arguments.lora_rank) if arguments.lora_rank else model


def reinitialize_top_layers(model: PreTrainedModel, fresh: PreTrainedModel, count: int) -> None:
    """
    Give the top `count` Transformer layers the weights of the same layers of a model without pretraining.

    Raises:
        ValueError: if the encoder has fewer layers.
    """
    layers, fresh_layers = model.base_model.encoder.layers, fresh.base_model.encoder.layers
    if count > len(layers):
        raise ValueError(f"`reinit_layers` is {count}, but the encoder has {len(layers)} layers.")
    for layer, fresh_layer in list(zip(layers, fresh_layers))[-count:]:
        layer.load_state_dict(fresh_layer.state_dict())


def with_adapters(model: PreTrainedModel, rank: int):
    """LoRA (arXiv 2106.09685) on the linear maps of all Transformer layers; the head is trained, and saved, whole."""
    from peft import LoraConfig, get_peft_model

    targets = ["intermediate_dense", "output_dense"]
    if model.config.model_type != "wavlm":  # its attention reads the weights past any adapter
        targets += ["q_proj", "k_proj", "v_proj", "out_proj"]
    encoder = model.base_model_prefix
    head = [name for name, module in model.named_children() if name != encoder and list(module.parameters())]
    adapted = get_peft_model(
        model,
        LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules=targets, modules_to_save=head),
    )
    # PEFT takes a new vocabulary for new input embeddings, which no encoder of speech has.
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    trained, total = adapted.get_nb_trainable_parameters()
    logger.info("LoRA and head: %d of %d parameters are trained.", trained, total)
    return adapted


def in_encoder(name: str, model: nn.Module) -> bool:
    """Whether a parameter of that name belongs to the encoder rather than to the head."""
    return model.base_model_prefix in name.split(".")
