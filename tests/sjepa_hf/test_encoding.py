"""Layers of any encoder: each clip of a padded batch as if it were alone."""

import pytest
import torch
from checkpoints import save
from transformers import (
    AutoModel,
    Data2VecAudioConfig,
    HubertConfig,
    HubertModel,
    SEWConfig,
    SEWModel,
    UniSpeechConfig,
    UniSpeechSatConfig,
    Wav2Vec2Config,
    Wav2Vec2ConformerConfig,
    Wav2Vec2Model,
    WavLMConfig,
)

from sjepa_hf import SJepaModel
from sjepa_hf.encoding import check_layers, hidden_layers, open_audio_encoder, reads_padding, weights_hash
from sjepa_hf.frames import check_frames


SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=[16] * 7)
SMALL |= dict(num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)


def small_hubert(norm: str = "group") -> HubertModel:
    return HubertModel(HubertConfig(**SMALL, feat_extract_norm=norm, do_stable_layer_norm=norm == "layer")).eval()


@pytest.fixture(params=["sjepa", "hubert", "hubert with layer norm"])
def encoder(request, make_config):
    if request.param == "sjepa":
        return SJepaModel(make_config("log_mel")).eval()
    return small_hubert("layer" if "norm" in request.param else "group")


def test_each_clip_gets_what_it_gets_alone(encoder):
    waveforms, mask = torch.randn(2, 16000), torch.ones(2, 16000, dtype=torch.long)
    waveforms[1, 7000:], mask[1, 7000:] = 0, 0
    states, lengths = hidden_layers(encoder, waveforms, mask, [2, 0])
    assert states.shape[:3] == (2, 2, 49) and lengths.tolist() == [49, 21]
    with torch.no_grad():
        alone = encoder(waveforms[1:, :7000], output_hidden_states=True).hidden_states
    for found, layer in zip(states[1], (2, 0)):
        torch.testing.assert_close(found[:21], alone[layer][0], atol=1e-4, rtol=1e-4)
    one, _ = hidden_layers(encoder, waveforms, mask, [1])
    several, _ = hidden_layers(encoder, waveforms, mask, [1, 2])
    assert one[:, 0].equal(several[:, 0])


def test_an_encoder_whose_hidden_states_are_fewer_than_its_frames_is_refused():
    sew = SEWModel(SEWConfig(**SMALL, conv_stride=(5, 2, 2, 2, 2, 2, 2), conv_kernel=(10, 3, 3, 3, 3, 2, 2)))
    adapted = Wav2Vec2Model(Wav2Vec2Config(**SMALL, add_adapter=True, num_adapter_layers=1))
    mask = torch.ones(2, 16000, dtype=torch.long)
    mask[1, 7000:] = 0
    for model, said in ((sew, "24 hidden states where it counts 49 frames"), (adapted, "49 hidden states where it")):
        check_frames(model.config, "It passes")
        for given in (None, mask):
            with pytest.raises(ValueError, match=f"{said}.*take one without pooling or adapters"):
                hidden_layers(model.eval(), torch.randn(2, 16000), given, [1])


BATCHED = (HubertConfig, UniSpeechConfig, UniSpeechSatConfig, Wav2Vec2Config, WavLMConfig)
READ_ALONE = {
    "group norm": HubertConfig(**SMALL),
    "batch norm": HubertConfig(**SMALL, feat_extract_norm="layer", conv_pos_batch_norm=True),
    "convolutions of positions": Data2VecAudioConfig(**SMALL),
    "convolutions in the layers": Wav2Vec2ConformerConfig(**SMALL, feat_extract_norm="layer"),
}


@pytest.mark.parametrize("alone", [False, True])
def test_padding_reaches_those_that_are_said_to_read_it_and_no_others(alone):
    configs = READ_ALONE.values() if alone else [kind(**SMALL, feat_extract_norm="layer") for kind in BATCHED]
    waveforms, mask = torch.randn(2, 16000), torch.ones(2, 16000, dtype=torch.long)
    waveforms[1, 7000:], mask[1, 7000:] = 0, 0
    for config in configs:
        assert reads_padding(config) == alone, config.model_type
        encoder = AutoModel.from_config(config).eval()
        for norm in encoder.modules():
            if isinstance(norm, torch.nn.BatchNorm1d):
                torch.nn.init.normal_(norm.bias)
        with torch.no_grad():
            wanted = encoder(waveforms[1:, :7000], output_hidden_states=True).hidden_states[2][0]
            padded = encoder(waveforms, mask, output_hidden_states=True).hidden_states[2][1, :21]
        assert torch.allclose(padded, wanted, atol=1e-4) != alone, config.model_type
        calls = []
        encoder.register_forward_pre_hook(lambda *_: calls.append(1))  # noqa: B023
        found = hidden_layers(encoder, waveforms, mask, [2])[0][1, 0, :21]
        assert len(calls) == 1 + alone, config.model_type
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_adapters_read_padding():
    """Convolutions of a width of 3; with a head they follow the layers."""
    assert reads_padding(Wav2Vec2Config(**SMALL, feat_extract_norm="layer", add_adapter=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_encoder_opens_in_fp32_however_it_was_saved(make_config, tmp_path, dtype):
    for model in (small_hubert(), SJepaModel(make_config("log_mel"))):
        folder = save(model.to(dtype), tmp_path / type(model).__name__)
        assert open_audio_encoder(folder).dtype == torch.float32
        assert open_audio_encoder(folder, dtype=dtype).dtype == dtype


def test_a_configuration_that_asks_for_tuples_changes_nothing(make_config):
    encoder, waveforms = SJepaModel(make_config("log_mel")).eval(), torch.randn(1, 8000)
    expected = [hidden_layers(encoder, waveforms, None, layers)[0] for layers in ([1], [1, 2], None)]
    encoder.config.return_dict = False
    found = [hidden_layers(encoder, waveforms, None, layers)[0] for layers in ([1], [1, 2], None)]
    assert all(a.equal(b) for a, b in zip(found, expected))


def test_padding_on_the_left_gets_a_sentence(encoder):
    mask = torch.ones(2, 16000, dtype=torch.long)
    mask[1, :7000] = 0
    with pytest.raises(ValueError, match="padding before real samples: pad clips on the right"):
        hidden_layers(encoder, torch.randn(2, 16000), mask, [1])


def test_a_layer_that_does_not_exist_gets_a_sentence(encoder):
    last = encoder.config.num_hidden_layers
    for layer in (-1, last + 1):
        with pytest.raises(ValueError, match=f"`layers` has {layer}, but the encoder has layers 0 to {last}"):
            check_layers(encoder, [0, layer])
    with pytest.raises(ValueError, match="`layers` is empty"):
        check_layers(encoder, [])


def test_the_hash_is_of_the_weights():
    model = small_hubert()
    before = weights_hash(model)
    assert before == weights_hash(model)
    with torch.no_grad():
        model.encoder.layers[0].attention.k_proj.bias[0] += 1e-6
    assert weights_hash(model) != before


def test_a_hash_takes_in_values_of_no_dimension():
    """Batch norms count their batches in one."""
    model = torch.nn.BatchNorm1d(2)
    before = weights_hash(model)
    model.num_batches_tracked += 1
    assert weights_hash(model) != before
