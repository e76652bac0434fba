"""Batches, of noise or of given clips, as the loader makes them."""

import torch
from torch.nn.utils.rnn import pad_sequence

from training.data.batches import with_masks
from training.data.masking import SpanMask


def collate(clips, mask, generator):
    """A batch of arrays `(num_samples,)`."""
    padded = pad_sequence(list(map(torch.as_tensor, clips)), batch_first=True)
    return with_masks(padded, torch.tensor(list(map(len, clips))), mask, generator)


def clips(*lengths):
    return [torch.randn(length).mul(0.1).numpy() for length in lengths]


def make_batch(*lengths):
    batch = collate(clips(*lengths), SpanMask(0.65, 10), torch.Generator().manual_seed(0))
    return batch | {"seconds": sum(lengths) / 16000, "seed": sum(lengths)}
