"""What is promised in fp32 is fp32: whatever the model's dtype, the default dtype and autocast."""

import re

import pytest
import torch
from torch import nn

from sjepa_hf import (
    DiagonalGaussianMixture,
    SJepaForAudioFrameClassification,
    SJepaForCTC,
    SJepaForPreTraining,
    SJepaForSequenceClassification,
    SJepaForXVector,
    SJepaModel,
)
from sjepa_hf.float32 import SJepaGroupNorm, SJepaLayerNorm
from sjepa_hf.frames import length_mask
from sjepa_hf.front_end import SJepaLogMelFrontEnd
from sjepa_hf.hmm_mixture import HmmMixture
from sjepa_hf.kmeans import kmeans, nearest
from sjepa_hf.modeling_sjepa import SJepaPositionalConvEmbedding
from sjepa_hf.modeling_sjepa_heads import SJepaAMSoftmaxLoss, masked_mean_and_std
from sjepa_hf.soft_targets import soft_target_divergence


CLASSES = (
    SJepaModel,
    SJepaForPreTraining,
    SJepaForCTC,
    SJepaForSequenceClassification,
    SJepaForAudioFrameClassification,
    SJepaForXVector,
)


def autocast() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def assert_fp32(found: torch.Tensor, exact: torch.Tensor, tolerance: float = 1e-5):
    """Within what fp32 rounding may do; a sum or product formed in bf16 is off by a hundred times as much."""
    torch.testing.assert_close(found.double(), exact.double(), atol=tolerance * exact.abs().max().item(), rtol=0)


def naive(values: torch.Tensor, lengths, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """Each clip's real frames through the library's group norm; padded frames with the same statistics."""
    rows = []
    for row, length in zip(values, lengths):
        real = row[:length]
        normed = (row - real.mean()) / (real.var(correction=0) + eps).sqrt()
        rows.append(normed * weight + bias)
    return torch.stack(rows)


def test_masked_group_norm_and_its_gradient_against_float64():
    norm = SJepaGroupNorm(6).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    values = (torch.randn(3, 40, 6) * 3 + 1).requires_grad_()
    lengths = torch.tensor([40, 23, 1])
    direction = torch.randn(3, 40, 6)
    ours = norm(values, length_mask(lengths, 40))
    ours.mul(direction).sum().backward()
    gradients = values.grad.clone(), norm.weight.grad.clone(), norm.bias.grad.clone()
    values.grad = norm.weight.grad = norm.bias.grad = None
    expected = naive(values.double(), lengths, norm.weight, norm.bias, norm.eps)
    expected.mul(direction).sum().backward()
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-5)
    for found, wanted in zip(gradients, (values.grad, norm.weight.grad, norm.bias.grad)):
        torch.testing.assert_close(found.double(), wanted.double(), atol=1e-4, rtol=1e-4)


def test_where_all_frames_count_it_is_the_library_group_norm():
    norm, values = SJepaGroupNorm(6), torch.randn(2, 30, 6)
    expected = torch.nn.functional.group_norm(values.mT, 1, norm.weight, norm.bias, norm.eps).mT
    for counted in (None, torch.ones(2, 30, dtype=torch.bool)):
        torch.testing.assert_close(norm(values, counted), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_compute_in_fp32(dtype):
    values = (torch.randn(2, 8, 8) * 300).to(dtype)  # squares overflow fp16
    for norm, arguments in (
        (SJepaLayerNorm(8), ()),
        (SJepaGroupNorm(8), ()),
        (SJepaGroupNorm(8), (length_mask(torch.tensor([8, 5]), 8),)),
    ):
        normed = norm(values, *arguments)
        assert normed.dtype == dtype
        torch.testing.assert_close(normed.float(), norm(values.float(), *arguments), atol=0.02, rtol=0.01)


# Under autocast


@pytest.mark.parametrize("backward_inside", [False, True])
def test_group_norm_under_autocast(backward_inside):
    lengths = torch.tensor([300, 217])
    norm = SJepaGroupNorm(64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    values, direction = (torch.randn(2, 300, 64) * 3 + 5).requires_grad_(), torch.randn(2, 300, 64)
    with autocast():
        found = norm(values, length_mask(lengths, 300))
        if backward_inside:
            found.mul(direction).sum().backward()
    if not backward_inside:
        found.mul(direction).sum().backward()
    gradients = values.grad.clone(), norm.weight.grad.clone(), norm.bias.grad.clone()
    exact_norm, exact_values = SJepaGroupNorm(64).double(), values.detach().double().requires_grad_()
    exact_norm.load_state_dict(norm.state_dict())
    exact = naive(exact_values, lengths, *exact_norm.parameters(), norm.eps)
    exact.mul(direction).sum().backward()
    assert_fp32(found, exact)
    for gradient, wanted in zip(gradients, (exact_values, *exact_norm.parameters())):
        assert_fp32(gradient, wanted.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_of_half_precision_frames_are_fp32(dtype):
    """As the convolutions give them: constant frames but for one channel, whose deviation is known."""
    values = torch.zeros(1, 3199, 64, dtype=dtype)
    values[:, :, ::2] = 1
    with autocast():
        normed = SJepaGroupNorm(64, eps=0.0)(values, torch.ones(1, 3199, dtype=torch.bool))
    assert normed.abs().eq(1).all(), "mean 1/2 and deviation 1/2, exactly"


def test_layer_norm_under_autocast():
    norm, values = SJepaLayerNorm(256), torch.randn(4, 256) * 3 + 20
    with autocast():
        assert_fp32(norm(values), nn.functional.layer_norm(values.double(), (256,)))


def test_log_mel_under_autocast(make_config):
    front_end, waveform = SJepaLogMelFrontEnd(make_config("log_mel")), 0.1 * torch.randn(2, 4000)
    cosine, sine = (waveform.double().unfold(1, 400, 320) @ front_end.fourier.double()).chunk(2, dim=-1)
    log_mel = ((cosine.square() + sine.square()) @ front_end.mel_filters.double()).clamp_min(1e-10).log()
    with autocast():
        assert_fp32(front_end(waveform), nn.functional.group_norm(log_mel.mT, 1).mT)


def test_positional_convolution_under_autocast_on_a_cpu(make_config):
    layer = SJepaPositionalConvEmbedding(make_config())  # 12 channels a group: oneDNN's bf16 would be noise
    layer.activation = nn.Identity()
    values, conv = torch.randn(1, 49, 48), layer.conv
    exact = nn.functional.conv1d(
        values.mT.double(), conv.weight.double(), conv.bias.double(), padding=8, groups=4
    ).mT[:, :49]  # fmt: skip
    with autocast():
        assert_fp32(layer(values), exact)


def test_mixture_under_autocast():
    mixture, twin = HmmMixture(20, 24), HmmMixture(20, 24)
    mixture.means.add_(10)
    mixture.means[0], mixture.weights[0] = 1000, 0  # dead
    mixture.transitions.pairs.copy_(torch.rand(20, 20))
    twin.load_state_dict(mixture.state_dict())
    features = torch.randn(400, 24) + 10

    def counted(mixture):
        return mixture.statistics(features, mixture.posterior(features))

    def asked(mixture) -> tuple[torch.Tensor, ...]:
        posteriors, statistics = mixture.clip_expectation(features.view(4, 100, 24), temperature=2.0)
        return mixture.posterior(features), mixture.log_joint(features), *counted(mixture), posteriors, *statistics

    def updated(mixture) -> None:
        mixture.apply_statistics(counted(mixture), decay=0.5)
        mixture.apply_statistics(counted(mixture), decay=0.5, average="parameters")
        assert mixture.reseed_dead() > 0

    with autocast():
        found = asked(mixture)
        updated(mixture)
    wanted = asked(twin)
    updated(twin)
    for ours, theirs in zip((*found, *mixture.buffers()), (*wanted, *twin.buffers()), strict=True):
        assert torch.equal(ours, theirs)


def test_fitting_a_mixture_under_autocast():
    features = torch.randn(600, 8) + 30
    fits = []
    for context in (autocast(), torch.autocast("cpu", enabled=False)):
        mixture = DiagonalGaussianMixture(6, 8)
        with context:
            history = mixture.fit(features, num_iterations=3, generator=torch.Generator().manual_seed(0))
            centroids = kmeans(features, 6, generator=torch.Generator().manual_seed(0))
            fits.append((torch.tensor(history), centroids, nearest(features, centroids), *mixture.buffers()))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*fits))


def test_losses_and_pooling_under_autocast(make_config, padded_batch):
    logits, targets = torch.randn(50, 10) * 5, torch.randn(50, 10).softmax(-1)
    values, mask = torch.randn(2, 300, 16) + 30, torch.arange(300) < torch.tensor([[300], [211]])
    speakers, embeddings, classes = SJepaAMSoftmaxLoss(64, 5), torch.randn(8, 64), torch.arange(8) % 5
    with autocast():
        divergence = soft_target_divergence(logits, targets)
        pooled = masked_mean_and_std(values, mask)
        margin = speakers(embeddings, classes)
    exact = (targets.double() * (targets.double().log() - logits.double().log_softmax(-1))).sum(-1)
    assert_fp32(divergence, exact)
    assert_fp32(pooled[0][1], values[1, :211].double().mean(0))
    assert_fp32(pooled[1][1], values[1, :211].double().std(0))
    normalize = nn.functional.normalize
    cosines = normalize(embeddings.double(), dim=1) @ normalize(speakers.weight.double(), dim=0)
    scores = 30 * (cosines - 0.4 * nn.functional.one_hot(classes, 5))
    assert_fp32(margin, nn.functional.cross_entropy(scores, classes))

    waveforms, attention_mask, lengths = padded_batch
    model = SJepaForCTC(make_config()).eval()
    labels = torch.tensor([[5, 6, 7, 7], [8, 9, -100, -100], [4, -100, -100, -100]])
    with autocast():
        output = model(waveforms, attention_mask, labels=labels)
    log_probs = output.logits.double().log_softmax(-1).transpose(0, 1)
    exact = nn.functional.ctc_loss(
        log_probs, labels.clamp(min=0), model.config.num_frames(lengths), torch.tensor([4, 2, 1])
    )
    assert_fp32(output.loss, exact)


# In checkpoints


def kept(model, name: str) -> bool:
    """Whether a tensor of this name is to stay in fp32 when the model is loaded in another dtype."""
    return "mixture" in name or any(
        re.search(rf"(^|\.){part}(\.|$)", name) for part in model._keep_in_fp32_modules_strict
    )


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("front_end", ["waveform", "log_mel"])
@pytest.mark.parametrize("changes", [{}, {"num_frozen_components": 4, "mixture_transitions": True}])
def test_names_of_what_is_kept_exist_in_each_class(model_class, front_end, changes, make_config):
    model = model_class(make_config(front_end, **changes))
    names = list(model.state_dict())
    for part in model._keep_in_fp32_modules_strict:
        assert any(re.search(rf"(^|\.){part}(\.|$)", name) for name in names), part


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_kept_is_made_and_loaded_in_fp32(model_class, dtype, config, tmp_path):
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        made = model_class(config)
    finally:
        torch.set_default_dtype(default)
    made.save_pretrained(tmp_path)
    for model in (made, model_class.from_pretrained(tmp_path, dtype=dtype)):
        assert model.dtype == dtype
        for name, tensor in model.state_dict().items():
            assert tensor.dtype == (torch.float32 if kept(model, name) else dtype), name
    assert {name for name, _ in made.named_modules() if "norm" in name.split(".")[-1]} == {
        name for name, module in made.named_modules() if isinstance(module, SJepaLayerNorm | SJepaGroupNorm)
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_mixture_set_aside_is_kept_too(dtype, make_config, tmp_path):
    model = SJepaForPreTraining(make_config(mixture_transitions=True))
    model.replace_mixture(7, 5, keep_frozen=True)
    model.describe_mixture(
        "encoder", [1], whitening=(torch.randn(model.config.hidden_size), torch.randn(model.config.hidden_size, 5))
    )
    model.save_pretrained(tmp_path)
    loaded = SJepaForPreTraining.from_pretrained(tmp_path, dtype=dtype).state_dict()
    of_mixtures = {name for name in loaded if "mixture" in name}
    assert {name.partition(".")[0] for name in of_mixtures} == {"mixture", "frozen_mixture", "mixture_whitening"}
    for name in of_mixtures:
        assert loaded[name].dtype == torch.float32 and loaded[name].equal(model.state_dict()[name]), name


@pytest.mark.parametrize("lengths", [None, torch.tensor([40, 23])])
def test_norms_of_float64_keep_its_digits(lengths):
    values = torch.randn(2, 40, 6, dtype=torch.float64) * 3 + 1
    ours = SJepaGroupNorm(6).double()(values, lengths if lengths is None else length_mask(lengths, 40))
    expected = naive(values, [40, 40] if lengths is None else lengths, torch.ones(()), torch.zeros(()), 1e-5)
    torch.testing.assert_close(ours, expected, atol=1e-13, rtol=1e-13)
    ours = SJepaLayerNorm(6).double()(values)
    torch.testing.assert_close(ours, torch.nn.functional.layer_norm(values, (6,)), atol=1e-13, rtol=1e-13)


def test_buffers_go_up_to_float64_and_never_below_fp32():
    mixture = DiagonalGaussianMixture(3, 2)
    means = mixture.means.clone()
    for cast in (torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.double, torch.nn.Module.half):
        cast(mixture)
        assert mixture.means.dtype == (torch.float64 if cast is torch.nn.Module.double else torch.float32)
        assert mixture.means.float().equal(means)
