"""Device: where a command computes when nobody says."""

import torch


def default_device() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
