"""Augmentation (denoising): what the encoder hears is disturbed, while the targets come from the clean audio."""

import torch
from torch import Tensor

from sjepa_hf.frames import real_samples
from training.data.coloured_noise import coloured


MIX_RATIO_DB = (-5.0, 5.0)  # lowest and highest energy ratio of an utterance's piece and one added to it
NOISE_SNR_DB = (-5.0, 20.0)  # lowest and highest signal-to-noise ratio
SILENCE_POWER = 1e-10  # mean square (-100 dB of full scale); a source below it is not amplified any further


@torch.no_grad()
def augment(
    input_values: Tensor,
    lengths: Tensor,
    *,
    p_mix: float,
    p_noise: float,
    noise: Tensor | None = None,
    noise_lengths: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Add a piece of another utterance, or noise, to a random part of the batch (S-JEPA, denoising augmentation).

    One uniform draw per utterance decides:

    - with probability `p_mix`, a *piece of another utterance* is added, cut and placed at random. Its length is
      uniform from 1 sample to half of the utterance, or to the whole other one where that is shorter. The energy ratio
      of the two pieces, the utterance's own over the added one, is uniform in `MIX_RATIO_DB`.
    - else with probability `p_noise`, *noise over the whole utterance* at a signal-to-noise ratio uniform in
      `NOISE_SNR_DB`: `x + sqrt(Ex / (10^(snr / 10) En)) n`. It is read from `noise`, or where there is none from
      another utterance of the batch, from a random place on, starting over at its end.

    Both scales use the energies over the samples where something is added, real ones only; padding stays as it is. A
    silent source adds nothing; to a silent stretch nothing is added. In a batch of one there is no other utterance:
    nothing is mixed, and noise comes from `noise` alone. The sum may exceed +-1 and is not clipped.

    Everything happens on the device of `input_values`, without synchronising with the host.

    Args:
        input_values: waveforms `(batch_size, num_samples)`, zero-padded; not modified.
        lengths: integers `(batch_size,)`, real samples of each.
        p_mix: probability of mixing in another utterance.
        p_noise: probability of noise; `p_mix + p_noise` is at most 1.
        noise: noise clips `(num_clips, num_noise_samples)` on the same device, or None.
        noise_lengths: integers `(num_clips,)`, real samples of each; None if all of them are.
        generator: source of randomness, on the device of `input_values`.

    Returns:
        Augmented waveforms `(batch_size, num_samples)`.
    """
    batch_size, num_samples = input_values.shape
    device = input_values.device
    lengths = lengths.to(device)
    # A fixed number of draws per call, whatever they decide: the next call continues from the same place.
    decision, ratio, other, clip, size, source_place, target_place = torch.rand(
        7, batch_size, generator=generator, device=device
    )
    mixes = decision < p_mix
    adds_noise = ~mixes & (decision < p_mix + p_noise)

    # The source of every utterance is a row of the batch or of the noise set, both laid out in one flat pool.
    others = max(batch_size - 1, 1)
    row = (torch.arange(batch_size, device=device) + 1 + _uniform_integer(other, others)) % batch_size
    pool, source_begin, source_length = input_values.reshape(-1), row * num_samples, lengths[row]
    if noise is not None:
        if noise_lengths is None:
            noise_lengths = torch.full((noise.shape[0],), noise.shape[1], device=device)
        clip = _uniform_integer(clip, noise.shape[0])
        pool = torch.cat([pool, noise.to(pool.dtype).reshape(-1)])
        source_begin = torch.where(adds_noise, input_values.numel() + clip * noise.shape[1], source_begin)
        source_length = torch.where(adds_noise, noise_lengths.to(device)[clip], source_length)
    if batch_size == 1:
        mixes = torch.zeros_like(mixes)
        adds_noise = adds_noise & (noise is not None)

    # The source is added over a window of the utterance: a random one for a mix, all of it for noise.
    longest_piece = torch.minimum(lengths // 2, source_length)
    piece = 1 + _uniform_integer(size, longest_piece)
    window = torch.where(mixes, piece.minimum(longest_piece), lengths)
    begin = _uniform_integer(target_place, lengths - window + 1)
    last_offset = torch.where(mixes, source_length - window, source_length - 1)
    offset = _uniform_integer(source_place, last_offset + 1)

    position = torch.arange(num_samples, device=device) - begin[:, None]  # [B, S], within the window
    inside = (position >= 0) & (position < window[:, None])
    cyclic = (position + offset[:, None]).remainder(source_length.clamp(min=1)[:, None])
    added = pool[source_begin[:, None] + cyclic] * inside
    target_power = (input_values * inside).square().sum(1) / window.clamp(min=1)
    source_power = (added.square().sum(1) / window.clamp(min=1)).clamp(min=SILENCE_POWER)

    low, high = (torch.where(mixes, m, n) for m, n in zip(MIX_RATIO_DB, NOISE_SNR_DB))
    decibels = low + ratio * (high - low)
    scale = (target_power / (10.0 ** (decibels / 10.0) * source_power)).sqrt()
    return input_values + (scale * (mixes | adds_noise))[:, None] * added


def augmented(batch: dict, p_mix: float, p_noise: float) -> Tensor:
    """
    The waveforms of a batch of the loader, disturbed, by its `noise` where it has some; as they are where both
    probabilities are 0. Seeded by the batch, so that a resumed run draws the same, on any number of processes.
    """
    audio = batch["input_values"]
    if p_mix + p_noise == 0:
        return audio
    generator = torch.Generator(audio.device).manual_seed(batch["seed"])
    noise = {name: batch.get(name) for name in ("noise", "noise_lengths")}
    return augment(audio, batch["lengths"], p_mix=p_mix, p_noise=p_noise, **noise, generator=generator)


def among_noise(input_values: Tensor, attention_mask: Tensor | None, p_noise: float) -> Tensor:
    """
    Labelled clips for a step of fine-tuning, `(batch_size, num_samples)`, each among coloured noise with probability
    `p_noise`. What is drawn follows from torch's own generator of the CPU, whose state a checkpoint keeps.
    """
    batch_size, num_samples = input_values.shape
    device = input_values.device
    generator = torch.Generator(device).manual_seed(int(torch.randint(2**62, ())))
    noise = coloured(max(1, round(p_noise * batch_size)), num_samples, generator)
    if attention_mask is None:  # encoders that are given none hear padding as silence
        lengths = torch.full((batch_size,), num_samples, device=device)
    else:
        lengths = real_samples(attention_mask)
    return augment(input_values, lengths, p_mix=0.0, p_noise=p_noise, noise=noise, generator=generator)


def _uniform_integer(draw: Tensor, count: Tensor | int) -> Tensor:
    """Turn uniform draws from [0, 1) into integers uniform in [0, count); 0 where `count` is not positive."""
    return (draw * count).long().clamp(min=0)
