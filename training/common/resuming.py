"""Resuming: what `resume_from_checkpoint` takes, alike in pretraining and in fine-tuning."""

from pathlib import Path


LATEST = "latest"  # the newest whole checkpoint of `output_dir`, which there has to be
AUTO = "auto"  # the same, or a run that begins where there is none
NEWEST = (LATEST, AUTO)


def named_checkpoint(asked: str) -> Path:
    """The directory that is asked for by its name. Raises a ValueError if there is no such one."""
    if not asked or not Path(asked).is_dir():  # an empty path would be the working directory
        raise ValueError(
            f"`resume_from_checkpoint` '{asked}' is not a directory: name a checkpoint, or give {LATEST} (the newest"
            f" of `output_dir`) or {AUTO} (the same, or begin where there is none)."
        )
    return Path(asked)
