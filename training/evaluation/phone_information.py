"""Phone information: what posteriors over clusters know of the phones that are spoken, frame by frame."""

from typing import NamedTuple

import numpy as np
import torch

from sjepa_hf.measures import entropy_bits
from training.data.labelled import LabelledClips
from training.evaluation.alignment import phones_at_frames, read_alignment


def number_phones(clips: LabelledClips, frame_counts: np.ndarray) -> tuple[np.ndarray, list[torch.Tensor]]:
    """
    The phones of aligned clips, sorted, and for each clip the numbers of its frames' phones, integers
    `(<= num_frames,)`.

    Raises:
        ValueError: if alignments are broken.
    """
    names = [phones_at_frames(*read_alignment(clips, i), count) for i, count in enumerate(frame_counts.tolist())]
    known, numbers = np.unique(np.concatenate(names).astype(str), return_inverse=True)
    return known, list(torch.from_numpy(numbers).split([len(part) for part in names]))


class Information(NamedTuple):
    """Figures of one kind of posteriors."""

    soft: float
    hard: float
    entropy_bits: float
    components_used: float


class JointCounts:
    """
    Sums over frames from which the information is computed.

    Args:
        num_phones (`int`), num_components (`int`): sizes of the table.
    """

    def __init__(self, num_phones: int, num_components: int):
        self.soft, self.hard = (torch.zeros(num_phones, num_components, dtype=torch.float64) for _ in range(2))
        self.entropy = 0.0  # bits

    def add(self, phones: torch.Tensor, posteriors: torch.Tensor) -> None:
        """Phones, integers `(num_frames,)`, and posteriors `(num_frames, num_components)` of some frames."""
        posteriors = posteriors.double().cpu()
        posteriors = posteriors / posteriors.sum(1, keepdim=True)  # in fp32 they sum to 1 within 1e-7
        self.soft.index_add_(0, phones, posteriors)
        ones = torch.ones(len(phones), dtype=torch.float64)
        self.hard.index_put_((phones, posteriors.argmax(1)), ones, accumulate=True)
        self.entropy += entropy_bits(posteriors).sum().item()

    def result(self) -> Information:
        frames = self.hard.sum()
        return Information(
            *(information_share(table / frames) for table in (self.soft, self.hard)),
            entropy_bits=self.entropy / frames.item(),
            components_used=torch.special.entr(self.soft.sum(0) / frames).sum().exp().item(),
        )


def information_share(joint: torch.Tensor) -> float:
    """
    Mutual information of rows and columns of a joint distribution, as a share of the entropy of its rows; 0 where
    rounding would leave it below.
    """
    rows, columns, both = (torch.special.entr(part).sum() for part in (joint.sum(1), joint.sum(0), joint))
    return ((rows + columns - both) / rows).clamp(min=0).item()
