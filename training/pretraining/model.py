"""Model of a pretraining run, new or of a checkpoint, with its optimizer and its targets."""

import logging
from pathlib import Path

import torch
from accelerate import Accelerator

from sjepa_hf import DiagonalGaussianMixture, SJepaForPreTraining, SJepaModel
from sjepa_hf.command import first_line
from sjepa_hf.frame_features import num_features
from sjepa_hf.opening import open_config, open_sjepa
from training.pretraining.arguments import Arguments, RunArguments, check_model, check_unchanged
from training.pretraining.method_arguments import TargetArguments
from training.pretraining.other_pretraining import OtherForPreTraining, open_other
from training.targets.layer_choice import LayerChoice
from training.targets.targets import FrozenTargets, OnlineTargets


logger = logging.getLogger(__name__)


def build_model(arguments: Arguments, resumed: Path | None, accelerator: Accelerator) -> SJepaForPreTraining:
    """
    The model of the checkpoint that a run is resumed from, as it is; else that of `initial_checkpoint`, for phase 1
    with a new mixture and last layer; else a new one.

    Raises:
        ValueError: if the checkpoint cannot be opened, or does not fit the settings.
    """
    settings = arguments.model
    attention = {"attn_implementation": settings.attn_implementation}
    checkpoint = resumed or settings.initial_checkpoint
    if checkpoint:
        with accelerator.main_process_first():
            model = open_checkpoint(checkpoint, arguments, fresh_head=not resumed, **attention)
        check_model(arguments, model.config)
    else:
        if arguments.run.phase1_steps == 0 and accelerator.is_main_process:
            logger.warning(
                "`phase1_steps` is 0: PHASE 2 FOLLOWS THE RANDOM WEIGHTS OF A NEW MODEL. `initial_checkpoint` names an"
                " encoder to go on with."
            )
        try:
            model = SJepaForPreTraining._from_config(arguments.sjepa_config(), **attention)
        except (ImportError, ValueError) as error:  # a package of that implementation is not installed
            raise ValueError(f"`attn_implementation` {settings.attn_implementation}: {first_line(error)}") from error
    if not resumed:
        prepare_mixture(model, arguments)
    if settings.freeze_feature_encoder:
        model.freeze_feature_encoder()
    if settings.gradient_checkpointing:
        # Its name since Transformers 5.24; by the one before, it warns there.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    model.to(accelerator.device).train()
    if settings.torch_compile:
        model.compile(dynamic=True)  # every batch has a length of its own
    return model


def prepare_mixture(model: SJepaForPreTraining, arguments: Arguments) -> None:
    """
    Give the model of a new run the mixture of its first phase, or see that it has the one that phase 2 keeps.

    Raises:
        ValueError: if it has not.
    """
    targets, checkpoint = arguments.targets, arguments.model.initial_checkpoint
    size = num_features(targets.phase1_features)
    if arguments.run.phase1_steps == 0 and targets.keeps_frozen:
        known = model.config.mixture_features in (None, targets.phase1_features)  # None: it is not said
        if not (checkpoint and known and model.mixture.num_features == size and model.mixture.is_fitted()):
            raise ValueError(
                f"`frozen_weight` keeps the targets of phase 1, but there are none: `phase1_steps` is 0, and"
                f" `initial_checkpoint` names no checkpoint with a fitted mixture over {targets.phase1_features}."
            )
        if model.config.mixture_transitions != targets.target_transitions:
            raise ValueError(
                f"`target_transitions` is {targets.target_transitions}, but the mixture of {checkpoint}, which"
                f" `frozen_weight` keeps, was fitted with {model.config.mixture_transitions}: set it to that."
            )
    model.config.mixture_transitions = targets.target_transitions
    if checkpoint and arguments.run.phase1_steps > 0:
        model.replace_mixture(targets.phase1_components, size)


def open_checkpoint(
    checkpoint: str | Path, arguments: Arguments, fresh_head: bool, **options
) -> SJepaForPreTraining | OtherForPreTraining:
    """
    A checkpoint of S-JEPA, or an encoder of another kind with what lies beside it.

    Raises:
        ValueError: if it cannot be opened, or `model_config` asks for another model.
    """
    config = open_config(checkpoint)
    if config.model_type == "sjepa":
        if fresh_head:  # else resuming has compared them
            whose, way_out = f"the model of {checkpoint}", "give it that value, or leave it out"
            check_unchanged(arguments.chosen_model(), arguments.sjepa_config(), config, whose, way_out)
        return open_sjepa(SJepaForPreTraining, checkpoint, fresh_head=fresh_head, **options)
    return open_other(checkpoint, config, arguments, **options)


def build_optimizer(model: SJepaForPreTraining, run: RunArguments) -> torch.optim.AdamW:
    """AdamW; its fused form leaves a step with a broken gradient out without asking the device."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=run.phase1_learning_rate,
        betas=(run.adam_beta1, run.adam_beta2),
        weight_decay=run.weight_decay,
        fused=True,
    )


def frozen_targets(mixture: DiagonalGaussianMixture, settings: TargetArguments) -> FrozenTargets:
    """The targets of phase 1."""
    return FrozenTargets(mixture, settings.phase1_features, settings.phase1_temperature)


def online_targets(
    encoder: SJepaModel,
    mixture: DiagonalGaussianMixture,
    arguments: Arguments,
    layer_choice: LayerChoice,
    accelerator: Accelerator,
) -> OnlineTargets:
    """The targets of phase 2; the EMA encoder starts as the encoder is now."""
    settings = arguments.targets
    return OnlineTargets(
        encoder,
        mixture,
        layer_choice,
        accelerator,
        temperature=settings.target_temperature,
        mixture_decay=settings.mixture_decay,
        average=settings.mixture_average,
        layers=settings.target_layers,
        instance_norm=settings.target_instance_norm,
        num_components=settings.target_dims,
        compiled=arguments.model.torch_compile,
    )
