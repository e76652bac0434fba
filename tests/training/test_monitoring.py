import json
import math

import pytest
import torch

from sjepa_hf import DiagonalGaussianMixture, SJepaForPreTrainingOutput
from training.monitoring import collapse_warnings, entropy_bits, forget_after, target_metrics


def test_entropy_in_bits():
    probabilities = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4])
    assert entropy_bits(probabilities).tolist() == pytest.approx([0.0, 1.0, 2.0])


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
    assert collapse_warnings(healthy, 256) == []
    assert "same prediction" in collapse_warnings(healthy | {"prediction_perplexity": 1.1}, 256)[0]
    assert "almost one component" in collapse_warnings(healthy | {"mixture_perplexity": 1.5}, 256)[0]
    assert "layer 1" in collapse_warnings(healthy | {"effective_ranks": [100.0, 1.5]}, 256)[0]


def test_a_resumed_run_writes_its_lines_once(tmp_path):
    history = tmp_path / "metrics.jsonl"
    history.write_text("".join(json.dumps({"step": step}) + "\n" for step in (10, 20, 30)))
    with history.open("a") as file:
        file.write('{"step": 4{"step": 20}\n{"st')  # what a full disk and then a killed run leave
    forget_after(history, 20)
    assert [json.loads(line)["step"] for line in history.read_text().splitlines()] == [10, 20]
    forget_after(tmp_path / "absent.jsonl", 20)
