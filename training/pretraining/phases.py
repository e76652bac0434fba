"""
Phases: which posteriors are predicted, and what happens to model and optimizer when they change (method, sections 3 to
5). A fit that is interrupted leaves everything that a checkpoint holds as it was.

`fitted` of the targets says whether their mixture is that of what is predicted. It is set here: True by each fit, and
for the frozen mixture that phase 2 keeps; False where another layer becomes active and is to have new clusters
(`choose_layer`). Only a run that resumes takes it from its checkpoint instead (`seeding_due`).
"""

import logging
import time
from collections.abc import Iterator

import torch

from sjepa_hf.modeling_sjepa_pretraining import new_mixture
from training.common.progress import Progress
from training.common.seeds import Purpose, seed_for
from training.pretraining.model import frozen_targets, online_targets
from training.pretraining.run import Run
from training.targets.layer_choice import layer_ranks
from training.targets.sampling import FitAudio, sample_frames
from training.targets.targets import OnlineTargets, fit_mixture
from training.targets.transitions import fit_transitions


logger = logging.getLogger(__name__)

MEASURED_FRAMES = 20_000  # of audio, out of which come the frames that the first layer is chosen by


def fit_is_due(run: Run) -> bool:
    """Whether the next step needs a mixture that is not there yet: that of its phase, or one over another layer."""
    return (run.targets.phase, run.targets.fitted) != (run.schedule.phase(run.state.step), True)


def fit(run: Run) -> float:
    """
    Fit the mixture that the next step needs. Each fit reads audio in a pass of its own, which leaves the training
    batches where they are.

    Returns:
        seconds that it took, the same in all processes.

    Raises:
        Interrupted: if the run is to end meanwhile.
    """
    if run.schedule.phase(run.state.step) == 1:
        return begin_phase_1(run)
    return refit_on_new_layer(run) if run.targets.phase == 2 else begin_phase_2(run)


def begin_phase_1(run: Run) -> float:
    """
    The start: a mixture over a uniform sample of the corpus's frame features (`phase1_features`), by k-means and EM,
    and the transitions between its components, where they are to be heeded; then it is frozen.
    """
    settings, began = run.arguments.targets, time.monotonic()
    over = settings.phase1_features
    logger.info("Reading up to %g hours for the mixture of phase 1, over %s.", settings.fit_hours, over)
    progress = Progress("Mixture of phase 1", run.accelerator.is_main_process)
    seed = seed_for(run.arguments.run.seed, Purpose.FIT, run.state.step)
    targets, audio = run.targets, fit_audio(run, progress)
    frames, max_seconds = settings.fit_frames, settings.fit_hours * 3600
    sample = sample_frames(targets.features, audio, frames, seed, max_seconds=max_seconds)
    fit_mixture(targets.mixture, sample, seed, run.coordinator, progress=progress, **settings.fit_options())
    if settings.target_transitions:
        passes = settings.transition_passes
        fit_transitions(targets.mixture, targets.features, audio, frames, passes, max_seconds)
    seconds = end_fit(run, began)
    targets.fitted = run.unsaved = True
    return seconds


def begin_phase_2(run: Run) -> float:
    """The boundary: EMA encoder := encoder, a new mixture seeded on its features, a new last layer of the head."""
    settings = run.arguments.targets
    if run.layer_choice.active is None and not settings.target_layers:
        begin_on_highest_rank(run)
    size = settings.phase2_components, settings.target_dims or run.model.config.hidden_size
    # Fitted beside the model and copied into it, so that an interrupted fit leaves the model in phase 1.
    with torch.random.fork_rng(devices=[]):  # it is made on the CPU
        mixture = new_mixture(run.model.config, *size).to(run.accelerator.device)
    targets = online_targets(run.model.sjepa, mixture, run.arguments, run.layer_choice, run.accelerator)
    seconds = seed_mixture(run, targets, settings.seed_frames)
    run.model.replace_mixture(*size, keep_frozen=settings.keeps_frozen)
    run.model.mixture.load_state_dict(mixture.state_dict())
    targets.mixture = run.model.mixture
    predict_online(run, targets)
    parameters = list(run.model.parameters())
    run.optimizer.param_groups[0]["params"] = parameters
    for parameter in set(run.optimizer.state) - set(parameters):
        del run.optimizer.state[parameter]
    restart_head(run)
    run.wrap()
    return seconds


def begin_on_highest_rank(run: Run) -> None:
    """Choose the first layer of phase 2, where the settings name none: that of the highest effective rank."""
    step = run.state.step
    audio = fit_audio(run, Progress("Effective ranks", run.accelerator.is_main_process))
    seed = seed_for(run.arguments.run.seed, Purpose.LAYER_RANKS, step)
    ranks = layer_ranks(run.model.sjepa, audio.batches(max_frames=MEASURED_FRAMES), run.accelerator, seed)
    run.layer_choice.choose_first(ranks)
    shown = " ".join(f"{rank:.1f}" for rank in ranks)
    logger.info("Effective ranks of the layers, 0 first: %s. Layer %d leads.", shown, run.layer_choice.active)


def refit_on_new_layer(run: Run) -> float:
    """Fit new clusters, after the layer that makes the targets has changed."""
    seconds = seed_mixture(run, run.targets, run.arguments.targets.reseed_frames)
    restart_head(run)
    return seconds


def predict_online(run: Run, targets: OnlineTargets) -> None:
    """From now on predict the targets of phase 2, and beside them those of phase 1 if the model has kept them."""
    run.targets = targets
    if run.model.config.num_frozen_components is not None:
        run.frozen_targets = frozen_targets(run.model.frozen_mixture, run.arguments.targets)
        run.frozen_targets.fitted = True


def seed_mixture(run: Run, targets: OnlineTargets, num_frames: int) -> float:
    """Fit an online mixture to features of the active layer; returns the seconds that it took."""
    began, step = time.monotonic(), run.state.step
    logger.info("Seeding the mixture on features of layer %s.", ", ".join(map(str, targets.layers)))
    progress = Progress("Mixture of phase 2", run.accelerator.is_main_process)
    targets.seed(
        fit_audio(run, progress),
        num_frames,
        seed_for(run.arguments.run.seed, Purpose.FIT, step),
        transition_passes=run.arguments.targets.transition_passes,
        progress=progress,
        **run.arguments.targets.fit_options(),
    )
    seconds = end_fit(run, began)
    targets.fitted = True
    return seconds


def fit_audio(run: Run, progress: Progress) -> FitAudio:
    """The audio of a fit; all passes over it before the same step are alike."""

    def read() -> Iterator[dict]:
        return progress.count_hours(run.data.fresh_pass(Purpose.FIT_PASS, run.state.step), run.processes)

    return FitAudio(read, run.coordinator, run.data.readers_here)


def restart_head(run: Run) -> None:
    """Reset the last layer of the head (alike in every process) and its optimizer state: the clusters have changed."""
    seed = seed_for(run.arguments.run.seed, Purpose.HEAD, run.state.step)
    run.model.reset_last_layer(torch.Generator().manual_seed(seed))
    for parameter in run.model.cluster_head.output.parameters():
        run.optimizer.state.pop(parameter, None)


def choose_layer(run: Run, micro_batches: list[dict]) -> list[float] | None:
    """
    Every `layer_check_steps`: effective rank of each layer on the last step's batches, `(num_hidden_layers + 1,)`, and
    in phase 2 the choice of the layer that makes the targets. None at other steps.
    """
    settings, step = run.arguments.targets, run.state.step
    if step % settings.layer_check_steps:
        return None
    in_phase_2 = run.targets.phase == 2
    encoder = run.targets.teacher if in_phase_2 else run.model.sjepa
    seed = seed_for(run.arguments.run.seed, Purpose.LAYER_RANKS, step)
    ranks = layer_ranks(encoder, micro_batches, run.accelerator, seed)
    more_to_come = step < run.schedule.total_steps
    if in_phase_2 and more_to_come and run.layer_choice.observe(ranks):
        logger.info("Step %d: layer %d now has the highest effective rank.", step, run.layer_choice.active)
        run.targets.fitted = not settings.reseed_on_layer_switch
    return ranks


def end_fit(run: Run, began: float) -> float:
    """
    Count a fit's unusable clips and wait for the other processes; returns the seconds since it began, their mean.
    Raises Interrupted if the run is to end.
    """
    run.data.mark_used()
    return run.coordinator.sum(time.monotonic() - began)[0] / run.processes
