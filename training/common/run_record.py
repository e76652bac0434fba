"""Run record: what a run leaves beside the weights for whoever asks later, the model card first (training.json)."""

import json
import logging
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from accelerate import Accelerator

from sjepa_hf.command import first_line
from sjepa_hf.contents import RECORD, read_json, reduce_paths
from sjepa_hf.facts import Facts
from sjepa_hf.opening import file_of, is_path
from sjepa_hf.saving import write_text_aside


logger = logging.getLogger(__name__)

# Of this machine rather than of the run.
LEFT_OUT = (
    "output_dir",
    "train_data",
    "resume_from_checkpoint",
    "initial_checkpoint",
    "report_to",
    "num_workers",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "hub_strategy",
    "dry_run",
)
# Of a base's record, in that of what was made of it.
CARRIED = "kind base_model base_checkpoint from_scratch data steps hours_heard base".split()
FACTS = "facts.yaml"
PACKAGES = ("sjepa_hf", "torch", "transformers", "accelerate")


def write_record(directory: Path, accelerator: Accelerator, **facts) -> None:
    """
    Write training.json: `facts` of the run, and the hardware and software that it ran on. It is meant to be shown to
    others: settings that are unset or tell of this machine alone are left out, and paths are reduced to names.
    """
    settings = {name: value for name, value in facts["settings"].items() if value is not None and name not in LEFT_OUT}
    found = reduce_paths(facts | {"settings": settings}) | {"hardware": hardware(accelerator), "software": software()}
    text = json.dumps(found, indent=1, ensure_ascii=False, default=str)
    write_text_aside(directory / RECORD, text + "\n")


def base_of(checkpoint: str | None) -> dict[str, str | dict | None]:
    """
    What a record says of the checkpoint that a run began with: `base_model`, its name on the Hub; `base_checkpoint`,
    that or the last two names of a directory; and `base`, what is known of how it came about, with its own base.
    """
    if checkpoint is None:
        return {}
    base = Path(checkpoint)
    names = [name for name in base.parts if name not in (base.anchor, "..", "~")]
    names = names[-1:] if base.resolve().parent == Path.home() else names[-2:]  # home has the user's name
    local = base.is_dir() or is_path(checkpoint)
    known = history(checkpoint) if base.is_dir() or not local else {}
    return {
        "base_model": None if local else checkpoint,
        "base_checkpoint": "/".join(names),
        **({"base": known} if known else {}),
    }


def history(checkpoint: str) -> dict:
    """What its record, and the facts beside it, tell of all that a checkpoint has heard; empty without them."""
    found, here = {}, Path(checkpoint).is_dir()
    try:
        if (path := file_of(checkpoint, RECORD)) is not None:
            record = read_json(path)
            found = {name: record[name] for name in CARRIED if record.get(name) is not None}
    except (ValueError, OSError) as error:  # whatever the Hub answers: the run is done, and its result counts
        level = logging.WARNING if here else logging.INFO
        logger.log(level, "What %s has heard is not known: %s", checkpoint, first_line(error))
    try:
        if here and (path := Path(checkpoint) / FACTS).is_file():
            facts = Facts.read(path)
            told = {"data": facts.data, "license": facts.license, "datasets": facts.datasets}
            found["facts"] = {name: value for name, value in told.items() if value}
    except ValueError as error:
        logger.warning("%s", error)
    return found


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
