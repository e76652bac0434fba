"""Noise that augmentation adds: a few crops of recordings for each batch, drawn and decoded by who reads the batch.

What is drawn depends on the seed and the place of the batch alone, so a resumed run hears the same. A recording that
cannot be used is passed over, and told once by each process that meets it.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sjepa_hf.frames import SAMPLING_RATE
from training.common.naming import printable, several
from training.data.bad_audio import NOISE, BadAudioError, counted
from training.data.coloured_noise import COLOURED, ColouredNoise
from training.data.order import ClipIndex
from training.data.sources import Source, open_source
from training.data.waveforms import BadAudio


SHORTEST = 0.1  # seconds of a crop, if the recording has them
HOPELESS = 50  # unusable recordings in a row that end the run


class Noise:
    """
    Recordings of noise, each as likely as any other.

    Args:
        sources (`list[Source]`): opened sources that can be read at any place.
        share (`float`): crops for a batch, as a share of its clips; there is at least one.

    Attributes:
        size (`int`): number of recordings.
    """

    def __init__(self, sources: list[Source], share: float):
        self.sources, self.share = sources, share
        self._index = ClipIndex(sources, None, seed=0)
        self.size = self._index.size
        self._bad: dict[int, str] = {}  # told already, and why

    @property
    def identities(self) -> list[str]:
        """Of the sources, to tell whether they have changed."""
        return [source.identity for source in self.sources]

    def __str__(self) -> str:
        recordings = f"{self.size:,} recording{'s' * (self.size > 1)}"
        return f"crops of {recordings} of {several((source.name for source in self.sources), 5)}"

    def for_batch(
        self, num_clips: int, longest: int, rng: np.random.Generator
    ) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
        """
        Draw the noise of a batch.

        Args:
            num_clips (`int`), longest (`int`): clips of the batch, and samples of the longest. No crop is longer, so
                that noise takes `share` of the memory of the batch's audio, or that of one clip.
            rng (`np.random.Generator`): source of randomness.

        Returns:
            `noise` float32 `(num_crops, num_samples)`, zero-padded, and `noise_lengths` int64 `(num_crops,)` in
            samples, as [`augment`] takes them; and name and reason of recordings found unusable.

        Raises:
            BadAudioError: if 50 in a row are.
        """
        limit = max(longest, round(SHORTEST * SAMPLING_RATE))
        crops, told, in_a_row = [], [], Counter()
        while len(crops) < max(1, round(self.share * num_clips)):
            # Two draws for each, usable or not: what comes next does not depend on what is known to be bad.
            number, seed = int(rng.integers(self.size)), int(rng.integers(2**63))
            clip = self._index.get(number)
            try:
                if number in self._bad:
                    raise BadAudio(self._bad[number])
                crops.append(clip.read(max_seconds=limit / SAMPLING_RATE, rng=np.random.default_rng(seed))[:limit])
                in_a_row.clear()
            except BadAudio as error:
                if number not in self._bad:
                    self._bad[number] = error.reason
                    told.append((clip.name, NOISE + error.reason))
                in_a_row[error.reason] += 1
                if in_a_row.total() >= HOPELESS:
                    raise BadAudioError(
                        f"`noise_data` gave nothing usable in {HOPELESS} draws from {self.size} recordings"
                        f" ({counted(in_a_row)}, {clip.name} for one): check it."
                    ) from None
        lengths = torch.tensor([len(crop) for crop in crops])
        noise = torch.zeros(len(crops), int(lengths.max()))
        for row, crop in zip(noise, crops):
            row[: len(crop)] = torch.from_numpy(crop)
        return {"noise": noise, "noise_lengths": lengths}, told


def open_noise(specs: Sequence[str], share: float) -> Noise | ColouredNoise:
    """
    Open sources of noise, named as those of `train_data`, and see that there is something to hear; or `"coloured"`.

    Raises:
        ValueError: if a source cannot be opened or read at any place, holds no clip, or nothing in it can be used.
    """
    if COLOURED in specs:
        if len(specs) > 1:
            raise ValueError(
                f"`noise_data` names {COLOURED}, noise that is made, beside recordings: name either"
                f" (./{COLOURED} is a folder of that name)."
            )
        return ColouredNoise(share)
    try:
        sources = [open_source(spec) for spec in specs]
    except ValueError as error:
        raise ValueError(f"`noise_data`: {error}") from error
    for source in sources:
        if source.size == 0:
            raise ValueError(f"`noise_data` '{printable(source.name)}' holds no clip.")
    try:
        Noise(sources, share).for_batch(1, SAMPLING_RATE, np.random.default_rng(0))
    except BadAudioError as error:
        raise ValueError(str(error)) from None
    return Noise(sources, share)  # which has told of nothing yet
