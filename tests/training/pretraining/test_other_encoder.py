"""Encoders of other kinds: what is hidden and what is not, layers, what the model would do by itself, bad input."""

import copy
import json

import pytest
import torch
from other_encoders import KINDS, SMALL, save_other
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    BertConfig,
    HubertConfig,
    SEWConfig,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
)

from sjepa_hf.encoding import reads_padding
from sjepa_hf.opening import open_config
from training.pretraining.other_encoder import normed, open_other_encoder


@pytest.fixture(params=KINDS)
def encoder(request, tmp_path):
    folder = save_other(copy.deepcopy(KINDS[request.param]), tmp_path / "theirs")
    return open_other_encoder(folder, open_config(folder)).train()


def still(encoder):
    """The encoder in training mode, but for dropout and LayerDrop."""
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
        module._forward_hooks = {k: h for k, h in module._forward_hooks.items() if "layer_drop" not in h.__qualname__}
    return encoder


def test_hidden_frames_become_the_models_own_mask_embedding(encoder, padded_batch):
    """And nothing of a frame that is hidden comes through: the layers see the same whatever is said there."""
    waveforms, attention_mask, _ = padded_batch
    hidden = torch.zeros(3, 49, dtype=torch.bool)
    hidden[0, 10:30] = True
    seen = []
    encoder.model.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    encoder(waveforms, attention_mask.bool(), mask_time_indices=hidden).last_hidden_state.sum().backward()
    assert seen[0][0, 10:30].equal(encoder.model.masked_spec_embed.detach().expand(20, 32))
    assert not (seen[0][~hidden] == encoder.model.masked_spec_embed.detach()).all(-1).any()
    assert encoder.model.masked_spec_embed.grad.abs().sum() > 0


def test_clean_passes_hide_nothing_in_training_either(encoder, padded_batch):
    waveforms, attention_mask, _ = padded_batch
    trained = still(encoder)(waveforms, attention_mask.bool(), output_hidden_states=True)
    evaluated = encoder.eval()(waveforms, attention_mask.bool(), output_hidden_states=True)
    assert len(trained.hidden_states) == 4
    for ours, theirs in zip(trained.hidden_states, evaluated.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_clip_alone_is_what_the_published_model_makes_of_it(encoder, tmp_path):
    """Normed by its feature extractor; what is switched off for pretraining changes nothing of this."""
    model = AutoModel.from_pretrained(tmp_path / "theirs").eval()
    samples = 0.1 * torch.randn(12_345) + 0.3
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "theirs")
    inputs = extractor(samples.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    found = encoder.eval()(samples[None], output_hidden_states=True)
    wanted = model(inputs, output_hidden_states=True)
    for ours, theirs in zip(found.hidden_states, wanted.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_padding_on_the_left_and_nan_are_refused(encoder):
    with pytest.raises(ValueError, match="pad clips on the right"):
        encoder(torch.randn(1, 4000), torch.arange(4000)[None] > 9)
    with pytest.raises(ValueError, match="NaN or infinite"):
        encoder(torch.full((1, 4000), torch.nan))


def test_the_first_layers_alone_are_hidden_states(encoder, padded_batch):
    """Later ones do not run; a copy, as the EMA encoder is, does the same."""
    waveforms, attention_mask, _ = padded_batch
    encoder = copy.deepcopy(encoder).eval()
    whole = encoder(waveforms, attention_mask.bool(), output_hidden_states=True)
    layers = encoder.model.encoder.layers
    for count in range(4):
        ran = []
        hooks = [layer.register_forward_hook(lambda *_: ran.append(1)) for layer in layers]  # noqa: B023
        found = encoder(waveforms, attention_mask.bool(), num_layers=count)
        assert found.last_hidden_state.equal(whole.hidden_states[count])
        assert len(ran) == max(count, 1)
        [hook.remove() for hook in hooks]
    assert encoder.model.encoder.layers is layers


def test_padding_reaches_the_encoders_that_are_said_to_read_it(encoder, padded_batch):
    """What the log and the page say of padding."""
    waveforms, attention_mask, lengths = padded_batch
    padded = encoder.eval()(waveforms, attention_mask.bool()).last_hidden_state[1, :27]
    alone = encoder(waveforms[1:2, : lengths[1]]).last_hidden_state[0]
    differs = (padded - alone).abs().max() > 1e-4
    assert differs == reads_padding(encoder.own_config)
    assert differs == (encoder.own_config.model_type in ("hubert", "unispeech-sat", "data2vec-audio"))


def test_layerdrop_leaves_out_layers_of_single_clips(tmp_path):
    config = HubertConfig(**SMALL, layerdrop=0.5, hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)
    config.feat_proj_dropout = 0.0
    folder = save_other(config, tmp_path / "theirs")
    encoder = open_other_encoder(folder, open_config(folder)).train()
    waveforms = torch.randn(32, 1600)
    layers = encoder(waveforms, output_hidden_states=True).hidden_states
    left_out = (layers[1] == layers[0]).flatten(1).all(1)
    assert 4 < left_out.sum() < 28 and encoder.config.layerdrop == 0
    assert all(p.grad is None for p in encoder.parameters())
    encoder(waveforms, mask_time_indices=torch.ones(32, 4, dtype=torch.bool)).last_hidden_state.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    layers = encoder.eval()(waveforms, output_hidden_states=True).hidden_states
    assert not (layers[1] == layers[0]).flatten(1).all(1).any()


def test_the_configuration_is_saved_as_it_was(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "ours")
    theirs, ours = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "ours"))
    assert ours == theirs
    assert (tmp_path / "ours" / "preprocessor_config.json").read_text() == (
        tmp_path / "theirs" / "preprocessor_config.json"
    ).read_text()


def test_an_encoder_that_gives_tuples_by_itself_can_serve(padded_batch, tmp_path):
    theirs = save_other(HubertConfig(**SMALL, return_dict=False), tmp_path / "theirs")
    encoder = open_other_encoder(theirs, open_config(theirs))
    assert encoder(padded_batch[0]).last_hidden_state.shape == (3, 49, SMALL["hidden_size"])


def test_convolutions_can_be_frozen(encoder, padded_batch):
    waveforms, attention_mask, _ = padded_batch
    encoder.freeze_feature_encoder()
    encoder(waveforms, attention_mask.bool()).last_hidden_state.sum().backward()
    assert all(p.grad is None for p in encoder.model.feature_extractor.parameters())
    assert encoder.model.feature_projection.projection.weight.grad.abs().max() > 0


def test_waveforms_are_normed_over_their_real_samples(padded_batch):
    waveforms, attention_mask, lengths = padded_batch
    found = normed(waveforms, attention_mask.bool())
    for clip, wave, length in zip(found, waveforms, lengths.tolist(), strict=True):
        wanted = Wav2Vec2FeatureExtractor(do_normalize=True)(wave[:length].numpy(), sampling_rate=16_000)
        torch.testing.assert_close(clip[:length], torch.from_numpy(wanted.input_values[0]), rtol=1e-4, atol=1e-4)
        assert not clip[length:].any()


TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("config", "extractor", "sentence"),
    [
        (BertConfig(**TINY), {}, "is of type bert, which does not take"),
        (WhisperConfig(), {}, "is of type whisper, which does not take `input_values` and `mask_time_indices`"),
        (HubertConfig(**SMALL), {"sampling_rate": 8000}, "hears audio of 8,000 Hz"),
        (HubertConfig(**SMALL | {"conv_stride": (4, 2, 2, 2, 2, 2, 2)}), {}, "makes frames of .* every 256 "),
        (SEWConfig(**TINY, intermediate_size=32), {}, "SEWModel gives "),
        (HubertConfig(**SMALL, conv_pos_batch_norm=True), {}, "HubertModel has batch norms"),
    ],
    ids=["text", "no mask", "8 kHz", "other frames", "other layers", "batch norm"],
)
def test_encoders_that_cannot_serve_are_refused_in_a_sentence(config, extractor, sentence, tmp_path):
    if config.model_type == "whisper":
        config.save_pretrained(tmp_path / "theirs")  # refused before its weights are looked at
    else:
        save_other(config, tmp_path / "theirs", **extractor)
    with pytest.raises(ValueError, match=sentence):
        open_other_encoder(tmp_path / "theirs", open_config(tmp_path / "theirs"))
