"""Plan of a pretraining run: what it is about to do, in some ten lines, from its real parts."""

import logging
import random
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator

from sjepa_hf import SJepaForPreTraining
from sjepa_hf.durations import audio_amount
from sjepa_hf.encoding import reads_padding
from sjepa_hf.frames import SAMPLING_RATE
from training.common.run_record import hardware
from training.data.batches import BatchStream, cut_batches
from training.data.clips import Clip
from training.data.waveforms import BadAudio
from training.pretraining.arguments import Arguments
from training.pretraining.other_encoder import OtherEncoder
from training.pretraining.run import Run


logger = logging.getLogger(__name__)

SAMPLED = 256  # clips whose length is looked up
SIMULATED = 1000  # clips that are drawn from them and cut into batches
LOOKUP_SECONDS = 2.0  # seconds that looking them up may take
NAMED_SOURCES = 4


class DataEstimate(NamedTuple):
    """
    What a run will hear, estimated from the lengths of some clips.

    Attributes:
        sampled (`int`): clips whose length is known.
        exact (`bool`): whether that is all of them.
        hours (`float`): of all sources together, before cropping.
        unusable (`float`): share of the clips that are too short or cannot be read.
        batches (`float`): micro-batches of all processes in a pass over the data; 0 if no clip can be used.
        batch_seconds (`float`): audio in one of them, without padding.
        padding (`float`): share of padding.
        heard (`list[float]`): share of each source in the audio that is heard.
    """

    sampled: int
    exact: bool
    hours: float
    unusable: float
    batches: float
    batch_seconds: float
    padding: float
    heard: list[float]


def estimate_data(stream: BatchStream, weights: list[float] | None, num_readers: int) -> DataEstimate | None:
    """Estimate what a run hears, in two seconds at most; None for streams, whose clips nobody knows beforehand."""
    corpus, end = stream.corpus, time.monotonic() + LOOKUP_SECONDS
    if not corpus.size:
        return None
    choose, rng = random.Random(0), np.random.default_rng(0)
    known = []  # seconds of some clips of each source; 0: cannot be read
    for start, size in zip(corpus.starts.tolist(), corpus.sizes.tolist(), strict=False):
        wanted = max(SAMPLED // len(corpus.sizes), 8)
        items = range(size) if size <= wanted else choose.sample(range(size), wanted)
        seconds = []
        for item in items:
            if seconds and time.monotonic() > end:
                break
            seconds.append(header_seconds(corpus.get(start + item)))
        known.append(np.array(seconds))
    sampled = sum(map(len, known))
    exact = sampled == corpus.size
    hours = sum(size * seconds.mean() for size, seconds in zip(corpus.sizes, known, strict=True)) / 3600
    share = np.array(corpus.sizes if weights is None else weights, dtype=float)
    share = share / share.sum()
    good = [(seconds[seconds >= stream.args.min_seconds] * SAMPLING_RATE).astype(np.int64) for seconds in known]
    usable = [len(lengths) / len(seconds) for lengths, seconds in zip(good, known, strict=True)]
    unusable = 1 - float(share @ usable)
    if unusable == 1:
        return DataEstimate(sampled, exact, hours, 1.0, 0.0, 0.0, 0.0, [0.0] * len(known))
    heard = share * [lengths.clip(max=stream.max_samples).sum() / len(s) for lengths, s in zip(good, known)]
    # Sections of clips as one reader gets them, cut into batches as it does.
    whole = min(stream.args.bucket_buffer_size, -(-corpus.size // num_readers))
    count = max(1, round(whole * (1 - unusable)))
    batches = real = padded = 0
    rounds = -(-SIMULATED // count)
    for _ in range(rounds):
        source = rng.choice(len(good), count, p=share * usable / (1 - unusable))
        lengths = np.array([rng.choice(good[n]) for n in source]).clip(max=stream.max_samples)
        cut = cut_batches(lengths, stream.max_batch, rng)
        batches += len(cut)
        real += int(lengths.sum())
        padded += sum(len(batch) * int(lengths[batch].max()) for batch in cut)
    return DataEstimate(
        sampled,
        exact,
        hours,
        unusable,
        batches=batches / (rounds * whole) * corpus.size,
        batch_seconds=real / SAMPLING_RATE / batches,
        padding=1 - real / padded,
        heard=(heard / heard.sum()).tolist(),
    )


def header_seconds(clip: Clip) -> float:
    """Seconds of a clip as manifest or header say, 0 where it cannot be read."""
    if clip.duration is not None:
        return clip.duration
    try:
        return clip.length() / SAMPLING_RATE
    except BadAudio:
        return 0.0


def plan(run: Run) -> list[str]:
    """Sentences about a run, as it stands before its next step, for the main process."""
    arguments, stream, step = run.arguments, run.data.stream, run.state.step
    readers = run.processes * run.data.readers_here
    estimate = estimate_data(stream, arguments.data.train_data_weights, readers)
    return [
        about_data(arguments, stream, estimate),
        *about_noise(arguments, stream),
        about_batches(arguments, readers, estimate),
        about_model(run.model, run.accelerator, None if step else arguments.model.initial_checkpoint),
        *about_padding(run.model),
        about_steps(arguments, run.processes, estimate, step),
        about_targets(arguments),
        about_output(arguments, run.model),
    ]


def log_plan(run: Run) -> None:
    """Log the plan, on the main process."""
    if run.accelerator.is_main_process:
        for sentence in plan(run):
            logger.info("%s", sentence)
        dry = run.arguments.run.dry_run
        logger.info("A dry run: nothing was written." if dry else "How long that takes follows with the metrics.")


def about_data(arguments: Arguments, stream: BatchStream, estimate: DataEstimate | None) -> str:
    sources = [source.name for source in stream.corpus.sources]
    if estimate is None:
        return f"Data: {named(sources)}, streamed: how much it is shows when it has been read."
    sizes = stream.corpus.sizes.tolist()
    largest = sorted(range(len(sources)), key=lambda n: -sizes[n])
    parts = [f"{sizes[n]:,} of {sources[n]}" if len(sources) > 1 else sources[n] for n in largest]
    if arguments.data.train_data_weights and estimate.batches:
        parts = [f"{part} ({100 * estimate.heard[n]:.0f} % of the audio heard)" for part, n in zip(parts, largest)]
    text = f"Data: {sum(sizes):,} clip{'s' * (sum(sizes) > 1)}, "
    text += (
        audio_amount(estimate.hours)
        if estimate.exact
        else f"about {audio_amount(estimate.hours)} (judged by {estimate.sampled} of them)"
    )
    text += f": {named(parts)}"
    if estimate.unusable >= 0.005:
        seconds = f"{stream.args.min_seconds:g} s"
        text += f"; {100 * estimate.unusable:.0f} % are shorter than {seconds} or unreadable and will be skipped"
        if estimate.unusable > arguments.data.max_bad_fraction:
            text += f", which is more than `max_bad_fraction` ({arguments.data.max_bad_fraction:g}): the run will stop"
            text += " once that is beyond chance"
    return text + "."


def about_noise(arguments: Arguments, stream: BatchStream) -> list[str]:
    """A sentence about `noise_data`, where there is some."""
    if stream.noise is None:
        return []
    return [f"Noise: {stream.noise}, added to {100 * arguments.masking.p_noise:.3g} % of the clips."]


def about_batches(arguments: Arguments, readers: int, estimate: DataEstimate | None) -> str:
    data = arguments.data
    where = f"{readers} worker process{'es' * (readers > 1)}" if data.num_workers else "the training process itself"
    text = f"Batches: up to {data.batch_seconds:g} s with padding, clips cropped to {data.max_seconds:g} s"
    text += f", read by {where}"
    if estimate is not None and estimate.batches:
        text += (
            f"; about {max(estimate.batches, 1):,.0f} in a pass over the data, {100 * estimate.padding:.1f} % padding"
        )
    return text + "."


def about_model(model: SJepaForPreTraining, accelerator: Accelerator, begun_from: str | None = None) -> str:
    config, encoder, gpus = model.config, model.sjepa.num_parameters(), torch.cuda.device_count()
    front_end = f"{config.front_end} front end"
    if isinstance(model.sjepa, OtherEncoder):
        front_end = f"a {type(model.sjepa.model).__name__}"
    start = f", started from {begun_from} with a new mixture and a new last layer of the head" if begun_from else ""
    precision = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    return (
        f"Model: encoder of {millions(encoder)} parameters ({config.num_hidden_layers} layers of {config.hidden_size},"
        f" {front_end}), predictor and head of {millions(model.num_parameters() - encoder)}{start};"
        f" {precision} on {hardware(accelerator)}"
        + f" (of {gpus} GPUs here: `accelerate launch -m training.pretrain` takes all)"
        * (accelerator.num_processes < gpus)
        + "."
    )


def about_padding(model: SJepaForPreTraining) -> list[str]:
    """A sentence about what an encoder of another kind makes of padding, where it makes something of it."""
    if not reads_padding(model.sjepa.config):
        return []
    return [
        "Padding: this encoder reads it too (its front end norms over whole clips, or convolutions follow it), so a"
        " padded clip is not what it would be alone; clips of like length stand in a batch (`bucket_buffer_size`), and"
        " the share of padding is in the log."
    ]


def about_steps(arguments: Arguments, processes: int, estimate: DataEstimate | None, step: int) -> str:
    run, micro_batches = arguments.run, processes * arguments.run.gradient_accumulation_steps
    left = run.phase1_steps + run.phase2_steps - step
    done = f"{step:,} are taken; " if step else ""
    text = f"Steps: {done}{max(run.phase1_steps - step, 0):,} of phase 1"
    text += f", {min(run.phase2_steps, left):,} of phase 2, {micro_batches} batch{'es' * (micro_batches > 1)} each"
    if estimate is None or not estimate.batches:
        most = left * micro_batches * arguments.data.batch_seconds / 3600
        return f"{text}: {audio_amount(most)} of audio heard at most."
    heard, passes = left * micro_batches * estimate.batch_seconds / 3600, left * micro_batches / estimate.batches
    return f"{text}: about {audio_amount(heard)} of audio heard, {passes:,.1f} passes over the data."


def about_targets(arguments: Arguments) -> str:
    run, targets = arguments.run, arguments.targets
    parts = []
    if run.phase1_steps:
        parts.append(
            f"{targets.phase1_components} clusters of {targets.phase1_features}, fitted to at most"
            f" {audio_amount(targets.fit_hours)} of audio"
        )
    if run.phase2_steps:
        layers = targets.target_layers or [targets.start_layer]
        which = (
            f"layer {', '.join(map(str, layers))}" if None not in layers else "the layer of the highest effective rank"
        )
        text = f"{targets.phase2_components} clusters of {which} of the EMA encoder"
        if targets.follows_ranks:
            checks = (run.phase1_steps + run.phase2_steps - 1) // targets.layer_check_steps
            checks -= run.phase1_steps // targets.layer_check_steps
            text += ", later the one of the highest effective rank" if checks > 0 else " to the end"
            text += f" (measured every {targets.layer_check_steps:,} steps)"
        if targets.keeps_frozen:
            whose = (
                "those of phase 1"
                if run.phase1_steps
                else f"the frozen mixture of {arguments.model.initial_checkpoint}"
            )
            text += f", with {whose} for {100 * targets.frozen_weight:g} % of the loss"
        parts.append(text)
    return f"Targets: {'; in phase 2 '.join(parts)}."


def about_output(arguments: Arguments, model: SJepaForPreTraining) -> str:
    run, directory = arguments.run, Path(arguments.run.output_dir)
    size = checkpoint_bytes(model, arguments)
    total = run.phase1_steps + run.phase2_steps
    kept = "all stay" if not run.save_total_limit else f"the newest {run.save_total_limit} stay"
    between = f"a checkpoint every {run.save_steps:,} steps ({kept}) and " if run.save_steps < total else ""
    text = f"Output: {between}final" if between else "Output: no checkpoint but final"
    text += f", about {memory(size)}{' each' if between else ''}, in {directory}"
    if run.push_to_hub:
        text += f"; pushed to the Hub as {run.hub_model_id or directory.resolve().name}"
    existing = next(path for path in (directory.resolve(), *directory.resolve().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    number = 1 + (min(run.save_total_limit or total, total // run.save_steps) if between else 0)
    if free < (number + 1) * size:
        text += f"; ONLY {memory(free)} ARE FREE THERE, and {memory((number + 1) * size)} are needed"
    return text + "."


def checkpoint_bytes(model: SJepaForPreTraining, arguments: Arguments) -> int:
    """Size of a run's largest checkpoints: weights, both moments of the optimizer, and in phase 2 the EMA encoder."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    size = 3 * weights + sum(buffer.nbytes for buffer in model.mixture.buffers())
    if arguments.run.phase2_steps:
        components, hidden = arguments.targets.phase2_components, model.config.hidden_size
        size += sum(parameter.nbytes for parameter in model.sjepa.parameters()) + 4 * 5 * components * hidden
    return size


def named(parts: list[str]) -> str:
    """The first few of several things, and how many there are beside them."""
    text = ", ".join(parts[:NAMED_SOURCES])
    return text + f" and {len(parts) - NAMED_SOURCES} more" * (len(parts) > NAMED_SOURCES)


def millions(count: int) -> str:
    """A number of parameters in words."""
    return f"{count / 1e6:.1f} million" if count >= 50_000 else f"{count:,}"


def memory(size: int) -> str:
    """A size in bytes in words."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
