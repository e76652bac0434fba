"""Units: of the mixture and of the prediction, from a checkpoint alone, with and without the package."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from huggingface_hub.errors import StrictDataclassError
from noise_batches import collate
from processes import without_the_package
from safetensors.torch import save_file
from transformers import AutoModelForPreTraining

from sjepa_hf import DiagonalGaussianMixture, SJepaForPreTraining, SJepaModel
from sjepa_hf.configuration_sjepa import MIXTURE_FEATURES
from sjepa_hf.frame_features import FRAME_FEATURES
from sjepa_hf.opening import EMA_ENCODER, open_with_ema
from sjepa_hf.units import PADDING, UnitRun, units_of
from training.common.processes import Coordinator
from training.data.masking import SpanMask
from training.targets.layer_choice import LayerChoice
from training.targets.sampling import FitAudio
from training.targets.targets import FrozenTargets, OnlineTargets


LENGTHS = (16000, 7000)  # 49 and 21 frames


def make_batch() -> dict:
    clips = [torch.randn(length).mul(0.1).numpy() for length in LENGTHS]
    made = collate(clips, SpanMask(0.65, 10), torch.Generator().manual_seed(0))
    return made | {"seconds": sum(LENGTHS) / 16000, "seed": 7}


def fitted(mixture: DiagonalGaussianMixture, features: torch.Tensor) -> DiagonalGaussianMixture:
    """A mixture that is soft enough for its posteriors to say something."""
    mixture.fit(features.flatten(0, 1), num_passes=2, num_iterations=2)
    mixture.variances.mul_(2)
    return mixture


@pytest.mark.parametrize("transitions", [False, True])
@pytest.mark.parametrize("name", FRAME_FEATURES)
def test_units_of_phase_1_are_the_run_s_targets_bit_for_bit(make_config, tmp_path, name, transitions):
    batch = make_batch()
    batch["input_values"] *= torch.linspace(0.01, 1, 16000)
    model = SJepaForPreTraining(make_config(mixture_transitions=transitions))
    model.replace_mixture(6, FRAME_FEATURES[name]().num_features)
    targets = FrozenTargets(model.mixture, name, temperature=2.0)
    fitted(model.mixture, targets.features(batch))
    targets.describe(model)
    model.save_pretrained(tmp_path)
    again = AutoModelForPreTraining.from_pretrained(tmp_path)
    expected = targets.posteriors(batch)
    found = again.unit_posteriors(batch["input_values"], batch["attention_mask"])
    assert found.equal(expected)
    units = again.units(batch["input_values"], batch["attention_mask"], top_k=3)
    assert units.units[1, :21].equal(expected[1, :21].argmax(-1)) and units.units[1, 21:].eq(PADDING).all()
    assert units.lengths.tolist() == [49, 21] and len(units.units[0].unique()) > 1
    assert units.top_units[..., 0].equal(units.units)
    assert units.top_posteriors[0].equal(expected[0].topk(3).values) and not units.top_posteriors[1, 21:].any()


@pytest.mark.parametrize(
    ("layers", "instance_norm", "dims"),
    [(None, False, None), ((1, 3), True, None), ((0, 2), True, 8), ((3,), False, 48)],
)
def test_units_of_phase_2_are_the_run_s_targets_bit_for_bit(make_config, tmp_path, layers, instance_norm, dims):
    batch, model = make_batch(), SJepaForPreTraining(make_config("log_mel", hidden_dropout=0.0)).eval()
    model.replace_mixture(6, dims or 48)
    options = {"layers": layers, "instance_norm": instance_norm, "num_components": dims, "temperature": 3.0}
    targets = OnlineTargets(model.sjepa, model.mixture, LayerChoice(2), Accelerator(cpu=True), **options)
    with torch.no_grad():
        for weight in targets.teacher.parameters():
            weight.add_(0.01 * torch.randn_like(weight))  # as the student moves away
    audio = FitAudio(lambda: [batch] * 3, Coordinator(targets.accelerator))
    targets.seed(audio, num_frames=200, seed=0, num_iterations=2)
    model.mixture.variances.mul_(20)
    targets.describe(model)
    model.save_pretrained(tmp_path)
    expected = targets.posteriors(batch)
    with pytest.raises(ValueError, match="has no EMA encoder"):
        open_with_ema(tmp_path)
    (tmp_path / EMA_ENCODER).parent.mkdir()
    save_file(targets.teacher.state_dict(), tmp_path / EMA_ENCODER)
    inputs = batch["input_values"], batch["attention_mask"]
    assert open_with_ema(tmp_path).eval().unit_posteriors(*inputs).equal(expected)
    own = AutoModelForPreTraining.from_pretrained(tmp_path).unit_posteriors(*inputs)
    assert not own.equal(expected), "the student is another encoder"
    OnlineTargets.__init__(targets, model.sjepa, model.mixture, LayerChoice(2), Accelerator(cpu=True), **options)
    if dims:
        targets.whitening.load_state_dict(model.mixture_whitening.state_dict())
    assert own.equal(targets.posteriors(batch)), "bit for bit where the EMA encoder is the encoder"
    half = AutoModelForPreTraining.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert all(a.equal(b) for a, b in zip(half.buffers(), model.buffers()) if a.dtype == torch.float32)
    assert type(SJepaModel.from_pretrained(tmp_path)) is SJepaModel


def test_units_of_the_prediction_are_those_of_the_head_and_of_each_clip_alone(make_config):
    batch, model = make_batch(), SJepaForPreTraining(make_config("log_mel")).eval()
    found = model.units(batch["input_values"], batch["attention_mask"], source="prediction", top_k=10)
    logits = model(batch["input_values"], batch["attention_mask"]).logits
    assert found.units[1, :21].equal(logits[1, :21].argmax(-1))
    torch.testing.assert_close(found.top_posteriors[0].sum(-1), torch.ones(49))
    alone = model.units(batch["input_values"][1:, : LENGTHS[1]], source="prediction")
    assert alone.units[0].equal(found.units[1, :21]) and alone.lengths.tolist() == [21]


@pytest.mark.parametrize("layers", [[2], [1, 2]])
def test_posteriors_do_not_depend_on_the_mode_of_the_model(make_config, layers):
    """A loop of one's own asks for targets while the model is trained: without dropout and SpecAugment."""
    over = dict(mixture_features="encoder", mixture_layers=layers)
    config = make_config("log_mel", hidden_dropout=0.5, mask_time_prob=0.5, **over)
    batch, model = make_batch(), SJepaForPreTraining(config).eval()
    fitted(model.mixture, model.sjepa(batch["input_values"]).last_hidden_state.detach())
    expected = [model.unit_posteriors(batch["input_values"], source=source) for source in ("mixture", "prediction")]
    model.train().predictor.eval()
    model.config.return_dict = False
    found = [model.unit_posteriors(batch["input_values"], source=source) for source in ("mixture", "prediction")]
    assert all(a.equal(b) for a, b in zip(found, expected))
    assert model.training and model.sjepa.encoder.training and not model.predictor.training


def test_runs_have_times():
    posteriors = torch.eye(3)[torch.tensor([[2, 2, 0, 0, 0, 2], [1, 1, 1, 0, 0, 0]])]
    first, second = units_of(posteriors, torch.tensor([6, 3])).runs()
    assert [run.unit for run in first] == [2, 0, 2] and [run.unit for run in second] == [1]
    np.testing.assert_allclose([run.start for run in first], [0.0025, 0.0425, 0.1025])
    np.testing.assert_allclose([run.duration for run in first], [0.04, 0.06, 0.02])
    assert second[0] == UnitRun(1, 0.0025, 0.06)


def test_what_cannot_be_gets_a_sentence(make_config):
    model, waveforms = SJepaForPreTraining(make_config()), torch.randn(1, 4000)
    with pytest.raises(ValueError, match="does not say what the mixture is over.*prediction"):
        model.units(waveforms)
    with pytest.raises(ValueError, match="`source` is 'predictions'; choose one of mixture, prediction"):
        model.units(waveforms, source="predictions")
    for top_k in (-1, 11):
        with pytest.raises(ValueError, match=f"`top_k` is {top_k}; it must lie between 0 and the 10 components"):
            model.units(waveforms, source="prediction", top_k=top_k)
    model.describe_mixture("mfcc")
    with pytest.raises(ValueError, match="'mfcc', which has 39 values a frame, but the mixture is over 48"):
        model.units(waveforms)
    for features, source in (("mfcc", "mixture"), (None, "prediction")):
        other = make_config(conv_stride=(5, 2, 2, 2, 2, 2, 1), mixture_feature_size=39, mixture_features=features)
        with pytest.raises(
            ValueError, match="makes frames of 400 samples every 160 .* units are made for 400 every 320"
        ):
            SJepaForPreTraining(other).units(waveforms, source=source)
    assert set(MIXTURE_FEATURES) == {*FRAME_FEATURES, "encoder"}
    wrong = {"mixture_features": "mel"}, {"mixture_features": "encoder"}, {"mixture_layers": [1]}
    wrong += ({"mixture_features": "encoder", "mixture_layers": [4]},)
    for fields in wrong:
        with pytest.raises(StrictDataclassError, match="`mixture_(features|layers)`"):
            make_config(**fields)


def test_another_mixture_forgets_what_the_last_one_was_over(make_config):
    model = SJepaForPreTraining(make_config())
    model.describe_mixture("encoder", [2], True, (torch.zeros(48), torch.randn(48, 10)), 0.0)
    model.replace_mixture(5, 39)
    assert model.config.mixture_features is None and not model.config.mixture_whitened
    assert not any("whitening" in name for name in model.state_dict())


def test_units_work_without_the_package(make_config, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = SJepaForPreTraining(make_config()).eval()
    model.replace_mixture(6, 39)
    model.describe_mixture("mfcc_cmn")
    waveforms = torch.arange(16000).view(1, -1).mul(0.3).sin() * torch.linspace(0, 1, 16000)
    fitted(model.mixture, FRAME_FEATURES["mfcc_cmn"]()(waveforms))
    model.save_pretrained(tmp_path / "mine")
    printed = without_the_package(f"""
import torch, transformers
model = transformers.AutoModelForPreTraining.from_pretrained({str(tmp_path / "mine")!r}, trust_remote_code=True)
waveforms = torch.arange(16000).view(1, -1).mul(0.3).sin() * torch.linspace(0, 1, 16000)
for source in ("mixture", "prediction"):
    found = model.units(waveforms, source=source)
    print(*found.units[0].tolist())
    print(sum(run.duration for run in found.runs()[0]))
""").splitlines()
    for line, source in zip(printed[::2], ("mixture", "prediction")):
        assert line == " ".join(map(str, model.units(waveforms, source=source).units[0].tolist()))
    assert float(printed[1]) == pytest.approx(0.98)
