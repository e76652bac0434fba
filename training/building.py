"""What a pretraining run is made of: the model, new or of a checkpoint, its optimizer and its targets."""

from pathlib import Path

import torch
from accelerate import Accelerator

from sjepa_hf import DiagonalGaussianMixture, SJepaForPreTraining
from training.arguments import Arguments, RunArguments, TargetArguments
from training.features import num_features
from training.layer_choice import LayerChoice
from training.targets import MfccTargets, OnlineTargets


def build_model(
    arguments: Arguments, checkpoint: str | Path | None, accelerator: Accelerator, on_mfcc: bool
) -> SJepaForPreTraining:
    """The model of a checkpoint, or a new one; for phase 1 (`on_mfcc`) with a mixture over MFCC."""
    settings = arguments.model
    attention = {"attn_implementation": settings.attn_implementation}
    if checkpoint:
        with accelerator.main_process_first():
            model = SJepaForPreTraining.from_pretrained(checkpoint, **attention)
    else:
        model = SJepaForPreTraining._from_config(arguments.sjepa_config(), **attention)
    size = num_features(arguments.targets.phase1_features)
    if on_mfcc and (model.mixture.num_features != size or model.config.num_frozen_components is not None):
        model.replace_mixture(arguments.targets.phase1_components, size)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.to(accelerator.device).train()
    if settings.torch_compile:
        model.compile(dynamic=True)  # every batch has a length of its own
    return model


def build_optimizer(model: SJepaForPreTraining, run: RunArguments) -> torch.optim.AdamW:
    """AdamW; its fused form leaves a step with a broken gradient out without asking the device."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=run.phase1_learning_rate,
        betas=(run.adam_beta1, run.adam_beta2),
        weight_decay=run.weight_decay,
        fused=True,
    )


def frozen_targets(mixture: DiagonalGaussianMixture, settings: TargetArguments) -> MfccTargets:
    """The targets of phase 1."""
    return MfccTargets(mixture, settings.phase1_features, settings.phase1_temperature)


def online_targets(
    model: SJepaForPreTraining, arguments: Arguments, layer_choice: LayerChoice, accelerator: Accelerator
) -> OnlineTargets:
    """The targets of phase 2; the EMA encoder starts as the encoder is now."""
    settings = arguments.targets
    return OnlineTargets(
        model.sjepa,
        model.mixture,
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
