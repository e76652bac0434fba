"""Saving: a checkpoint that all processes write together is there whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator

from sjepa_hf.saving import ASIDE, named_in_errors, remove, written_aside
from training.common.processes import all_or_none


FAILING = "cannot save"


@contextmanager
def written_together(directory: Path, accelerator: Accelerator, first: bool) -> Iterator[Path]:
    """
    Write a checkpoint under another name, which no one takes for a checkpoint, and give it its own once the part of
    every process is whole; one that is there already stays until then. Every process must come here.

    Args:
        directory: the checkpoint.
        accelerator: the processes.
        first: whether this process makes the directory, and renames it.

    Yields:
        `Path` of a directory to write into; it is gone if the block raises in any process.

    Raises:
        OSError: in a process whose part cannot be written; it names the path. In the others then a UserError.
    """
    aside = directory.with_name(ASIDE + directory.name)  # the same in all processes
    try:
        with all_or_none(accelerator, FAILING), named_in_errors(directory):
            if first:
                remove(aside)
                aside.mkdir(parents=True)
        with all_or_none(accelerator, FAILING), named_in_errors(directory):
            yield aside
        with all_or_none(accelerator, FAILING):
            if first:
                with written_aside(directory) as place:
                    place.rmdir()
                    aside.rename(place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
