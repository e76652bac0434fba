"""Run record: what a run leaves beside the weights for whoever asks later, the model card first (training.json)."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from accelerate import Accelerator

from sjepa_hf.contents import RECORD, reduce_paths
from sjepa_hf.saving import write_text_aside


# Of this machine rather than of the run.
LEFT_OUT = "output_dir train_data resume_from_checkpoint initial_checkpoint report_to num_workers".split()
LEFT_OUT += (
    "logging_steps save_steps save_total_limit push_to_hub hub_model_id hub_private_repo hub_strategy dry_run".split()
)
PACKAGES = ("sjepa_hf", "torch", "transformers", "accelerate")


def write_record(directory: Path, accelerator: Accelerator, **facts) -> None:
    """
    Write training.json: `facts` of the run, and the hardware and software that it ran on. It is meant to be shown to
    others: settings that are unset or tell of this machine alone are left out, and paths are reduced to names.
    """
    settings = {name: value for name, value in facts["settings"].items() if value is not None and name not in LEFT_OUT}
    found = reduce_paths(facts | {"settings": settings}) | {"hardware": hardware(accelerator), "software": software()}
    write_text_aside(directory / RECORD, json.dumps(found, indent=1, ensure_ascii=False, default=str) + "\n")


def base_of(checkpoint: str | None) -> dict[str, str | None]:
    """What a record says of the checkpoint that a run began with; a directory goes by its last two names."""
    if checkpoint is None:
        return {}
    base = Path(checkpoint)
    parts = (
        base.parts[-1:] if base.parent == Path.home() else base.parts[-2:]
    )  # the home directory has the user's name
    return {"base_model": None if base.is_dir() else checkpoint, "base_checkpoint": "/".join(parts).strip("/")}


def hardware(accelerator: Accelerator) -> str:
    """The devices of a run in words."""
    count = accelerator.num_processes
    if accelerator.device.type == "cuda":
        return f"{count} x {torch.cuda.get_device_name(accelerator.device)}"
    if accelerator.device.type == "mps":
        return f"an Apple GPU (mps), {processor()}"
    return f"{count} process{'es' * (count > 1)} of {torch.get_num_threads()} CPU thread(s), {processor()}"


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def software() -> dict[str, str]:
    """Versions of what matters."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from the source tree
            continue
    return found
