"""Layers as a mixture sees them: normalised by clip, whitened."""

import torch

from sjepa_hf.layer_features import SJepaWhitening, instance_normalize, layer_states, read_layers
from sjepa_hf.modeling_sjepa import SJepaModel


def test_normalised_clips_have_mean_0_and_variance_1_whatever_the_padding_holds():
    real = torch.arange(49) < torch.tensor([[49], [21]])
    features = torch.randn(2, 49, 5).mul(3).add(100)
    features[~real] = 1e6
    normalised = instance_normalize(features, real)
    for clip, frames in zip(normalised, real):
        torch.testing.assert_close(clip[frames].mean(0), torch.zeros(5), atol=1e-5, rtol=0)
        torch.testing.assert_close(clip[frames].square().mean(0), torch.ones(5), atol=1e-4, rtol=0)
        assert not clip[~frames].any()
    constant = instance_normalize(torch.full((1, 4, 5), 7.0), torch.ones(1, 4, dtype=torch.bool))
    assert not constant.any(), "a clip that does not change is no error"


@torch.no_grad()
def test_one_layer_is_read_without_those_after_it_and_several_are_averaged(make_config):
    encoder = SJepaModel(make_config("log_mel")).eval()
    waveforms = torch.randn(2, 4000)
    states = encoder(waveforms, output_hidden_states=True).hidden_states
    for layers in ([0], [2], [1, 3]):
        expected = torch.stack([states[layer] for layer in layers]).mean(0)
        assert read_layers(encoder, waveforms, None, layers).equal(expected)
    in_order = zip(layer_states(encoder, waveforms, None, [3, 1]), (states[3], states[1]), strict=True)
    assert all(found.equal(state) for found, state in in_order)
    real = torch.arange(states[0].shape[1]) < torch.tensor([[12], [7]])
    expected = torch.stack([instance_normalize(states[layer], real) for layer in (1, 3)]).mean(0)
    assert read_layers(encoder, waveforms, None, [1, 3], real).equal(expected), "each before they are averaged"
    encoder.bfloat16()
    states = encoder(waveforms, output_hidden_states=True).hidden_states
    assert states[1].dtype == torch.bfloat16
    expected = (states[1].float() + states[3].float()) / 2
    assert read_layers(encoder, waveforms, None, [1, 3]).equal(expected), "what is read is averaged in fp32"


def test_whitening_stays_in_fp32():
    module = SJepaWhitening(6, 2)
    module.mean.copy_(torch.randn(6))
    module.directions.copy_(torch.randn(6, 2))
    features = torch.randn(3, 5, 6)
    expected = module(features)
    torch.testing.assert_close(expected, (features - module.mean) @ module.directions)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(features).equal(expected)
    assert module.bfloat16()(features).equal(expected)
