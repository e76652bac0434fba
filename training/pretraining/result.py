"""The result of a run: final checkpoint, pictures, record, all of it on the Hub where that is asked for."""

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from sjepa_hf import SJepaForPreTraining
from sjepa_hf.command import once
from sjepa_hf.measures import entropy_bits
from sjepa_hf.scores import data_name
from training.common.output_directory import FINAL
from training.common.progress import Progress
from training.common.run_record import base_of, write_record
from training.common.seeds import Purpose
from training.data.bad_audio import counted
from training.data.batches import to_device
from training.pretraining import figures
from training.pretraining.checkpointing import save
from training.pretraining.run import Run


logger = logging.getLogger(__name__)

ENTROPY_FRAMES = 20_000  # frames in the histogram of predictor entropy


def finish(run: Run) -> None:
    """
    Save the final checkpoint, and what lies beside it.

    Raises:
        OSError: if it cannot be written.
        Interrupted: if the run is to end meanwhile.
    """
    final = run.output_dir / FINAL
    save(run, final)
    if run.failed_saves:
        raise OSError(f"{final} could not be written: free space and resume from the last checkpoint.")
    seconds = run.totals().seconds
    if run.accelerator.is_main_process:
        batches = run.data.fresh_pass(Purpose.ENTROPY_PASS)
        entropy = predictor_entropy(run.model, batches, ENTROPY_FRAMES, run.accelerator)
    run.coordinator.barrier()
    if run.accelerator.is_main_process:
        components, phase1_steps = run.model.mixture.num_components, run.arguments.run.phase1_steps
        drawn = figures.draw_run(run.output_dir, final, phase1_steps, entropy, components)
        record(run, final, seconds)
        logger.info("Saved %s: model, training state, record and pictures (%s).", final, ", ".join(drawn))
    if bad := run.data.clips()[1]:
        logger.log(once(logging.WARNING), "%d clips were skipped: %s.", bad.total(), counted(bad))
    run.end()
    if run.publisher:
        run.publisher.finish(final)


def record(run: Run, directory: Path, seconds_heard: float) -> None:
    """training.json of a run that has heard so many seconds of audio; of sources it tells the names alone."""
    settings, noise = run.arguments.to_dict(), run.arguments.masking.noise_data
    settings["noise_data"] = noise and list(map(data_name, noise))
    write_record(
        directory,
        run.accelerator,
        kind="pretraining",
        **base_of(run.arguments.model.initial_checkpoint),
        data={"sources": list(map(data_name, run.arguments.data.train_data))},
        steps=run.state.step,
        hours_heard=seconds_heard / 3600,
        hours_taken=run.seconds_taken() / 3600,
        settings=settings,
    )


@torch.no_grad()
def predictor_entropy(
    model: SJepaForPreTraining, batches: Iterable[dict], num_frames: int, accelerator: Accelerator
) -> np.ndarray:
    """Entropy in bits of the prediction at each of some `num_frames` real frames, none if `batches` are, unmasked."""
    model.eval()
    progress = Progress("Predictor entropy", accelerator.is_main_process)
    found, frames = [torch.empty(0)], 0
    for batch in batches:
        batch = to_device(batch, accelerator.device)
        with accelerator.autocast():
            logits = model(batch["input_values"], batch["attention_mask"]).logits
        positions = torch.cat([batch["masked_positions"], batch["visible_positions"]])
        found.append(entropy_bits(logits.flatten(0, 1)[positions].float().softmax(-1)).cpu())
        frames += len(positions)
        progress(f"{frames:,} of {num_frames:,} frames")
        if frames >= num_frames:
            break
    model.train()
    return torch.cat(found).numpy()
