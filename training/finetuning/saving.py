"""Saving: a checkpoint that all processes write together is there whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator

from sjepa_hf.saving import INCOMPLETE, named_in_errors, remove, written_aside
from training.common.output_directory import room_in
from training.common.processes import all_or_none


FAILING = "cannot save"
TORCH_WRITER = "inline_container"  # in what `torch.save` says where a write fails: a RuntimeError that names no file


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
    aside = directory.with_name(f".{directory.name}{INCOMPLETE}")
    try:
        with all_or_none(accelerator, FAILING), named_in_errors(directory):
            if first:
                remove(aside)
                aside.mkdir(parents=True)
        with all_or_none(accelerator, FAILING), torch_errors_named(directory):
            yield aside
        with all_or_none(accelerator, FAILING):
            if first:
                with written_aside(directory) as place:
                    place.rmdir()
                    aside.rename(place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def torch_errors_named(path: Path) -> Iterator[None]:
    """`named_in_errors`, where `torch.save` writes too."""
    with named_in_errors(path):
        try:
            yield
        except RuntimeError as error:
            if TORCH_WRITER not in str(error):
                raise
            raise OSError(f"torch.save broke off, {room_in(path.parent)}") from error
