"""What a prediction knows at hidden frames: against loops over single frames, and the word when it is nothing."""

import math

import pytest
import torch

from sjepa_hf import DiagonalGaussianMixture, SJepaForPreTrainingOutput
from training.pretraining import hidden_frames
from training.pretraining.arguments import RunArguments
from training.pretraining.hidden_frames import ClipMeanMonitor, hidden_frame_metrics


CLIPS = ("..##.......", "####__", "....___", "#######.###", "###.###____")  # visible, hidden, padding


@pytest.fixture
def case(monkeypatch):
    """
    Mixture, targets, prediction and batch of `CLIPS`, in whose means the weights count as 2 frames; posteriors of the
    first component are 0 at times.
    """
    monkeypatch.setattr(hidden_frames, "PRIOR_FRAMES", 2)
    generator = torch.Generator().manual_seed(0)
    marks = [clip.ljust(11, "_") for clip in CLIPS]
    targets, logits = (3 * torch.randn(5, 11, 6, generator=generator) for _ in range(2))
    targets[:, ::2, 0] = -math.inf
    padding = torch.tensor([[mark == "_" for mark in clip] for clip in marks])
    targets, logits = (part.masked_fill(padding[..., None], math.nan) for part in (targets, logits))
    mixture = DiagonalGaussianMixture(6, 2)
    mixture.weights.copy_(torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1, 0.0]))
    flat = "".join(marks)
    batch = {
        f"{name}_positions": torch.tensor([i for i, mark in enumerate(flat) if mark == sign])
        for name, sign in (("masked", "#"), ("visible", "."))
    }
    return mixture, targets.softmax(-1), SJepaForPreTrainingOutput(logits=logits), batch


def kl(target, prediction):
    return sum(q * math.log(q / max(p, 1.1754943508222875e-38)) for q, p in zip(target, prediction) if q > 0)


def test_figures_against_a_loop_over_frames(case):
    mixture, targets, output, batch = case
    predictions, weights = output.logits.softmax(-1), mixture.weights.tolist()
    masked, guess = ({d: [] for d in range(1, 6)} for _ in range(2))
    for clip, marks in enumerate(CLIPS):
        visible = [t for t, mark in enumerate(marks) if mark == "."]
        sums = [sum(targets[clip, t, k].item() for t in visible) + 2 * weights[k] for k in range(6)]
        mean = [value / (len(visible) + 2) for value in sums]
        for t in (t for t, mark in enumerate(marks) if mark == "#"):
            distance = min([abs(t - other) for other in visible] + [5])
            masked[distance].append(kl(targets[clip, t].tolist(), predictions[clip, t].tolist()))
            guess[distance].append(kl(targets[clip, t].tolist(), mean))
    found = hidden_frame_metrics(mixture, targets, output, batch)
    for name, expected in (("masked_kl", masked), ("clip_mean_kl", guess)):
        assert found[f"{name}_by_distance"] == pytest.approx([sum(e) / len(e) for e in expected.values()], rel=1e-4)
    everything, guesses = (sum(part.values(), []) for part in (masked, guess))
    assert found["clip_mean_kl"] == pytest.approx(sum(guesses) / len(guesses), rel=1e-4)
    gain = (sum(guesses) - sum(everything)) / len(guesses)
    assert found["gain_over_clip_mean"] == pytest.approx(gain, rel=1e-3)


def test_distances_that_do_not_occur_have_no_figure(case):
    mixture, targets, output, batch = case
    batch["masked_positions"] = batch["masked_positions"][:2]  # of the first clip: both beside a visible frame
    found = hidden_frame_metrics(mixture, targets, output, batch)
    for name in ("masked_kl_by_distance", "clip_mean_kl_by_distance"):
        assert found[name][0] > 0 and found[name][1:] == [None] * 4
    batch["masked_positions"] = batch["masked_positions"][:0]
    assert hidden_frame_metrics(mixture, targets, output, batch) == {}


def test_whoever_predicts_the_clips_mean_gains_nothing(case):
    mixture, targets, output, batch = case
    visible = torch.zeros(55, 1).index_fill(0, batch["visible_positions"], 1.0).view(5, 11, 1)
    weights = mixture.weights.clamp_min(torch.finfo(torch.float32).tiny)
    mean = ((visible * targets.nan_to_num()).sum(1) + 2 * weights) / (visible.sum(1) + 2)
    output.logits = mean.log()[:, None].expand(-1, 11, -1)
    assert hidden_frame_metrics(mixture, targets, output, batch)["gain_over_clip_mean"] == pytest.approx(0, abs=1e-5)


@pytest.fixture
def watch(monkeypatch):
    """After 100 steps of warm-up in either phase and 20 more, over 3 lines."""
    monkeypatch.setattr(hidden_frames, "FEWEST_STEPS", 20)
    monkeypatch.setattr(hidden_frames, "LINES", 3)
    return ClipMeanMonitor(RunArguments(phase1_steps=1000, phase1_warmup_steps=100, phase2_warmup_steps=100))


def warned(watch, gain, steps, phase=1):
    lines = ({"step": step, "phase": phase, "gain_over_clip_mean": gain} for step in steps)
    return {line["step"] for line in lines if watch.observe(line)}


def test_a_prediction_no_better_than_the_clips_mean_is_told(watch):
    assert warned(watch, -0.1, range(10, 1001, 10)) == {*range(120, 1001, 10)}
    assert warned(watch, -0.1, range(1010, 1201, 10), phase=2) == {*range(1120, 1201, 10)}, "it learns anew"
    sentence = watch.observe({"step": 1400, "phase": 2, "gain_over_clip_mean": -0.4})["gain_over_clip_mean"]
    assert "knows nothing of what is said" in sentence and "0.20 nats above that of the clip's mean guess" in sentence


def test_a_prediction_that_knows_more_is_left_in_peace(watch):
    assert warned(watch, 0.1, range(10, 1001, 10)) == set()
    assert warned(watch, -0.15, (1000,)) == set(), "one bad line is noise"
    assert watch.observe({"step": 1000, "phase": 1}) == {}, "a line without figures"
