"""Checkpoints: a directory that `from_pretrained` opens, with the training state beside the weights.

A checkpoint is written under another name and renamed when it is whole. Nothing in it is a pickle that could run code:
weights are safetensors, tensors of the optimizer are read with `weights_only=True`, the rest is JSON.
"""

import hashlib
import json
import logging
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file

from sjepa_hf import SJepaForPreTraining
from sjepa_hf.model_card import RECORD
from sjepa_hf.saving import feature_extractor, written_aside


logger = logging.getLogger(__name__)

STATE_DIRECTORY = "training_state"
FINAL = "final"  # directory of a run's result
FILES = "files.json"
ARGUMENTS = "arguments.json"
VERSION = 2  # from this one on, layers are numbered as in `hidden_states`; before, one lower
ABANDONED = ".abandoned"  # ending of checkpoints that a run has gone back behind


@dataclass
class LoopState:
    """
    Everything that changes over a run and is not a tensor.

    Args:
        step (`int`): optimizer steps taken.
        seconds (`float`): audio seen over all ranks, in seconds.
        seconds_taken (`float`): time that the run has taken, in seconds, without those between it and its resumption.
        samples_padded (`int`), samples_real (`int`): samples in all batches of the first rank so far, with and without
            padding.
        active_layer (`int`): layer that phase 2 reads, numbered as in `hidden_states`.
        layer_scores (`list[float]`): smoothed effective rank of each layer, 0 first.
        reseeded_components (`int`): dead components that were seeded anew.
        skipped_steps (`int`): steps without an update because the gradient was NaN or infinite.
        clips_seen (`int`), clips_skipped (`dict[str, int]`): clips of all ranks, and the unusable ones by reason.
        processes (`int`), accumulation (`int`): ranks, and micro-batches of each in a step.
        data (`dict`): a `DataPosition`.
        version (`int`): of the meaning of all this.
    """

    step: int = 0
    seconds: float = 0.0
    seconds_taken: float = 0.0
    samples_padded: int = 0
    samples_real: int = 0
    active_layer: int = 0
    layer_scores: list[float] = field(default_factory=list)
    reseeded_components: int = 0
    skipped_steps: int = 0
    clips_seen: int = 0
    clips_skipped: dict[str, int] = field(default_factory=dict)
    processes: int = 1
    accumulation: int = 1
    data: dict = field(default_factory=dict)
    version: int = VERSION


def save_checkpoint(
    directory: Path,
    model: SJepaForPreTraining,
    online: dict[str, torch.nn.Module],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    random_states: list[dict[str, torch.Tensor]],
    state: LoopState,
    arguments: dict,
) -> None:
    """
    Write a whole checkpoint to `directory`, from the main process; it appears there only when it is complete. The
    size and SHA-256 of every file stand in `training_state/files.json`. `online` names the modules of phase 2.
    """
    with written_aside(directory) as aside:
        model.save_pretrained(aside)
        feature_extractor().save_pretrained(aside)
        inside = aside / STATE_DIRECTORY
        inside.mkdir()
        torch.save(optimizer.state_dict(), inside / "optimizer.pt")
        for name, module in online.items():
            save_file({k: v.contiguous() for k, v in module.state_dict().items()}, inside / f"{name}.safetensors")
        if scaler is not None:
            torch.save(scaler.state_dict(), inside / "scaler.pt")
        states = {f"{rank}.{name}": value for rank, own in enumerate(random_states) for name, value in own.items()}
        save_file(states, inside / "random_states.safetensors")
        (inside / "loop.json").write_text(json.dumps(asdict(state), indent=1))
        (inside / ARGUMENTS).write_text(json.dumps(arguments, indent=1))
        found = {
            str(path.relative_to(aside)): fingerprint(path) for path in sorted(aside.rglob("*")) if path.is_file()
        }
        (inside / FILES).write_text(json.dumps(found, indent=1))


def fingerprint(path: Path) -> list:
    """Size in bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def damage(directory: Path) -> str | None:
    """What is wrong with the files of a checkpoint, in a few words; None if all are as they were written."""
    listed = directory / STATE_DIRECTORY / FILES
    if not listed.is_file():
        return f"it has no {STATE_DIRECTORY}/{FILES}"
    try:
        expected = json.loads(listed.read_text())
    except json.JSONDecodeError:
        return f"{STATE_DIRECTORY}/{FILES} is torn"
    for name, (size, digest) in expected.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if fingerprint(path)[1] != digest:
            return f"{name} is not what was written"
    return None


def random_state() -> dict[str, torch.Tensor]:
    """This rank's random state."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def load_random_state(directory: Path, rank: int) -> bool:
    """Restore this rank's random state; returns whether the checkpoint had one (it was written with as many ranks)."""
    states = load_file(directory / STATE_DIRECTORY / "random_states.safetensors")
    if f"{rank}.cpu" not in states:
        return False
    torch.set_rng_state(states[f"{rank}.cpu"])
    if f"{rank}.cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[f"{rank}.cuda"])
    return True


def load_loop_state(directory: Path) -> LoopState:
    """The loop state of a checkpoint. Raises a ValueError where the directory is no training checkpoint."""
    path = directory / STATE_DIRECTORY / "loop.json"
    if not path.is_file():
        raise ValueError(
            f"{directory} is not a training checkpoint (no {STATE_DIRECTORY}/loop.json): to start a new run from its"
            " weights, give it as `initial_checkpoint`."
        )
    values = json.loads(path.read_text())
    if values.get("version") != VERSION:
        raise ValueError(
            f"{directory} was written by an earlier version, which numbered layers from 0 = the output of the first"
            " (`start_layer`, `target_layers`); now they are numbered as in `hidden_states`, one higher. Finish the"
            " run with that version, or start a new one from its weights: --initial_checkpoint."
        )
    return LoopState(**values)


def has_teacher(directory: Path) -> bool:
    """Whether the checkpoint was written in phase 2."""
    return (directory / STATE_DIRECTORY / "teacher.safetensors").is_file()


def load_online(directory: Path, online: dict[str, torch.nn.Module]) -> None:
    """Fill in the modules of phase 2: the EMA encoder and the principal components of its features."""
    for name, module in online.items():
        module.load_state_dict(load_file(directory / STATE_DIRECTORY / f"{name}.safetensors"))


def load_optimizer(directory: Path, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> None:
    """Fill in the state of the optimizer and, under fp16, of the gradient scaler."""
    inside = directory / STATE_DIRECTORY
    optimizer.load_state_dict(torch.load(inside / "optimizer.pt", map_location="cpu", weights_only=True))
    if scaler is not None and (inside / "scaler.pt").is_file():
        scaler.load_state_dict(torch.load(inside / "scaler.pt", weights_only=True))


def checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.split("-")[1])


def claim(output_dir: Path, lock: FileLock, resuming: bool, dry_run: bool = False) -> None:
    """
    Make an output directory and lock it for this run alone; `dry_run` only looks whether an earlier run lies there.

    Raises:
        ValueError: if it cannot be written to, another run holds it, or a new run would mix with an earlier one.
    """
    try:
        if not dry_run:
            output_dir.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"`output_dir` {output_dir} belongs to a run that is still going.") from None
    except OSError as error:
        raise ValueError(f"`output_dir` {output_dir} cannot be written to: {error}.") from None
    if not resuming and (checkpoints(output_dir) or (output_dir / FINAL / RECORD).exists()):
        lock.release()
        raise ValueError(
            f"`output_dir` {output_dir} holds an earlier run: name another directory, or go on from its checkpoints"
            " (if there are any) with --resume_from_checkpoint latest."
        )


def find_for_all(output_dir: Path, asked: str, accelerator: Accelerator) -> Path | None:
    """`find_checkpoint` on the main process, its answer (or its error) on all."""
    answer = [None, None]
    if accelerator.is_main_process:
        try:
            answer[0] = find_checkpoint(output_dir, asked)
        except ValueError as error:
            answer[1] = str(error)
    broadcast_object_list(answer)
    if answer[1]:
        raise ValueError(answer[1])
    return answer[0]


def find_checkpoint(output_dir: Path, asked: str) -> Path | None:
    """
    The checkpoint to resume from: a path, `"latest"` in `output_dir`, or with `"auto"` the latest if there is any. Of
    those in `output_dir` the newest whole one; torn ones are named and passed over.

    Raises:
        ValueError: if there is none, or the one that is named is damaged.
    """
    if asked not in ("latest", "auto"):
        if not Path(asked).is_dir():
            raise ValueError(f"`resume_from_checkpoint` names {asked}, which is not a directory.")
        load_loop_state(Path(asked))
        if problem := damage(Path(asked)):
            raise ValueError(f"`resume_from_checkpoint` {asked} is damaged: {problem}. Take an earlier one.")
        return Path(asked)
    found = checkpoints(output_dir)
    for path in reversed(found):
        problem = damage(path)
        if problem is None:
            return path
        logger.warning("%s is damaged and passed over: %s.", path, problem)
    if asked == "auto" and not found:
        return None
    raise ValueError(f"There is no whole checkpoint in {output_dir} to resume from: start without resuming.")


def prune_checkpoints(output_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints; 0 keeps all."""
    if keep:
        for path in checkpoints(output_dir)[:-keep]:
            shutil.rmtree(path)


def set_aside_after(output_dir: Path, step: int) -> None:
    """
    Rename checkpoints beyond `step` to `checkpoint-STEP.abandoned`: a run that goes on from an earlier step would
    otherwise be resumed from them, and have its own deleted as the older ones.
    """
    for path in checkpoints(output_dir):
        if step_of(path) > step:
            aside = path.with_name(path.name + ABANDONED)
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            logger.warning("%s lies beyond step %d, from which this run goes on: it is now %s.", path, step, aside)


def check_same_targets(directory: Path, settings: dict, phase: int) -> None:
    """
    Raise a ValueError where a checkpoint's mixture would meet other features than it was fitted to.

    Args:
        directory: the checkpoint.
        settings: of the run that goes on from it (`Arguments.to_dict`).
        phase: 1 or 2, in which it goes on.
    """
    path, in_phase_2 = directory / STATE_DIRECTORY / ARGUMENTS, has_teacher(directory)
    if in_phase_2 and phase == 1:
        raise ValueError(
            f"`phase1_steps` is {settings['phase1_steps']}, but {directory} is of phase 2: leave it as it was."
        )
    names = ["phase1_features", "phase1_components"] if phase == 1 else []
    if in_phase_2:
        names = ["phase2_components", "target_layers", "target_instance_norm", "target_dims"]
    before = json.loads(path.read_text())
    keeps, kept = (max(each["frozen_weight"], each["frozen_weight_end"]) > 0 for each in (settings, before))
    if phase == 2 and keeps:
        names.append("phase1_features")
    if in_phase_2 and keeps and not kept:
        raise ValueError(f"`frozen_weight` is above 0, but {directory} has not kept the mixture of phase 1.")
    for name in names:
        if name in before and before[name] != settings[name]:
            raise ValueError(
                f"`{name}` is {settings[name]!r}, but the mixture of {directory} was fitted with {before[name]!r}:"
                " go on with that, or start a new run from its weights with `initial_checkpoint`."
            )
