"""What would take much of the time of every small run, and hardly any test looks at."""

import base64
import os
from pathlib import Path

import torch
from matplotlib.figure import Figure


PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
)

draw = Figure.savefig


def save_blank(figure: Figure, path, **settings) -> None:
    """In place of `Figure.savefig`: a file of one pixel for a path that ends in .png, else the picture."""
    if isinstance(path, str | Path) and Path(path).suffix == ".png":
        Path(path).write_bytes(PIXEL)
    else:
        draw(figure, path, **settings)


def take() -> None:
    """In this process, and those forked from it: pictures are blank, and nobody waits for disks or dead workers."""
    Figure.savefig = save_blank
    os.fsync = lambda file: None  # no power is cut
    # A `DataLoader` looks for workers that have died, and waits for those that end, 5 s at a time otherwise.
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.5
    torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data.__defaults__ = (0.5,)
