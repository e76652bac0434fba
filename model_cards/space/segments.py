"""Segments of a unit: where it stands, in a clip or in a corpus, and all of them as one sound."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sjepa_hf.frames import SAMPLING_RATE
from sjepa_hf.units import UnitRun


MOST = 8  # segments that are played
AROUND = 0.05  # seconds that are heard before and after a segment: 20 ms alone are a click
LONGEST = 1.0  # seconds of a segment that are heard, pauses being long
FADE, SILENCE = 0.01, 0.25  # seconds: at both ends of what is heard, and between two segments


class Segment(NamedTuple):
    """A run of a unit: the clip's name, seconds from its start, how many, and samples `(num_samples,)` of it."""

    name: str
    start: float
    seconds: float
    samples: np.ndarray


def cut(name: str, samples: np.ndarray, start: float, seconds: float) -> Segment:
    """A segment of a clip's samples `(num_samples,)`, with what is heard around it, faded in and out."""
    first = max(0, round((start - AROUND) * SAMPLING_RATE))
    last = round((start + min(seconds, LONGEST) + AROUND) * SAMPLING_RATE)
    heard = samples[first:last].copy()
    ramp = np.linspace(0, 1, round(FADE * SAMPLING_RATE), dtype=np.float32)[: len(heard) // 2]
    heard[: len(ramp)] *= ramp
    heard[len(heard) - len(ramp) :] *= ramp[::-1]
    return Segment(name, start, seconds, heard)


def other_segments(name: str, samples: np.ndarray, runs: Sequence[UnitRun], unit: int, start: float) -> list[Segment]:
    """
    The longest other runs of a unit in the clip itself, in their order.

    Args:
        name, samples: of the clip.
        runs: all of its runs.
        unit, start: which run is at hand.
    """
    others = [run for run in runs if run.unit == unit and abs(run.start - start) > 1e-3]
    longest = sorted(others, key=lambda run: -run.duration)[:MOST]
    return [cut(name, samples, run.start, run.duration) for run in sorted(longest, key=lambda run: run.start)]


def joined(segments: Sequence[Segment]) -> tuple[np.ndarray, list[float]]:
    """All segments one after another with silence between, `(num_samples,)`, and where each begins, in seconds."""
    silence, parts, starts, total = np.zeros(round(SILENCE * SAMPLING_RATE), np.float32), [], [], 0
    for segment in segments:
        starts.append(total / SAMPLING_RATE)
        parts += [segment.samples, silence]
        total += len(segment.samples) + len(silence)
    return np.concatenate(parts), starts
