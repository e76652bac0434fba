import json
import math
import os
from types import SimpleNamespace

import psutil
import pytest
import torch
from accelerate import Accelerator

from sjepa_hf import DiagonalGaussianMixture, SJepaForPreTrainingOutput
from training.pretraining import hidden_frames
from training.pretraining.arguments import RunArguments
from training.pretraining.monitoring import (
    Monitor,
    collapse_warnings,
    forget_after,
    loss_parts,
    means,
    read_history,
    resident_gib,
    target_metrics,
)
from training.pretraining.run import Run


def test_target_metrics_against_their_definitions():
    mixture = DiagonalGaussianMixture(4, 2)
    mixture.weights.copy_(torch.tensor([0.5, 0.25, 0.2499, 0.0001]))
    targets, logits = torch.rand(2, 3, 4).softmax(-1), torch.randn(2, 3, 4)
    positions = torch.tensor([0, 4])
    metrics = target_metrics(mixture, targets, SJepaForPreTrainingOutput(logits=logits), positions)
    q = targets.flatten(0, 1)[positions]
    assert metrics["baseline_kl"] == pytest.approx(
        (q * (q.log() - mixture.weights.log())).sum(-1).mean().item(), rel=1e-4
    )
    p = logits.flatten(0, 1)[positions].softmax(-1)
    assert metrics["predictor_entropy_bits"] == pytest.approx(-(p * p.log2()).sum(-1).mean().item(), rel=1e-4)
    assert metrics["live_components"] == 3
    assert metrics["mixture_perplexity"] == pytest.approx(2**1.5, rel=1e-2)
    usage = q.mean(0)
    assert metrics["target_perplexity"] == pytest.approx(math.exp(-(usage * usage.log()).sum().item()), rel=1e-4)


def test_collapse_is_said_aloud_and_health_is_not():
    healthy = {
        "prediction_perplexity": 50.0, "mixture_perplexity": 80.0, "target_perplexity": 40.0,
        "effective_ranks": [100.0, 90.0],
    }  # fmt: skip
    assert collapse_warnings(healthy, 256, 100) == {}
    assert "layer 1" in collapse_warnings(healthy | {"effective_ranks": [100.0, 1.5]}, 256, 100)["effective_ranks"]


def test_few_components_cannot_be_in_wide_use():
    names = ("prediction_perplexity", "mixture_perplexity", "target_perplexity")
    for components in (1, 2, 3, 8):
        assert collapse_warnings(dict.fromkeys(names, float(components)), 256, components) == {}
    assert collapse_warnings(dict.fromkeys(names, 1.05), 256, 2).keys() == set(names)


def test_a_collapse_is_told_now_and_then(run, caplog):
    monitor = Monitor(run)
    line = {"hours_seen": 0.1, "padded_share": 0.0, "mixture_perplexity": 1.0}
    for step in range(10, 101, 10):
        monitor.write(line | {"step": step, "phase": 1 + (step > 60)})
    told = [record.args[0] for record in caplog.records if "COLLAPSE: " in record.getMessage()]
    assert told == [10, 20, 40, 70]


def test_a_prediction_no_better_than_the_clips_mean_is_told_now_and_then(run, caplog, monkeypatch):
    monkeypatch.setattr(hidden_frames, "FEWEST_STEPS", 20)
    monkeypatch.setattr(hidden_frames, "LINES", 2)
    monitor = Monitor(run)
    line = {"hours_seen": 0.1, "padded_share": 0.0, "phase": 1, "gain_over_clip_mean": -0.1}
    for step in range(10, 101, 10):
        monitor.write(line | {"step": step})
    told = [record.args[0] for record in caplog.records if "knows nothing of what is said" in record.getMessage()]
    assert told == [20, 40, 80]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"prediction_perplexity": 1.1}, "nearly the same prediction (prediction_perplexity 1.10, below 2)"),
        ({"mixture_perplexity": 1.5}, "one component of the mixture (mixture_perplexity 1.50, below 3)"),
        ({"target_perplexity": 1.25}, "nearly the same target (target_perplexity 1.25, below 2)"),
        ({"effective_ranks": [100.0, 2.5]}, "layer 1 have an effective rank of 2.5 out of 256, below 2.6"),
    ],
)
def test_a_warning_quotes_the_figure_that_triggered_it(changed, sentence):
    healthy = {"prediction_perplexity": 50.0, "mixture_perplexity": 80.0, "target_perplexity": 40.0}
    (found,) = collapse_warnings(healthy | changed, 256, 100).values()
    assert sentence in found and "80.00" not in found


@pytest.fixture
def run(tmp_path):
    return SimpleNamespace(
        accelerator=Accelerator(cpu=True),
        loss_sums={},
        output_dir=tmp_path,
        schedule=SimpleNamespace(total_steps=10),
        arguments=SimpleNamespace(run=RunArguments(phase1_steps=10, phase2_steps=0, phase1_warmup_steps=0)),
        state=SimpleNamespace(step=0, seconds=0.0),
        data=SimpleNamespace(seconds=0.0, bad_audio=SimpleNamespace(skipped=0), samples_padded=0, samples_real=0),
        model=SimpleNamespace(config=SimpleNamespace(hidden_size=64), mixture=DiagonalGaussianMixture(8, 2)),
    )


def test_the_bar_and_the_rate_of_audio_leave_out_what_is_no_step(run, tmp_path, monkeypatch):
    """The clock is a list of seconds; a fit of 1,000 s lies between two lines of metrics."""
    now = [0.0]
    monkeypatch.setattr("training.pretraining.monitoring.time.monotonic", lambda: now[0])
    monitor = Monitor(run)
    line = {"step": 1, "phase": 1, "hours_seen": 5 / 3600, "padded_share": 0.0, "masked_kl": 2.0}
    monitor.write(dict(line))
    assert "nan" not in monitor.bar.postfix and "of audio/s" not in monitor.bar.postfix
    with monitor.paused():
        now[0] += 1000.0
    now[0] += 10.0
    monitor.write(dict(line) | {"step": 2, "hours_seen": 205 / 3600})
    assert "20 s of audio/s" in monitor.bar.postfix
    assert read_history(tmp_path / "metrics.jsonl")[1]["audio_seconds_per_second"] == pytest.approx(20.0)


def test_a_file_gets_lines_of_the_log_and_a_terminal_a_bar(run, monkeypatch, caplog, capsys):
    """With the time left from the second line on: the first step compiles and fills caches."""
    caplog.set_level("INFO")
    now = [0.0]
    monkeypatch.setattr("training.pretraining.monitoring.time.monotonic", lambda: now[0])
    line = {"phase": 1, "hours_seen": 5 / 3600, "padded_share": 0.0, "masked_kl": 2.0}
    monitor = Monitor(run)
    for step in (2, 6, 10):
        now[0] += 120.0
        monitor.write(line | {"step": step, "hours_seen": step / 36})
    figures = "phase 1: masked KL 2.000 nats{}, 0.0 % padding"
    assert [record.getMessage() for record in caplog.records if "Step" in record.msg] == [
        f"Step 2 of 10, {figures.format('')}.",
        f"Step 6 of 10, {figures.format(', 3 s of audio/s')}; about 2 minutes left.",
        f"Step 10 of 10, {figures.format(', 3 s of audio/s')}.",
    ]
    assert "step/s" not in capsys.readouterr().err
    caplog.clear()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    Monitor(run).write(line | {"step": 2})
    assert not caplog.records and "masked KL 2.000 nats, 0.0 % padding" in capsys.readouterr().err


def test_where_all_steps_were_skipped_there_is_no_gradient_norm(run):
    monitor, broken = Monitor(run), torch.tensor(True)
    monitor.count_step([{"masked_kl": (torch.tensor(math.nan), 3)}], torch.tensor(math.inf), broken)
    assert means(Run.totals(run).losses) == {}
    monitor.count_step([{"masked_kl": (torch.tensor(6.0), 3)}], torch.tensor(0.5), ~broken)
    assert means(Run.totals(run).losses) == {"masked_kl": 2.0, "gradient_norm": 0.5}


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ({}, {}),
        ({"visible_loss": torch.tensor(1.0)}, {"visible_kl": 1.0, "loss": 2.5}),
        (
            {"visible_loss": torch.tensor(1.0), "frozen_loss": torch.tensor(0.5)},
            {"visible_kl": 1.0, "frozen_kl": 0.5, "loss": 2.5},
        ),
    ],
)
def test_the_minimised_loss_stands_beside_its_parts_where_there_are_several(run, others, expected):
    """Means over the frames of two micro-batches, of which the second has three times the frames of the first."""
    monitor, visible = Monitor(run), 4 if others else 0

    def sums(scale, frames):
        losses = {"loss": torch.tensor(2.5), "masked_loss": torch.tensor(3.0)} | others
        scaled = {name: scale * value for name, value in losses.items()}
        return loss_parts(
            SJepaForPreTrainingOutput(**scaled, num_masked_frames=6 * frames, num_visible_frames=visible * frames)
        )

    monitor.count_step([sums(0.4, 1), sums(1.2, 3)], torch.tensor(0.5), torch.tensor(False))
    assert means(Run.totals(run).losses) == pytest.approx({"masked_kl": 3.0, "gradient_norm": 0.5} | expected)


def test_ranks_of_features_that_are_not_finite_are_told_and_not_written(run, tmp_path, caplog):
    Monitor(run).write(
        {"step": 3, "phase": 1, "hours_seen": 0.1, "padded_share": 0.0, "effective_ranks": [2, math.nan]}
    )
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "effective_ranks" not in json.loads(text)
    assert "Step 3: features are not finite, and effective ranks left out: [2, nan]" in caplog.text


def test_what_is_known_at_hidden_frames_is_shown_everywhere(run, tmp_path, monkeypatch, caplog):
    """History, trackers, bar, and a word in the log where it is nothing."""
    tracked = []
    monkeypatch.setattr(run.accelerator, "log", lambda figures, step: tracked.append(figures))
    monitor = Monitor(run)
    line = {"phase": 1, "hours_seen": 0.1, "padded_share": 0.0, "masked_kl": 3.2, "clip_mean_kl": 3.0}
    line |= {"gain_over_clip_mean": -0.2, "masked_kl_by_distance": [3.1, 3.2, None, None, 3.3]}
    line |= {"clip_mean_kl_by_distance": [3.0, 3.0, None, None, 3.0]}
    for step in range(1000, 3000, 100):
        monitor.write(line | {"step": step})
    assert "masked KL 3.200 nats, clip's mean guess 3.000" in monitor.bar.postfix
    assert read_history(tmp_path / "metrics.jsonl")[0]["masked_kl_by_distance"] == [3.1, 3.2, None, None, 3.3]
    by_distance = {name: value for name, value in tracked[0].items() if name.startswith("masked_kl_by_distance")}
    assert by_distance == {f"masked_kl_by_distance/{d}": kl for d, kl in ((1, 3.1), (2, 3.2), (5, 3.3))}
    told = [record.getMessage() for record in caplog.records if "0.20 nats above" in record.getMessage()]
    assert len(told) == 1 and told[0].startswith("Step 1900: at hidden frames")


def test_a_resumed_run_writes_its_lines_once(tmp_path):
    history = tmp_path / "metrics.jsonl"
    history.write_text("".join(json.dumps({"step": step}) + "\n" for step in (10, 20, 30)))
    with history.open("a") as file:
        file.write('{"step": 4{"step": 20}\n{"st')  # what a full disk and then a killed run leave
    forget_after(history, 20)
    assert [json.loads(line)["step"] for line in history.read_text().splitlines()] == [10, 20]
    forget_after(tmp_path / "absent.jsonl", 20)


def test_workers_count_where_the_system_tells_less_of_them(monkeypatch):
    """As macOS does."""
    own, gib = os.getpid(), 2**30

    def full(process):
        if process.pid != own:
            raise psutil.AccessDenied
        return SimpleNamespace(pss=gib, rss=5 * gib)

    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [psutil.Process(os.getppid())])
    monkeypatch.setattr(psutil.Process, "memory_full_info", full)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: SimpleNamespace(rss=2 * gib))
    assert resident_gib() == 3
