"""Resampling from any rate to 16 kHz, in PyTorch alone."""

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .frames import SAMPLING_RATE


ZERO_CROSSINGS = 6  # of the sinc, on each side of an output sample
PIECE = 1 << 22  # samples that are resampled at a time: memory does not grow with the clip
ROLLOFF = 0.99  # cut-off, as a share of the lower of the two Nyquist frequencies


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Resample to 16 kHz with a sinc under a Hann window.

    The values are those of `torchaudio.functional.resample` with its defaults. torchaudio itself is not imported: the
    builds of it that PyPI has end with an error beside a CPU build of torch.

    Args:
        samples: `(num_samples,)` in float32.
        rate: their sampling rate in Hz. One without a large common divisor with 16000 would need a huge filter: the
            nearest ratio with at most 640 phases is taken, off by less than 1 in 1000.

    Returns:
        `(ceil(num_samples * 16000 / rate),)` in float32; `samples` itself where nothing is to be done.
    """
    ratio = Fraction(rate, SAMPLING_RATE).limit_denominator(640)
    if ratio == 1:
        return samples
    step, phases = ratio.numerator, ratio.denominator  # every `step` samples become `phases`
    _, reach = _filters(step, phases)
    piece, margin = (-(-size // step) * step for size in (PIECE, reach))
    found = []
    for start in range(0, max(len(samples), 1), piece):
        before = min(start, margin)
        part = _resampled(samples[start - before : start + piece + margin], step, phases)
        found.append(part[before // step * phases :][: piece // step * phases])
    return found[0] if len(found) == 1 else np.concatenate(found)


def _resampled(samples: np.ndarray, step: int, phases: int) -> np.ndarray:
    filters, reach = _filters(step, phases)
    with torch.no_grad():
        signal = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
        signal = torch.nn.functional.pad(signal, (reach, reach + step))[None]
        resampled = torch.nn.functional.conv1d(signal, filters[:, None], stride=step)  # [phases, blocks]
        return resampled.T.flatten()[: math.ceil(len(samples) * phases / step)].numpy()


@lru_cache(maxsize=16)
def _filters(step: int, phases: int) -> tuple[Tensor, int]:
    """A filter for each phase `(phases, 2 * reach + step)`, and how many samples it reaches back."""
    cutoff = ROLLOFF * min(1.0, phases / step)  # zero crossings per input sample
    reach = math.ceil(ZERO_CROSSINGS / cutoff)
    places = torch.arange(phases, dtype=torch.float64)[:, None] * step / phases  # of the output samples
    distance = torch.arange(-reach, reach + step, dtype=torch.float64) - places
    crossings = (cutoff * distance).clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = torch.cos(math.pi / 2 * crossings / ZERO_CROSSINGS).square()
    return (cutoff * torch.sinc(crossings) * window).float(), reach
