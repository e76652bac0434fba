"""
The released training loop and this one, ten steps of each phase in float64, from the same weights over the same clips
and masks: losses, gradient norms, targets, weights, mixture and EMA encoder.

`tests/golden/reference_trajectory.safetensors` holds the released run: its training loop with a plain optimizer step.
"""

from pathlib import Path

import pytest
import soundfile
import torch
import torchaudio
from noise_batches import collate
from safetensors.torch import load_file

from sjepa_hf import DiagonalGaussianMixture
from sjepa_hf.convert_original import convert_state_dict
from training import pretrain
from training.data.masking import SpanMask
from training.pretraining import phases
from training.pretraining.monitoring import read_history
from training.pretraining.run import Run
from training.targets.targets import FrozenTargets, OnlineTargets


GOLDEN = Path(__file__).parents[2] / "golden"
STEPS = 10
RECIPE = """
model_config:
  hidden_size: 32
  num_hidden_layers: 2
  num_attention_heads: 4
  intermediate_size: 64
  conv_dim: [16, 16, 16, 16, 16, 16, 16]
  predictor_intermediate_size: 64
  hidden_dropout: 0.0
  activation_dropout: 0.0
  attention_dropout: 0.0
  feat_proj_dropout: 0.0
  predictor_dropout: 0.0
  layerdrop: 0.0
mixed_precision: "no"
report_to: none
num_workers: 0
visible_loss: false
p_mix: 0.0
p_noise: 0.0
phase1_components: 20
phase2_components: 30
phase1_learning_rate: 1.0e-3
phase2_learning_rate: 2.0e-4
phase1_warmup_steps: 0
phase2_warmup_steps: 0
phase1_schedule: constant
phase2_schedule: constant
start_layer: 2
adaptive_layer: false
mixture_average: parameters
ema_decays: 0.999
logging_steps: 1
"""


@pytest.fixture(scope="module")
def released():
    return load_file(GOLDEN / "reference_trajectory.safetensors")


def part(released: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors below a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in released.items() if name.startswith(prefix)}


def batches(released):
    for waveforms, masks in zip(released["waveforms"], released["masks"].bool(), strict=True):
        clips = list(waveforms.numpy())
        made = collate(clips, SpanMask(0.5, 10), torch.Generator().manual_seed(0))
        yield made | {
            "mask_time_indices": masks,
            "masked_positions": masks.flatten().nonzero()[:, 0],
            "visible_positions": (~masks).flatten().nonzero()[:, 0],
            "longest_visible": int((~masks).sum(1).max()),
            "seconds": 2.0,
            "seed": 0,
        }


@pytest.fixture
def make_run(released, tmp_path):
    """A run in float64 that starts from the released weights of a phase and reads the released batches."""

    def make(phase: int) -> Run:
        (tmp_path / "clips").mkdir()
        soundfile.write(tmp_path / "clips" / "0.wav", released["waveforms"][0, 0].numpy(), 16000, subtype="FLOAT")
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(RECIPE)
        arguments = ["--config", str(recipe), "--train_data", str(tmp_path / "clips")]
        arguments += ["--output_dir", str(tmp_path / "out")]
        arguments += [f"--phase{phase}_steps", str(STEPS), f"--phase{3 - phase}_steps", "0"]
        run = pretrain.prepare(pretrain.parse_arguments(arguments))
        run.model.double()
        weights = convert_state_dict(part(released, f"phase{phase}.state.0."))
        missing, unexpected = run.model.load_state_dict(weights, strict=False)
        assert not unexpected and all(name.startswith("mixture.") for name in missing)
        given = batches(released)
        run.data.next = lambda: next(given)
        run.data.fresh_pass = lambda purpose, number=0: batches(released)
        return run

    return make


def finish(run: Run) -> list[dict]:
    pretrain.pretrain(run)
    run.lock.release()
    return read_history(run.output_dir / "metrics.jsonl")


def set_mixture(mixture, values: dict[str, torch.Tensor]) -> None:
    for name, value in values.items():
        getattr(mixture, name).copy_(value)


def record(monkeypatch) -> list[torch.Tensor]:
    """The posteriors that the steps of a run will predict."""
    found, predict = [], pretrain.predict

    def recorded(run, batch, targets):
        found.append(targets["target_posteriors"].clone())
        return predict(run, batch, targets)

    monkeypatch.setattr(pretrain, "predict", recorded)
    return found


def start_as_released(monkeypatch, released: dict[str, torch.Tensor]) -> None:
    """At the boundary, in place of a seeding of its own: the released mixture, and the released last layer."""
    begin, weights = phases.begin_phase_2, convert_state_dict(part(released, "phase2.state.0."))

    def begin_as_released(run):
        seconds = begin(run)
        set_mixture(run.model.mixture.double(), part(released, "phase2.mixture.0."))
        last = {name: weights[f"cluster_head.output.{name}"] for name in ("weight", "bias")}
        run.model.cluster_head.output.load_state_dict(last)
        return seconds

    monkeypatch.setattr(phases, "begin_phase_2", begin_as_released)


def assert_close(found: torch.Tensor, released: torch.Tensor, name: str) -> None:
    torch.testing.assert_close(found, released, atol=1e-10, rtol=1e-10, msg=lambda message: f"{name}: {message}")


def assert_same(run, history, released, phase):
    """Every loss and gradient norm, and the weights at the end."""
    for ours, name in (("masked_kl", "losses"), ("gradient_norm", "gradient_norms")):
        found = torch.tensor([line[ours] for line in history], dtype=torch.float64)
        assert_close(found, released[f"phase{phase}.{name}"], name)
    found = run.model.state_dict()
    for name, theirs in convert_state_dict(part(released, f"phase{phase}.state.10.")).items():
        assert_close(found[name], theirs, name)


def test_phase_1_is_the_released_one(released, make_run):
    run = make_run(1)
    set_mixture(run.model.mixture, part(released, "phase1.mixture."))
    run.targets.fitted = True
    given = iter(released["phase1.posteriors"])
    run.targets.posteriors = lambda batch: next(given)
    assert_same(run, finish(run), released, 1)


def test_phase_1_targets_are_the_released_ones(released):
    """Over the released MFCC: centred, one frame more than the encoder's, floored 80 dB below the batch's loudest."""
    targets = FrozenTargets(DiagonalGaussianMixture(20, 39))
    set_mixture(targets.mixture, part(released, "phase1.mixture."))
    mfcc = torchaudio.transforms.MFCC(16000, 13, melkwargs={"n_fft": 400, "hop_length": 320, "n_mels": 23})
    deltas = torchaudio.functional.compute_deltas
    for waveforms, theirs in zip(released["waveforms"], released["phase1.posteriors"], strict=True):
        cepstra = mfcc(waveforms)
        features = torch.cat([cepstra, deltas(cepstra), deltas(deltas(cepstra))], dim=1).transpose(1, 2)[:, :49]
        targets.features = lambda batch, features=features: features
        batch = {"lengths": torch.full((len(waveforms),), waveforms.shape[1])}
        torch.testing.assert_close(targets.posteriors(batch).double(), theirs, atol=5e-5, rtol=0)


def test_phase_2_is_the_released_one(released, make_run, monkeypatch):
    monkeypatch.setattr(OnlineTargets, "seed", lambda *_, **__: None)
    run = make_run(2)
    start_as_released(monkeypatch, released)
    targets = record(monkeypatch)
    assert_same(run, finish(run), released, 2)
    assert_close(torch.stack(targets), released["phase2.posteriors"], "posteriors")
    for name, theirs in part(released, "phase2.mixture.10.").items():
        assert_close(getattr(run.model.mixture, name), theirs, name)
    average = convert_state_dict(part(released, "phase2.ema.10."))
    for name, ours in run.targets.teacher.state_dict().items():
        assert_close(ours, average[f"sjepa.{name}"], f"EMA {name}")
