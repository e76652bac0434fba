"""Checkpoints: a directory that `from_pretrained` opens, with the training state beside the weights.

A checkpoint is written under another name and renamed when it is whole. Nothing in it is a pickle that could run code:
weights are safetensors, tensors of the optimizer are read with `weights_only=True`, the rest is JSON.
"""

import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sjepa_hf import SJepaForPreTraining
from sjepa_hf.saving import feature_extractor, written_aside


STATE_DIRECTORY = "training_state"


@dataclass
class LoopState:
    """
    Everything that changes over a run and is not a tensor.

    Args:
        step (`int`): optimizer steps taken.
        micro_batches (`int`): batches that each rank has consumed: the position in the data.
        seconds (`float`): audio seen over all ranks, in seconds.
        samples_padded (`int`), samples_real (`int`): samples in all batches so far, with and without padding.
        active_layer (`int`): layer (from 0) that phase 2 reads.
        layer_scores (`list[float]`): smoothed effective rank of each layer.
        reseeded_components (`int`): dead components that were seeded anew.
    """

    step: int = 0
    micro_batches: int = 0
    seconds: float = 0.0
    samples_padded: int = 0
    samples_real: int = 0
    active_layer: int = 0
    layer_scores: list[float] = field(default_factory=list)
    reseeded_components: int = 0


def save_checkpoint(
    directory: Path,
    model: SJepaForPreTraining,
    teacher: torch.nn.Module | None,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    state: LoopState,
    arguments: dict,
) -> None:
    """Write a whole checkpoint to `directory`, from the main process; it appears there only when it is complete."""
    with written_aside(directory) as aside:
        model.save_pretrained(aside)
        feature_extractor().save_pretrained(aside)
        inside = aside / STATE_DIRECTORY
        inside.mkdir()
        torch.save(optimizer.state_dict(), inside / "optimizer.pt")
        if teacher is not None:
            save_file({k: v.contiguous() for k, v in teacher.state_dict().items()}, inside / "teacher.safetensors")
        if scaler is not None:
            torch.save(scaler.state_dict(), inside / "scaler.pt")
        (inside / "loop.json").write_text(json.dumps(asdict(state), indent=1))
        (inside / "arguments.json").write_text(json.dumps(arguments, indent=1))
        for rng in directory.parent.glob(f".{directory.name}.rng-*.pt"):
            rng.rename(inside / rng.name.removeprefix(f".{directory.name}."))


def save_random_state(directory: Path, rank: int) -> None:
    """Leave this rank's random state where `save_checkpoint` (after a barrier) picks it up."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    torch.save(state, directory.parent / f".{directory.name}.rng-{rank}.pt")


def load_random_state(directory: Path, rank: int) -> bool:
    """Restore this rank's random state; returns whether the checkpoint had one (it was written with as many ranks)."""
    path = directory / STATE_DIRECTORY / f"rng-{rank}.pt"
    if not path.is_file():
        return False
    state = torch.load(path, weights_only=True)
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    return True


def load_loop_state(directory: Path) -> LoopState:
    """The loop state of a checkpoint. Raises a ValueError where the directory is no training checkpoint."""
    path = directory / STATE_DIRECTORY / "loop.json"
    if not path.is_file():
        raise ValueError(
            f"{directory} is not a training checkpoint (no {STATE_DIRECTORY}/loop.json): to start a new run from its"
            " weights, give it as `initial_checkpoint`."
        )
    return LoopState(**json.loads(path.read_text()))


def has_teacher(directory: Path) -> bool:
    """Whether the checkpoint was written in phase 2."""
    return (directory / STATE_DIRECTORY / "teacher.safetensors").is_file()


def load_teacher(directory: Path, teacher: torch.nn.Module) -> None:
    """Fill in the EMA encoder's weights."""
    teacher.load_state_dict(load_file(directory / STATE_DIRECTORY / "teacher.safetensors"))


def load_optimizer(directory: Path, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> None:
    """Fill in the state of the optimizer and, under fp16, of the gradient scaler."""
    inside = directory / STATE_DIRECTORY
    optimizer.load_state_dict(torch.load(inside / "optimizer.pt", map_location="cpu", weights_only=True))
    if scaler is not None and (inside / "scaler.pt").is_file():
        scaler.load_state_dict(torch.load(inside / "scaler.pt", weights_only=True))


def checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def find_checkpoint(output_dir: Path, asked: str) -> Path:
    """The checkpoint to resume from: a path, or `"latest"` in `output_dir`. Raises a ValueError if there is none."""
    if asked != "latest":
        if not Path(asked).is_dir():
            raise ValueError(f"`resume_from_checkpoint` names {asked}, which is not a directory.")
        return Path(asked)
    found = checkpoints(output_dir)
    if not found:
        raise ValueError(f"There is no checkpoint in {output_dir} to resume from: start without resuming.")
    return found[-1]


def prune_checkpoints(output_dir: Path, keep: int | None) -> None:
    """Delete all but the newest `keep` checkpoints."""
    if keep is not None:
        for path in checkpoints(output_dir)[: -keep or None]:
            shutil.rmtree(path)
