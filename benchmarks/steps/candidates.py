"""What the benchmark of a step lets take turns: our step of either phase, and a HuBERT step of the same sizes."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import HubertConfig, HubertModel

from benchmarks.steps.flops import BatchShape, step_flops
from benchmarks.steps.naive import NaiveStep
from sjepa_hf import SJepaConfig, SJepaForPreTraining
from sjepa_hf.frames import SAMPLING_RATE
from training.common.command_line import read_recipe
from training.common.device import default_device
from training.data.batches import with_masks
from training.data.masking import SpanMask
from training.pretraining.arguments import ARGUMENTS
from training.pretraining.method_arguments import MaskingArguments, TargetArguments
from training.targets.layer_choice import LayerChoice
from training.targets.targets import FrozenTargets, OnlineTargets


RECIPES = Path(__file__).parents[2] / "training" / "recipes"
LEARNING_RATE, MAX_GRAD_NORM = 1e-5, 1.0
MIXTURE_DECAY, EMA_DECAY = 0.999, 0.999
SHARED_WITH_HUBERT = (
    "hidden_size num_hidden_layers num_attention_heads intermediate_size conv_dim conv_stride conv_kernel"
    " num_conv_pos_embeddings num_conv_pos_embedding_groups hidden_dropout activation_dropout attention_dropout"
    " feat_proj_dropout layerdrop"
).split()
COMPILE = {
    "no": None,
    "dynamic": {"dynamic": True},
    "static": {"dynamic": False},
    "graphs": {"dynamic": False, "mode": "reduce-overhead"},
}
"""How `torch.compile` is called: as `--torch_compile` of a run does; for one size; for one size with CUDA graphs."""
SWEEPS = {"components": int, "seconds": float, "clips": int, "layers": int, "compile": str}


@dataclass
class StepArguments:
    """What is measured."""

    config: str = field(
        default="base", metadata={"help": "Sizes, mask share and layer of a recipe: its name (base, tiny) or a file."}
    )
    phase: int = field(default=2, metadata={"help": "1: targets from MFCC; 2: from the EMA encoder."})
    clips: int = field(default=4, metadata={"help": "Clips in a batch."})
    seconds: float = field(default=10.0, metadata={"help": "Seconds of each clip."})
    components: int | None = field(default=None, metadata={"help": "Mixture components; the recipe's by default."})
    layers: int | None = field(default=None, metadata={"help": "Transformer layers; the recipe's by default."})
    include_visible: bool = field(
        default=False, metadata={"help": "Phase 2: visible frames count in the loss, as early in that phase."}
    )
    visible_only: bool = field(
        default=False, metadata={"help": "Also our step with the encoder's layers over visible frames alone."}
    )
    against: list[str] = field(
        default_factory=lambda: ["naive", "hubert"], metadata={"help": "What takes turns with our step, of these two."}
    )
    threads: int = field(default=2, metadata={"help": "CPU threads of torch."})
    dtype: str = field(default="fp32", metadata={"help": "fp32, or bf16 by autocast."})
    device: str = field(default_factory=default_device, metadata={"help": "cpu or cuda."})
    compile: str = field(
        default="no",
        metadata={
            "help": "torch.compile of student, EMA encoder and HuBERT: no, dynamic (as --torch_compile of a run),"
            " static or graphs (CUDA graphs); in the last two all batches have the same masks, as if of one size."
        },
    )
    repeats: int = field(default=5, metadata={"help": "Turns of each; medians are printed."})
    sweep: list[str] | None = field(
        default=None,
        metadata={"help": f"One of {', '.join(SWEEPS)} and its values: our step alone, a table of times."},
    )
    profile: bool = field(default=False, metadata={"help": "Also print the operators that take longest."})
    check_syncs: bool = field(
        default=False, metadata={"help": "Also run a step in which any wait of the host for the GPU is an error."}
    )

    def __post_init__(self):
        choices = {"phase": (1, 2), "dtype": ("fp32", "bf16"), "device": ("cpu", "cuda"), "compile": COMPILE}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; choose {' or '.join(map(str, allowed))}.")
        if not set(self.against) <= {"naive", "hubert"}:
            raise ValueError(f"`against` is {' '.join(self.against)}; choose among naive and hubert.")
        if self.sweep and (self.sweep[0] not in SWEEPS or len(self.sweep) < 2):
            raise ValueError(f"`sweep` is {' '.join(self.sweep)}; give one of {', '.join(SWEEPS)}, then its values.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("`device` is cuda, but torch sees no GPU: choose cpu.")
        if self.check_syncs and self.device != "cuda":
            raise ValueError("`check_syncs` needs `device` cuda: on a CPU there is nothing to wait for.")
        if self.clips < 1 or self.repeats < 1 or self.seconds < 0.1:
            raise ValueError("`clips` and `repeats` must be at least 1, and `seconds` at least 0.1.")


class Batches:
    """Batches of noise on a device, each under masks of its own."""

    def __init__(self, arguments: StepArguments, mask: SpanMask):
        self.mask, self.generator = mask, torch.Generator().manual_seed(0)
        shape = arguments.clips, int(SAMPLING_RATE * arguments.seconds)
        self.clips = 0.1 * np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        self.device = torch.device(arguments.device)
        self.same_masks = arguments.compile in ("static", "graphs")

    def __call__(self) -> dict:
        if self.same_masks:
            self.generator.manual_seed(0)
        lengths = torch.full((len(self.clips),), self.clips.shape[1])
        batch = with_masks(torch.from_numpy(self.clips.copy()), lengths, self.mask, self.generator)
        if self.device.type == "cuda":
            pinned = {k: v.pin_memory() for k, v in batch.items() if torch.is_tensor(v)}
            batch |= {k: v.to(self.device, non_blocking=True) for k, v in pinned.items()}
        return batch


class SJepaStep:
    """
    Our step on a new model of a recipe's sizes.

    Attributes:
        model (`SJepaForPreTraining`): what is trained.
        shape (`BatchShape`): the latest batch, as its operations are counted.
    """

    def __init__(self, arguments: StepArguments, accelerator: Accelerator, encode_visible_only: bool = False):
        torch.manual_seed(0)
        recipe = read_recipe(recipe_path(arguments.config), ARGUMENTS)
        self.config = sjepa_config(arguments, recipe, encode_visible_only)
        self.phase = arguments.phase
        self.include_visible = arguments.include_visible or arguments.phase == 1
        layer = recipe.get("start_layer", TargetArguments.start_layer)
        if layer is None:
            raise ValueError(
                f"`config` {arguments.config} leaves the layer to the effective ranks of an encoder: name a recipe"
                " whose `start_layer` is a number."
            )
        self.layer = min(layer, self.config.num_hidden_layers)
        self.accelerator, self.device = accelerator, torch.device(arguments.device)
        attention = recipe.get("attn_implementation")
        self.model = SJepaForPreTraining._from_config(self.config, attn_implementation=attention)
        moved_to(self.device, self.model).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, fused=True)
        if self.phase == 1:
            self.targets = FrozenTargets(self.model.mixture)
        else:
            self.targets = OnlineTargets(
                self.model.sjepa,
                self.model.mixture,
                LayerChoice(self.layer),
                accelerator,
                mixture_decay=MIXTURE_DECAY,
            )
        self.batches = Batches(
            arguments,
            SpanMask(
                recipe.get("mask_prob", MaskingArguments.mask_prob),
                recipe.get("mask_span", MaskingArguments.mask_span),
            ),
        )
        self.compiled = COMPILE[arguments.compile]
        if self.compiled:
            self.model.compile(**self.compiled)
            if self.phase == 2:
                self.targets.teacher.compile(**self.compiled)
        self.shape: BatchShape | None = None

    def __call__(self, part: Callable = nullcontext) -> None:
        """One step; `part(name)` is a context around each part of it."""
        with part("collate and masks"):
            batch = self.batches()
        self.train_on(batch, part)

    def train_on(self, batch: dict, part: Callable = nullcontext) -> torch.Tensor:
        """One step on a batch that is there. Returns the loss, `()`."""
        if self.compiled:
            torch.compiler.cudagraph_mark_step_begin()
        with part("targets"):
            posteriors, statistics = self.targets.expectation(batch)
        with part("student forward"), self.accelerator.autocast():
            output = self.model(
                batch["input_values"],
                attention_mask=batch["attention_mask"],
                mask_time_indices=batch["mask_time_indices"],
                target_posteriors=posteriors,
                include_visible=self.include_visible,
                masked_positions=batch["masked_positions"],
                visible_positions=batch["visible_positions"],
                longest_visible=batch["longest_visible"] if self.config.encode_visible_only else None,
            )
        with part("backward"):
            output.loss.backward()
        with part("clipping and optimizer"):
            self.accelerator.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad()
        with part("mixture and EMA update"):
            self.targets.accumulate(statistics)
            self.targets.update(self.model.sjepa, EMA_DECAY)
        self.shape = BatchShape(
            *batch["input_values"].shape,
            masked=output.num_masked_frames,
            visible=output.num_visible_frames,
            encoded=batch["longest_visible"] if self.config.encode_visible_only else None,
        )
        return output.loss.detach()

    def flops(self) -> dict[str, int]:
        """Operations of each part of the latest step."""
        return step_flops(self.config, self.shape, teacher_layers=self.layer if self.phase == 2 else None)

    def naive(self) -> NaiveStep:
        """The same step written plainly, on a copy of the model as it is now."""
        model = SJepaForPreTraining._from_config(self.config, attn_implementation=self.config._attn_implementation)
        model.load_state_dict(self.model.state_dict())
        return NaiveStep(
            model.to(self.device).train(),
            self.accelerator,
            phase=self.phase,
            layer=self.layer,
            include_visible=self.include_visible,
            mixture_decay=MIXTURE_DECAY,
            ema_decay=EMA_DECAY,
            learning_rate=LEARNING_RATE,
            max_grad_norm=MAX_GRAD_NORM,
        )


class HubertStep:
    """Forward, backward and optimizer of a HuBERT encoder of the same sizes, on the same batches."""

    def __init__(self, ours: SJepaStep):
        sizes = {name: getattr(ours.config, name) for name in SHARED_WITH_HUBERT}
        self.model = HubertModel._from_config(
            HubertConfig(**sizes, apply_spec_augment=False), attn_implementation=ours.config._attn_implementation
        )
        moved_to(ours.device, self.model).train()
        if ours.compiled:
            self.model.compile(**ours.compiled)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, fused=True)
        self.batches, self.accelerator = ours.batches, ours.accelerator

    def __call__(self) -> None:
        self.train_on(self.batches())

    def train_on(self, batch: dict, part: Callable = nullcontext) -> None:
        """One step on a batch that is there."""
        with part("forward"), self.accelerator.autocast():
            output = self.model(batch["input_values"], attention_mask=batch["attention_mask"]).last_hidden_state
            loss = output.float().square().mean()
        with part("backward"):
            loss.backward()
        with part("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad()


def moved_to(device: torch.device, model: nn.Module) -> nn.Module:
    """The model on a device; one of fake tensors can be moved nowhere, and has to stay on the CPU."""
    return model if device.type == "cpu" else model.to(device)


def recipe_path(config: str) -> str:
    """The file of a recipe that is given by name or by path."""
    named = RECIPES / f"{config}.yaml"
    return str(named if named.is_file() else config)


def sjepa_config(arguments: StepArguments, recipe: dict, encode_visible_only: bool) -> SJepaConfig:
    """The recipe's model in one of the two phases."""
    name = f"phase{arguments.phase}_components"
    chosen = recipe.get("model_config", {}) | {
        "num_mixture_components": arguments.components or recipe.get(name, getattr(TargetArguments, name)),
        "mixture_feature_size": 39 if arguments.phase == 1 else None,
        "encode_visible_only": encode_visible_only,
    }
    if arguments.layers:
        chosen["num_hidden_layers"] = arguments.layers
    return SJepaConfig(**chosen)
