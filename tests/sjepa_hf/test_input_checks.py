import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sjepa_hf import SJepaConfig
from sjepa_hf.input_checks import (
    check_input,
    check_mask,
    check_right_padded,
    check_values,
    nothing_padded,
    values_readable,
    within_functorch,
)


WAVEFORMS = torch.zeros(2, 500)


@pytest.mark.parametrize(
    ("input_values", "attention_mask", "message"),
    [
        (torch.zeros(2, 1, 500), None, "without a channel dimension"),
        (torch.zeros(2, 500, dtype=torch.int16), None, "divide 16-bit samples by 32768"),
        (torch.zeros(2, 399), None, r"399 samples, but one frame reads 400 \(25 ms at 16 kHz\)"),
        (WAVEFORMS, torch.ones(2, 1), "it marks samples, not frames"),
    ],
)
def test_a_batch_of_another_shape_or_type_gets_a_sentence(input_values, attention_mask, message):
    check_input(SJepaConfig(), WAVEFORMS, torch.ones(2, 500))
    with pytest.raises(ValueError, match=message):
        check_input(SJepaConfig(), input_values, attention_mask)


def test_values_that_no_clip_has_get_a_sentence():
    check_values(WAVEFORMS, torch.ones(2, 500))
    for value in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="NaN or infinite samples"):
            check_values(WAVEFORMS + value, None)
    padded = torch.ones(2, 500)
    padded[1, 300:] = 0
    check_right_padded(padded)
    with pytest.raises(ValueError, match="pad clips on the right"):
        check_values(WAVEFORMS, padded.flip(1))
    assert nothing_padded(torch.ones(2, 500)) and not nothing_padded(padded)


def test_a_mask_of_another_shape_or_type_gets_a_sentence():
    check_mask("mask", torch.ones(2, 4, dtype=torch.bool), (2, 4), "frames")
    for mask in (torch.ones(2, 4), torch.ones(2, 3, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"`mask` must be bool of shape \(2, 4\) \(batch_size, frames\)"):
            check_mask("mask", mask, (2, 4), "frames")


def test_values_are_looked_at_where_there_are_any():
    assert values_readable(WAVEFORMS) and not within_functorch()
    assert not values_readable(WAVEFORMS.to("meta"), may_wait=True)
    with FakeTensorMode():
        assert not values_readable(torch.zeros(2, 500)), "it has none"
    seen = []
    torch.func.vmap(lambda clip: seen.append((values_readable(clip), within_functorch())) or clip)(WAVEFORMS)
    assert seen == [(False, True)]
