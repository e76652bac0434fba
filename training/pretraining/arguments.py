"""Arguments of a pretraining run, and how a recipe and the command line make them."""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from transformers import PreTrainedConfig

from sjepa_hf import SJepaConfig
from sjepa_hf.frame_features import num_features
from sjepa_hf.frames import SAMPLING_RATE, check_frames
from sjepa_hf.opening import why
from training.common.command_line import given, parse_dataclasses, read_recipe
from training.common.ranges import check_choice, check_hub, check_ranges
from training.common.signals import check_system
from training.data.arguments import DataArguments
from training.pretraining.method_arguments import MaskingArguments, TargetArguments
from training.pretraining.shortening import shortened


# Of an encoder of another kind: what predictor and head take from it, and what the configuration checks it against.
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_conv_pos_embedding_groups")
# Fields of the configuration that are no choice of `model_config`, and the options that decide them.
DECIDED_BY = {
    "num_mixture_components": "phase1_components and phase2_components",
    "mixture_feature_size": "phase1_features and target_dims",
    "mixture_features": "phase1_features",
    "mixture_layers": "target_layers, or start_layer",
    "mixture_instance_norm": "target_instance_norm",
    "mixture_whitened": "target_dims",
    "mixture_temperature": "phase1_temperature and target_temperature",
    "mixture_transitions": "target_transitions",
    "num_frozen_components": "frozen_weight and phase1_components",
    "frozen_feature_size": "frozen_weight and phase1_features",
}


@dataclass
class ModelArguments:
    """What is trained."""

    model_config: str = field(
        default="{}",
        metadata={
            "help": "Fields of SJepaConfig that differ from the published base model; on the command line as JSON, "
            'e.g. \'{"hidden_size": 256, "front_end": "log_mel"}\'. What is not named keeps the recipe\'s value; '
            "options decide what the mixtures are."
        },
    )
    initial_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint (directory or Hub name) whose weights and sizes start this run; model_config may not "
            "say otherwise. One of pretraining, or any encoder of wav2vec 2.0's family (HuBERT, WavLM, ...), which "
            "leaves model_config the predictor_ fields. Unlike with resume_from_checkpoint, mixture, the head's last "
            "layer, optimizer and step counter start afresh."
        },
    )
    freeze_feature_encoder: bool = field(
        default=False, metadata={"help": "Whether the convolutions over the waveform stay as they are."}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "sdpa (what Transformers chooses), flash_attention_2, eager, ... On a CPU with bf16, eager is up "
            "to twice as fast as sdpa for clips of a few seconds."
        },
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Recompute layers in backward to save memory."}
    )
    torch_compile: bool = field(
        default=False,
        metadata={
            "help": "torch.compile of student and EMA encoder: worth its minutes of compiling on a GPU. A resumed run "
            "may then differ from an uninterrupted one in the last bits."
        },
    )


@dataclass
class RunArguments:
    """Length, optimisation and output of a run. The defaults are the published ones where the paper states them."""

    output_dir: str = field(default="sjepa-pretraining", metadata={"help": "Where checkpoints and logs go."})
    seed: int = field(default=0, metadata={"help": "Seed of everything random."})
    phase1_steps: int = field(default=100_000, metadata={"help": "Optimizer steps on the frozen MFCC mixture."})
    phase2_steps: int = field(default=300_000, metadata={"help": "Optimizer steps on the online mixture."})
    visible_loss: bool = field(
        default=True,
        metadata={
            "help": "Whether visible frames count beside the masked ones (until late in phase 2). Small models did not"
            " begin to learn without them."
        },
    )
    masked_only_after: float = field(
        default=0.5,
        metadata={"help": "Share of phase 2 after which only masked frames count and augmentation is off."},
    )
    phase1_learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of phase 1."})
    phase2_learning_rate: float = field(default=2.5e-5, metadata={"help": "Peak learning rate of phase 2."})
    phase1_warmup_steps: int = field(default=5_000, metadata={"help": "Warm-up steps of phase 1."})
    phase2_warmup_steps: int = field(default=5_000, metadata={"help": "Warm-up steps of phase 2."})
    phase1_schedule: str = field(default="linear", metadata={"help": "Decay in phase 1: linear, cosine or constant."})
    phase2_schedule: str = field(
        default="constant", metadata={"help": "Decay in phase 2: linear, cosine or constant."}
    )
    phase1_final_factor: float = field(
        default=0.0, metadata={"help": "Share of the peak learning rate that remains at the end of phase 1."}
    )
    phase2_final_factor: float = field(
        default=0.0, metadata={"help": "Share of the peak learning rate that remains at the end of phase 2."}
    )
    phase1_decay_steps: int | None = field(
        default=None,
        metadata={"help": "Last steps of phase 1, over which the rate falls; before, it stays. Default: all of them."},
    )
    phase2_decay_steps: int | None = field(default=None, metadata={"help": "The same in phase 2."})
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Micro-batches per optimizer step and process."}
    )
    weight_decay: float = field(default=1e-3, metadata={"help": "Weight decay of AdamW."})
    adam_beta1: float = field(default=0.9, metadata={"help": "First beta of AdamW."})
    adam_beta2: float = field(default=0.99, metadata={"help": "Second beta of AdamW."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to this norm."})
    max_skipped_steps: int = field(
        default=20,
        metadata={
            "help": "Steps in a row with a NaN or infinite gradient, which are skipped, that end the run; they are "
            "counted at each line of metrics."
        },
    )
    logging_steps: int = field(default=50, metadata={"help": "Steps between two lines of metrics."})
    save_steps: int = field(default=5_000, metadata={"help": "Steps between two checkpoints."})
    save_total_limit: int = field(default=3, metadata={"help": "Checkpoints to keep, the newest; 0 keeps all."})
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "'latest': go on from the newest whole checkpoint of output_dir; 'auto': the same, or begin where"
            " there is none; or a checkpoint directory."
        },
    )
    mixed_precision: str | None = field(
        default=None,
        metadata={
            "help": "no, bf16, fp16, or auto: bf16 where the device multiplies in it natively, else no. Left out: "
            "whatever `accelerate launch` says."
        },
    )
    push_to_hub: bool = field(
        default=False,
        metadata={"help": "Publish the result on the Hub (log in first: `hf auth login`)."},
    )
    hub_model_id: str | None = field(
        default=None, metadata={"help": "owner/name there. Default: the name of output_dir."}
    )
    hub_private_repo: bool | None = field(default=None, metadata={"help": "Whether a new repo is hidden."})
    hub_strategy: str = field(
        default="end", metadata={"help": "'end', or 'every_save': each checkpoint too, as revision step-N, meanwhile."}
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Say what the run would do, and end without writing anything."}
    )
    report_to: str = field(
        default="tensorboard", metadata={"help": "Tracker, by its name in Accelerate: tensorboard, wandb, none, ..."}
    )

    def __post_init__(self):
        check_ranges(
            self,
            at_least_1="gradient_accumulation_steps max_skipped_steps logging_steps save_steps",
            positive="phase1_learning_rate phase2_learning_rate max_grad_norm",
            seed="seed",
            not_negative="phase1_steps phase2_steps phase1_warmup_steps phase2_warmup_steps phase1_decay_steps"
            " phase2_decay_steps weight_decay save_total_limit",
            share="masked_only_after phase1_final_factor phase2_final_factor adam_beta1 adam_beta2",
        )
        for name in ("adam_beta1", "adam_beta2"):
            if getattr(self, name) == 1:
                raise ValueError(f"`{name}` is 1; it must lie below.")
        check_choice(self, "hub_strategy", ("end", "every_save"))
        check_hub(self)
        check_choice(self, "report_to", ("none", "all", *LOGGER_TYPE_TO_CLASS))
        if self.report_to not in ("none", "all", *map(str, get_available_trackers())):
            raise ValueError(
                f"`report_to` is {self.report_to}, which is not installed: install it, or take another one or none."
            )
        if self.phase1_steps + self.phase2_steps == 0:
            raise ValueError("`phase1_steps` and `phase2_steps` must not both be 0.")
        for phase in ("phase1", "phase2"):
            self._check_schedule(phase)

    def _check_schedule(self, phase: str) -> None:
        check_choice(self, f"{phase}_schedule", ("linear", "cosine", "constant"))
        steps, warmup = getattr(self, f"{phase}_steps"), getattr(self, f"{phase}_warmup_steps")
        if 0 < steps < warmup:
            raise ValueError(
                f"`{phase}_warmup_steps` ({warmup}) exceeds `{phase}_steps` ({steps}): give a shorter warm-up as well,"
                f" --{phase}_warmup_steps {steps // 10} for example."
            )
        decay = getattr(self, f"{phase}_decay_steps")
        if getattr(self, f"{phase}_schedule") == "constant":
            factor = getattr(self, f"{phase}_final_factor")
            for name, is_set in (("decay_steps", decay is not None), ("final_factor", factor > 0)):
                if is_set:
                    raise ValueError(f"`{phase}_{name}` says how the rate falls, but `{phase}_schedule` is constant.")
        if decay is not None and 0 < steps < warmup + decay:
            raise ValueError(
                f"`{phase}_decay_steps` ({decay}) must lie between 0 and `{phase}_steps` less its warm-up"
                f" ({steps - warmup}): give --{phase}_decay_steps, or a shorter --{phase}_warmup_steps."
            )


ARGUMENTS = (ModelArguments, DataArguments, MaskingArguments, TargetArguments, RunArguments)


@dataclass
class Arguments:
    """All arguments of a run, one group a field."""

    model: ModelArguments
    data: DataArguments
    masking: MaskingArguments
    targets: TargetArguments
    run: RunArguments

    def to_dict(self) -> dict:
        """All fields of all groups, flat, as a recipe holds them."""
        return {f.name: getattr(group, f.name) for group in vars(self).values() for f in fields(group)}

    def chosen_model(self) -> dict:
        """The fields of `model_config`."""
        return json.loads(self.model.model_config)

    def sjepa_config(self, encoder: PreTrainedConfig | None = None) -> SJepaConfig:
        """
        The model's configuration. Where the model starts on MFCC targets, mixture and head have their sizes.

        Args:
            encoder: configuration of an encoder of another kind, whose sizes it takes.

        Raises:
            ValueError: if `model_config` holds an unknown field or a value that the model refuses, or one that an
                encoder of another kind has already settled.
        """
        chosen = self.chosen_model()
        if encoder is not None:
            if settled := sorted(name for name in chosen if not name.startswith("predictor_")):
                raise ValueError(
                    f"`model_config` sets {', '.join(settled)}, but the encoder is that of"
                    f" {self.model.initial_checkpoint}, a {encoder.model_type}, and stays as it is: only fields of the"
                    " predictor (predictor_...) can be set."
                )
            chosen |= {name: getattr(encoder, name) for name in SIZES}
        targets = self.targets
        components, size = targets.phase2_components, targets.target_dims
        if self.run.phase1_steps > 0:
            components, size = targets.phase1_components, num_features(targets.phase1_features)
        chosen |= {"num_mixture_components": components, "mixture_feature_size": size}
        chosen["mixture_transitions"] = targets.target_transitions
        if unknown := sorted(chosen.keys() - {f.name for f in fields(SJepaConfig)} - SJepaConfig().to_dict().keys()):
            raise ValueError(f"`model_config` holds unknown fields: {', '.join(unknown)}.")
        try:
            return SJepaConfig(**chosen)
        except Exception as error:  # of whatever Transformers makes of a value in a field that it checks itself
            raise ValueError(f"`model_config`: {why(error)}") from error


def parse_arguments(argv: list[str] | None = None) -> Arguments:
    """
    Arguments from `--config RECIPE.yaml` (optional) and `--field value` for each field to override.

    Raises:
        ValueError: for a recipe that cannot be taken, values out of range, and settings that contradict each other.
        UserError: on Windows.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    asked = given(argv, ARGUMENTS)
    recipe = read_recipe(asked["config"], ARGUMENTS) if "config" in asked else {}
    recipe |= shortened(asked, {f.name: f.default for f in fields(RunArguments)} | recipe)
    chosen_there = recipe.pop("model_config", {})
    groups = parse_dataclasses(ARGUMENTS, argv, "Pretrain S-JEPA, both phases in one run.", values=recipe)
    check_system()
    arguments = Arguments(*groups[: len(ARGUMENTS)])
    try:
        chosen = json.loads(arguments.model.model_config)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"`model_config` is not JSON ({error}): write it like '{{\"hidden_size\": 256}}'.") from None
    if not isinstance(chosen, dict):
        raise ValueError(f"`model_config` is {chosen!r}: write it like '{{\"hidden_size\": 256}}'.")
    arguments.model.model_config = json.dumps(chosen_there | chosen)
    for name in arguments.chosen_model():
        if name in DECIDED_BY:
            raise ValueError(f"`model_config` sets {name}, but that is decided by {DECIDED_BY[name]}: leave it out.")
    if not arguments.model.initial_checkpoint:
        check_model(arguments, arguments.sjepa_config())
    return arguments


def check_unchanged(names: Iterable[str], asked: SJepaConfig, own: PreTrainedConfig, whose: str, way_out: str) -> None:
    """Raise a ValueError where one of these fields of `model_config` contradicts a model that goes on as it is."""
    for name in names:
        wanted, found = getattr(asked, name, None), getattr(own, name, None)
        if wanted != found:
            raise ValueError(
                f"`model_config` has {name} = {wanted!r}, but {whose} has {found!r} and goes on as it is: {way_out}."
            )


def check_model(arguments: Arguments, config: SJepaConfig) -> None:
    """Raise a ValueError for settings that do not fit a model of that configuration."""
    check_frames(config, "The model")
    targets, top = arguments.targets, config.num_hidden_layers
    if arguments.run.phase2_steps > 0:
        if targets.target_dims and targets.target_dims > config.hidden_size:
            raise ValueError(
                f"`target_dims` is {targets.target_dims}; it must lie between 1 and the model's {config.hidden_size}."
            )
        name = "target_layers" if targets.target_layers else "start_layer"
        for layer in targets.target_layers or [targets.start_layer]:
            if layer is not None and not 0 <= layer <= top:
                raise ValueError(f"`{name}` names layer {layer}, but the model has layers 1 to {top} (0: the input).")
    if (mel_mask := arguments.masking.mel_mask) and (config.front_end != "log_mel" or mel_mask > config.num_mel_bins):
        has = f"has {config.num_mel_bins} mel bins" if config.front_end == "log_mel" else "reads the waveform"
        raise ValueError(f"`mel_mask` hides bands of up to {mel_mask} mel bins, but the model {has}: lower it, or 0.")
    frames = config.num_frames(round(arguments.data.max_seconds * SAMPLING_RATE))
    if frames > config.predictor_max_positions:
        raise ValueError(
            f"`max_seconds` ({arguments.data.max_seconds:g} s, {frames} frames) exceeds the predictor's table of"
            f" {config.predictor_max_positions} positions: lower it, or, in a new model, raise"
            " `predictor_max_positions` in `model_config`."
        )
