import math

import pytest
import torch

from training.data import augmentation
from training.data.augmentation import among_noise, augment, augmented


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def padded_batch(lengths: list[int], num_samples: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise-like waveforms of very different loudness, zero-padded."""
    rng = generator(seed)
    values = torch.randn(len(lengths), num_samples, generator=rng)
    values = values * torch.logspace(-3, 0, len(lengths))[:, None]
    lengths = torch.tensor(lengths)
    return values * (torch.arange(num_samples) < lengths[:, None]), lengths


LENGTHS = [4000, 3000, 2500, 1001, 400, 2]


def test_noise_meets_the_drawn_ratio_over_the_real_samples(monkeypatch):
    values, lengths = padded_batch(LENGTHS, 4200)
    noise, noise_lengths = padded_batch([700, 5000], 5000, seed=5)
    for source in ({}, {"noise": noise, "noise_lengths": noise_lengths}):
        for snr in (-5.0, 7.0, 20.0):
            monkeypatch.setattr(augmentation, "NOISE_SNR_DB", (snr, snr))
            out = augment(values, lengths, p_mix=0.0, p_noise=1.0, generator=generator(), **source)
            ratio = values.square().sum(1) / (out - values).square().sum(1)
            # Float rounding of out - values is what limits the tolerance.
            assert torch.allclose(10 * ratio.log10(), torch.full((6,), snr), atol=1e-2)


def test_noise_is_the_source_repeated_from_a_random_place():
    values, lengths = padded_batch([1000], 1000)
    ramp = torch.arange(1.0, 301.0)[None]
    padded = torch.nn.functional.pad(ramp, (0, 50), value=99.0)
    out = augment(
        values,
        lengths,
        p_mix=0.0,
        p_noise=1.0,
        noise=padded,
        noise_lengths=torch.tensor([300]),
        generator=generator(2),
    )
    added = (out - values)[0]
    begin = int((added[:300]).argmin())  # where the ramp starts over
    expected = ramp[0].roll(begin).repeat(4)[:1000]
    assert begin > 0
    assert torch.allclose(added / added.norm(), expected / expected.norm(), atol=1e-5)


@pytest.mark.parametrize("ratio", [-5.0, 0.0, 5.0])
def test_mix_adds_one_piece_of_another_utterance_at_the_drawn_ratio(ratio, monkeypatch):
    monkeypatch.setattr(augmentation, "MIX_RATIO_DB", (ratio, ratio))
    values, lengths = padded_batch(LENGTHS, 4200)
    for seed in range(5):
        out = augment(values, lengths, p_mix=1.0, p_noise=0.0, generator=generator(seed))
        for i, length in enumerate(LENGTHS):
            touched = (out[i] != values[i]).nonzero()[:, 0]
            piece = slice(int(touched.min()), int(touched.max()) + 1)
            size = piece.stop - piece.start
            assert 1 <= size <= length // 2 and piece.stop <= length
            added = (out[i] - values[i])[piece]
            measured = 10 * math.log10(values[i, piece].square().sum() / added.square().sum())
            assert measured == pytest.approx(ratio, abs=0.02)
            if size < 20:
                continue
            # The piece is found, scaled, in exactly one other utterance, within its real samples.
            found = []
            for j, other in enumerate(LENGTHS):
                windows = values[j, :other].unfold(0, size, 1) if other >= size else values.new_zeros(1, size)
                cosine = (windows @ added) / (windows.norm(dim=1) * added.norm()).clamp(min=1e-20)
                found += [j] * int((cosine > 0.999).sum())
            assert len(found) == 1 and found[0] != i


def test_ranges_probabilities_and_lengths_are_uniform():
    num, length = 6000, 64
    values, lengths = torch.ones(num, length), torch.full((num,), length)
    out = augment(values, lengths, p_mix=0.25, p_noise=0.25, generator=generator())
    added = out - values  # of ones to ones: level and place are read off
    touched = (added != 0).sum(1)
    mixed, noisy = (touched > 0) & (touched <= 32), touched == 64
    assert (mixed | noisy | (touched == 0)).all()
    assert mixed.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert noisy.float().mean().item() == pytest.approx(0.25, abs=0.03)
    decibels = -20 * added.amax(1).log10()
    for rows, low, high in ((mixed, -5, 5), (noisy, -5, 20)):
        drawn = decibels[rows]
        assert drawn.min() >= low - 1e-3 and drawn.max() <= high + 1e-3
        assert drawn.mean().item() == pytest.approx((low + high) / 2, abs=0.8)
        assert drawn.std().item() == pytest.approx((high - low) / math.sqrt(12), rel=0.1)
    sizes = touched[mixed]
    assert sizes.min() == 1 and sizes.max() == 32
    assert sizes.float().mean().item() == pytest.approx(16.5, abs=1.0)
    begins = (added != 0)[mixed].float().argmax(1)
    assert begins.min() == 0 and (begins + sizes).max() == 64  # both ends are reached


def test_every_other_utterance_serves_as_a_source_and_never_the_utterance_itself():
    values = torch.linspace(1, 2, 20) ** torch.arange(1.0, 6.0)[:, None]  # highest over lowest sample: 2, 4, .. 32
    lengths = torch.full((5,), 20)
    sources = set()
    for seed in range(60):
        added = augment(values, lengths, p_mix=0.0, p_noise=1.0, generator=generator(seed)) - values
        steepness = (added.amax(1) / added.amin(1)).log2().round().int() - 1
        sources |= set(enumerate(steepness.tolist()))
    assert sources == {(i, j) for i in range(5) for j in range(5) if i != j}


@pytest.mark.parametrize("p_mix, p_noise", [(1.0, 0.0), (0.0, 1.0), (0.25, 0.25)])
def test_input_and_padding_stay_as_they_are_and_a_generator_repeats_it(p_mix, p_noise):
    values, lengths = padded_batch(LENGTHS, 4200)
    before = values.clone()
    first, again = (augment(values, lengths, p_mix=p_mix, p_noise=p_noise, generator=generator(1)) for _ in range(2))
    assert torch.equal(values, before)
    assert torch.equal(first, again)
    assert first.isfinite().all() and not torch.equal(first, values)
    assert (first[torch.arange(4200) >= lengths[:, None]] == 0).all()
    other = augment(values, lengths, p_mix=p_mix, p_noise=p_noise, generator=generator(2))
    assert not torch.equal(first, other)


def test_probability_zero_changes_nothing():
    values, lengths = padded_batch(LENGTHS, 4200)
    assert torch.equal(augment(values, lengths, p_mix=0.0, p_noise=0.0), values)


@pytest.mark.parametrize("p_mix, p_noise", [(1.0, 0.0), (0.0, 1.0)])
def test_silence_as_target_or_source_gives_no_nan(p_mix, p_noise):
    values, lengths = padded_batch([800, 800], 900)
    for silent in (0.0, 1e-30):
        values[0] = silent * values[1]
        for seed in range(5):
            out = augment(values, lengths, p_mix=p_mix, p_noise=p_noise, generator=generator(seed))
            assert torch.allclose(out, values, atol=1e-12)  # nothing to add, and nothing to add it to
    noise = torch.zeros(1, 50)
    assert torch.equal(augment(values, lengths, p_mix=0.0, p_noise=1.0, noise=noise), values)


def test_batch_of_one_hears_only_given_noise():
    values, lengths = padded_batch([500], 600)
    assert torch.equal(augment(values, lengths, p_mix=1.0, p_noise=0.0), values)
    assert torch.equal(augment(values, lengths, p_mix=0.0, p_noise=1.0), values)
    noise = torch.randn(2, 300, generator=generator())
    assert torch.equal(augment(values, lengths, p_mix=1.0, p_noise=0.0, noise=noise), values)
    out = augment(values, lengths, p_mix=0.0, p_noise=1.0, noise=noise, generator=generator())
    ratio = values.square().sum() / (out - values).square().sum()
    assert -5.01 < 10 * ratio.log10() < 20.01


def test_nothing_waits_for_values():
    with torch.device("meta"):  # tensors without values
        values, lengths = torch.zeros(3, 500), torch.zeros(3, dtype=torch.long)
        out = augment(values, lengths, p_mix=0.25, p_noise=0.25, noise=torch.zeros(2, 80))
    assert out.shape == (3, 500)


def test_empty_and_one_sample_utterances_pass():
    values, lengths = padded_batch([0, 1, 2, 300], 320)
    for p_mix in (0.0, 1.0):
        out = augment(values, lengths, p_mix=p_mix, p_noise=1.0 - p_mix, generator=generator())
        assert out.isfinite().all() and (out[0] == 0).all()


def test_labelled_clips_among_noise_follow_torchs_own_generator():
    """A share of the clips, at the ratios of pretraining; padding stays zero where a mask tells of it."""
    values = torch.randn(200, 4000, generator=generator(3))
    mask = torch.ones(200, 4000, dtype=torch.long)
    mask[::2, 3000:] = 0
    values = values * mask
    torch.manual_seed(5)
    heard, other = among_noise(values, mask, 0.5), among_noise(values, mask, 0.5)
    torch.manual_seed(5)
    assert torch.equal(among_noise(values, mask, 0.5), heard) and not torch.equal(other, heard)
    assert not heard[mask == 0].any()
    added = heard - values
    noisy = added.abs().amax(1) > 0
    assert 70 <= noisy.sum() <= 130
    ratio = 10 * torch.log10(values.square().sum(1) / added.square().sum(1))[noisy]
    assert -5.01 <= ratio.min() < -2 and 17 < ratio.max() <= 20.01
    assert among_noise(values, None, 1.0)[0, 3000:].any(), "without a mask, padding is silence like any other"
    assert not among_noise(values[:1], mask[:1], 1.0).equal(values[:1]), "nor does it take another clip"


def test_what_a_batch_of_the_loader_gets_follows_its_seed_and_both_probabilities():
    values, lengths = padded_batch([4000] * 40, 4000)
    batch = {"input_values": values, "lengths": lengths, "seed": 3}
    assert augmented(batch, 0.0, 0.0) is values
    mixed, noisy = augmented(batch, 1.0, 0.0), augmented(batch, 0.0, 1.0)
    decibels = 10 * torch.log10(values.square().sum(1) / (noisy - values).square().sum(1))
    assert -5.01 <= decibels.min() < 0 and 15 < decibels.max() <= 20.01
    touched = (mixed != values).float().mean(1)
    assert 0 < touched.min() and touched.max() <= 0.51, "another clip over up to half of it"
    assert augmented(batch, 1.0, 0.0).equal(mixed) and not augmented(batch | {"seed": 4}, 1.0, 0.0).equal(mixed)
