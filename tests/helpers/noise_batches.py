"""Batches of noise, as the loader makes them."""

import torch

from training.data.batches import collate
from training.data.masking import SpanMask


def clips(*lengths):
    return [torch.randn(length).mul(0.1).numpy() for length in lengths]


def make_batch(*lengths):
    batch = collate(clips(*lengths), SpanMask(0.65, 10), torch.Generator().manual_seed(0))
    return batch | {"seconds": sum(lengths) / 16000, "draw": sum(lengths)}
