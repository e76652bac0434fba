"""Alignment: phones of a clip in time, and the frames of an encoder (25 ms every 20 ms) in whose centres they lie."""

from collections.abc import Sequence

import numpy as np

from sjepa_hf.frames import SAMPLING_RATE, frame_centres
from training.data.labelled import LabelledClips


def read_alignment(clips: LabelledClips, clip: int) -> tuple[list[str], np.ndarray]:
    """
    Phones of a clip and their ends in seconds, from its labels `phones` and `phone_ends`.

    Raises:
        ValueError: if there are not as many ends as phones, or the ends are no numbers, or fall, or most of them
            lie beyond twice the clip's length.
    """
    phones, ends = clips.labels["phones"][clip].split(), clips.labels["phone_ends"][clip].split()
    if len(phones) != len(ends):
        raise ValueError(
            f"{clips.clip(clip).name} has {len(phones)} `phones` but {len(ends)} `phone_ends`: each needs its end."
        )
    try:
        ends = np.array(ends, dtype=float)
    except ValueError:
        raise ValueError(f"{clips.clip(clip).name}: `phone_ends` must be seconds, separated by spaces.") from None
    if not np.all(np.isfinite(ends)) or np.any(np.diff(ends) < 0):
        raise ValueError(
            f"{clips.clip(clip).name}: `phone_ends` must be finite and not fall; they are seconds from the clip's"
            " start."
        )
    seconds = clips.num_samples[clip] / SAMPLING_RATE
    if len(ends) and np.median(ends) > 2 * seconds:
        raise ValueError(
            f"{clips.clip(clip).name} lasts {seconds:.2f} s, but most of its `phone_ends` lie far beyond (the last is"
            f" {ends[-1]:g}): they are seconds from the clip's start; divide milliseconds by 1,000."
        )
    return phones, ends


def phones_at_frames(phones: Sequence[str], ends: np.ndarray, count: int) -> np.ndarray:
    """The phone at the centre of each of `count` frames, as far as the phones reach: strings `(<= count,)`."""
    inside = np.searchsorted(ends, frame_centres(count), side="right")
    return np.array(phones, dtype=object)[inside[inside < len(phones)]]
