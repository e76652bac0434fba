"""Phone information: what posteriors over clusters know of the phones that are spoken, frame by frame."""

import math
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


def of_other_clips(phones: list[torch.Tensor]) -> list[torch.Tensor]:
    """
    For each clip equally many phones of the clips after it (the last is followed by the first): a control. Where all
    others together are shorter, theirs are repeated.

    Raises:
        ValueError: if only one clip has phones.
    """
    row, ends, found = torch.cat(phones), np.cumsum([len(part) for part in phones]).tolist(), []
    for part, end in zip(phones, ends, strict=True):
        others = torch.cat([row[end:], row[: end - len(part)]])
        if not len(others):
            raise ValueError(
                "A single clip has phones: what is known of those of other clips, the control, needs two."
            )
        found.append(others.repeat(-(-len(part) // len(others)))[: len(part)])
    return found


class Information(NamedTuple):
    """
    Figures of one kind of posteriors.

    Attributes:
        soft, hard: mutual information of component and phone as a share of the phones' entropy, from the posteriors
            and from their largest component. Counted on some frames, both lie above the truth, the more so the
            fewer frames, the more components and the sharper posteriors are.
        soft_chance, hard_chance: the same with phones of other clips, of which posteriors know nothing: what lies no
            higher is not knowledge.
        entropy_bits: of the posteriors.
        components_used: 2 to the entropy of their mean, in bits.
    """

    soft: float
    hard: float
    soft_chance: float
    hard_chance: float
    entropy_bits: float
    components_used: float


class JointCounts:
    """
    Sums over frames from which the information is computed.

    Args:
        num_phones (`int`), num_components (`int`): sizes of the table.
    """

    def __init__(self, num_phones: int, num_components: int):
        self.soft, self.hard, self.soft_chance, self.hard_chance = torch.zeros(
            4, num_phones, num_components, dtype=torch.float64
        )
        self.entropy = 0.0  # bits

    def add(self, phones: torch.Tensor, others: torch.Tensor, posteriors: torch.Tensor) -> None:
        """Phones and those [`of_other_clips`], integers `(num_frames,)`, and posteriors
        `(num_frames, num_components)` of some frames."""
        posteriors = posteriors.cpu().double()  # not all devices have float64
        posteriors = posteriors / posteriors.sum(1, keepdim=True)  # in fp32 they sum to 1 within 1e-7
        ones, largest = torch.ones(len(phones), dtype=torch.float64), posteriors.argmax(1)
        for said, soft, hard in ((phones, self.soft, self.hard), (others, self.soft_chance, self.hard_chance)):
            soft.index_add_(0, said, posteriors)
            hard.index_put_((said, largest), ones, accumulate=True)
        self.entropy += entropy_bits(posteriors).sum().item()

    def result(self) -> Information:
        frames = self.hard.sum()
        tables = (self.soft, self.hard, self.soft_chance, self.hard_chance)
        return Information(
            *(information_share(table / frames) for table in tables),
            entropy_bits=self.entropy / frames.item(),
            components_used=torch.special.entr(self.soft.sum(0) / frames).sum().exp().item(),
        )


def information_share(joint: torch.Tensor) -> float:
    """
    Mutual information of rows and columns of a joint distribution, as a share of the entropy of its rows; 0 where
    rounding would leave it below, NaN of a single row, which has no entropy.
    """
    rows, columns, both = (torch.special.entr(part).sum() for part in (joint.sum(1), joint.sum(0), joint))
    return ((rows + columns - both) / rows).clamp(min=0).item() if rows > 1e-12 else math.nan
