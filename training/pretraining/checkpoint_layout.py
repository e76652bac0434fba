"""Checkpoint layout: a directory that `from_pretrained` opens, with the training state beside the weights.

A checkpoint is written under another name and renamed when it is whole. Nothing in it is a pickle that could run code:
weights are safetensors, tensors of the optimizer are read with `weights_only=True`, the rest is JSON.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath

import torch
from safetensors.torch import load_file, save_file

from sjepa_hf import SJepaForPreTraining
from sjepa_hf.command import first_line
from sjepa_hf.contents import read_json
from sjepa_hf.feature_extraction import feature_extractor
from sjepa_hf.saving import written_aside
from training.data.order import DataPosition


STATE_DIRECTORY = "training_state"
EXTRACTOR = "preprocessor_config.json"
FILES = "files.json"
LOOP = "loop.json"
ARGUMENTS = "arguments.json"
OPTIMIZER = "optimizer.pt"
RANDOM_STATES = "random_states.safetensors"
VERSION = 2  # of what stands in the loop state; raised where an older one means something else
# What every checkpoint has, and what else of it is read.
REQUIRED = ["config.json", *(f"{STATE_DIRECTORY}/{name}" for name in (LOOP, ARGUMENTS, OPTIMIZER, RANDOM_STATES))]
READ = ("*.safetensors", "*.safetensors.index.json", f"{STATE_DIRECTORY}/*")


@dataclass
class LoopState:
    """
    Everything that changes over a run and is not a tensor.

    Args:
        step (`int`): optimizer steps taken.
        seconds (`float`): audio heard by all processes, in seconds.
        seconds_taken (`float`): time that the run has taken, in seconds, without those between it and its resumption.
        samples_padded (`int`), samples_real (`int`): samples in all batches so far, with and without padding.
        active_layer (`int`): layer that phase 2 reads, numbered as in `hidden_states`.
        layer_scores (`list[float]`): smoothed effective rank of each layer, 0 first.
        reseeded_components (`int`): dead components that were seeded anew.
        skipped_steps (`int`): steps without an update because the gradient was NaN or infinite.
        clips_seen (`int`), clips_skipped (`dict[str, int]`): clips of all processes, and the unusable ones by reason.
        loss_sums (`dict[str, list[float]]`): sum and number of each part of the loss since the last line of metrics.
        seeding_due (`bool`): whether the online mixture has yet to be seeded on the layer that has become active.
        processes (`int`), accumulation (`int`): how many there are, and micro-batches of each in a step.
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
    loss_sums: dict[str, list[float]] = field(default_factory=dict)
    seeding_due: bool = False
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
        if not (aside / EXTRACTOR).exists():  # an encoder of another kind has saved its own
            feature_extractor().save_pretrained(aside)
        inside = aside / STATE_DIRECTORY
        inside.mkdir()
        torch.save(optimizer.state_dict(), inside / OPTIMIZER)
        for name, module in online.items():
            save_file({k: v.contiguous() for k, v in module.state_dict().items()}, inside / f"{name}.safetensors")
        if scaler is not None:
            torch.save(scaler.state_dict(), inside / "scaler.pt")
        states = {f"{index}.{name}": value for index, own in enumerate(random_states) for name, value in own.items()}
        save_file(states, inside / RANDOM_STATES)
        (inside / LOOP).write_text(json.dumps(asdict(state), indent=1))
        (inside / ARGUMENTS).write_text(json.dumps(arguments, indent=1))
        (inside / FILES).write_text(json.dumps(fingerprints(aside), indent=1))


def fingerprints(directory: Path) -> dict[str, list]:
    """[`fingerprint`] of each file below a directory, by its name there, with `/` on every system."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {path.relative_to(directory).as_posix(): fingerprint(path) for path in files}


def fingerprint(path: Path) -> list:
    """Size in bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def damage(directory: Path) -> str | None:
    """
    What is wrong with the files of a checkpoint, in a few words; None if all are as they were written. Nothing else of
    a checkpoint is to be read before this.
    """
    try:
        expected = read_json(directory / STATE_DIRECTORY / FILES)
        named = {directory / name: name for name in expected}
        present = [path for pattern in READ for path in sorted(directory.glob(pattern)) if path.name != FILES]
    except FileNotFoundError:
        return f"it has no {STATE_DIRECTORY}/{FILES}"
    except (ValueError, OSError) as error:
        return f"{STATE_DIRECTORY}/{FILES} is torn ({first_line(error).rstrip('.')})"
    for name, found in expected.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            return f"{STATE_DIRECTORY}/{FILES} names {name!r}, which lies elsewhere"
        if not (isinstance(found, list) and [type(part) for part in found] == [int, str]):
            return f"{STATE_DIRECTORY}/{FILES} is torn (what it says of {name!r})"
    for name in REQUIRED:
        if name not in expected:
            return f"{STATE_DIRECTORY}/{FILES} does not name {name}"
    if not any(name.endswith(".safetensors") and "/" not in name for name in expected):
        return f"{STATE_DIRECTORY}/{FILES} names no weights"
    for path in present:
        if path not in named and not path.name.startswith("."):
            return f"{path.relative_to(directory)} does not belong to it"
    for name, (size, digest) in expected.items():
        path = directory / name
        try:
            if not path.is_file():
                return f"{name!r} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
            if fingerprint(path)[1] != digest:
                return f"{name} is not what was written"
        except (OSError, ValueError) as error:  # ValueError: no such name can be
            return f"{name!r} cannot be read ({first_line(error)})"
    return None


@contextmanager
def restoring(directory: Path, what: str) -> Iterator[None]:
    """Turn whatever keeps a part of a checkpoint from being restored into a ValueError that names both."""
    try:
        yield
    except Exception as error:  # of any library that reads or takes it
        why = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(
            f"The {what} of {directory} cannot be restored ({why}): take an earlier checkpoint."
        ) from error


def random_state() -> dict[str, torch.Tensor]:
    """This process's random state."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def load_random_state(directory: Path, process_index: int) -> bool:
    """Restore the checkpoint's random state of a process. Returns False where it was written by fewer processes."""
    with restoring(directory, "random state"):
        states = load_file(directory / STATE_DIRECTORY / RANDOM_STATES)
        if f"{process_index}.cpu" not in states:
            return False
        torch.set_rng_state(states[f"{process_index}.cpu"])
        if f"{process_index}.cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states[f"{process_index}.cuda"])
    return True


def load_loop_state(directory: Path) -> LoopState:
    """
    The loop state of a checkpoint that has it: [`damage`] says where it is absent.

    Raises:
        ValueError: where it is of another version.
    """
    path = directory / STATE_DIRECTORY / LOOP
    found, known = read_json(path), {field.name for field in fields(LoopState)}
    differs = None
    if wrong := sorted(found.keys() ^ known):
        differs = f"{'holds' if wrong[0] in found else 'lacks'} `{wrong[0]}`"
    elif found["version"] != VERSION:
        differs = f"has `version` {found['version']!r}, not {VERSION}"
    if differs:
        raise ValueError(
            f"{path} {differs}: it was written by another version, with which to go on; or start a new run from its"
            " weights with `initial_checkpoint`."
        )
    with restoring(directory, "loop state"):
        state = LoopState(**found)
        for each in fields(LoopState):
            if type(default := getattr(LoopState(), each.name)) is not type(value := getattr(state, each.name)):
                if not (isinstance(default, float) and type(value) is int):
                    raise TypeError(f"`{each.name}` is {value!r}")
        DataPosition.from_dict(state.data)
    return state


def load_arguments(directory: Path) -> dict:
    """The settings that a checkpoint was written with, flat. Raises a ValueError where they cannot be read."""
    return read_json(directory / STATE_DIRECTORY / ARGUMENTS)


def has_teacher(directory: Path) -> bool:
    """Whether the checkpoint was written in phase 2."""
    return (directory / STATE_DIRECTORY / "teacher.safetensors").is_file()


def load_online(directory: Path, online: dict[str, torch.nn.Module]) -> None:
    """Fill in the modules of phase 2: the EMA encoder and the principal components of its features."""
    for name, module in online.items():
        with restoring(directory, name):
            module.load_state_dict(load_file(directory / STATE_DIRECTORY / f"{name}.safetensors"))


def load_optimizer(
    directory: Path, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None
) -> None:
    """Restore the optimizer but for its settings, and the gradient scaler where there is one."""
    inside = directory / STATE_DIRECTORY
    settings = {name: optimizer.param_groups[0][name] for name in ("betas", "weight_decay")}
    with restoring(directory, "optimizer"):
        optimizer.load_state_dict(torch.load(inside / OPTIMIZER, map_location="cpu", weights_only=True))
        optimizer.param_groups[0].update(settings)
        if scaler is not None and (inside / "scaler.pt").is_file():
            scaler.load_state_dict(torch.load(inside / "scaler.pt", weights_only=True))
