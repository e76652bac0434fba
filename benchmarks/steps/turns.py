"""Turns at the clock: what is compared runs by turns in one process, so that other work there slows all alike."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def take_turns(
    runs: dict[str, Callable[[], object]], turns: int, device: torch.device, runs_per_turn: int = 1
) -> dict[str, list[float]]:
    """Seconds of a run of each, one entry a turn; the device is waited for before a turn and at its end."""
    seconds = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            wait_for(device)
            start = time.perf_counter()
            for _ in range(runs_per_turn):
                run()
            wait_for(device)
            seconds[name].append((time.perf_counter() - start) / runs_per_turn)
    return seconds


def ratio(seconds: Sequence[float], baseline: Sequence[float]) -> str:
    """A row's time by the first row's, turn by turn: the median and, in brackets, the range."""
    ratios = [own / other for own, other in zip(seconds, baseline, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
