import dataclasses
import functools
import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel, HubertConfig, WavLMConfig

from sjepa_hf import SJepaConfig, SJepaForCTC, SJepaForPreTraining, SJepaModel
from sjepa_hf.configuration_sjepa import RANGES
from sjepa_hf.frames import frame_lengths
from sjepa_hf.opening import open_config, open_pretrained


def test_base_model_has_the_published_size():
    with torch.device("meta"):
        model = SJepaModel(SJepaConfig())
    assert model.num_parameters() == 51_844_224


def test_config_names_agree_with_hubert():
    ours, theirs = SJepaConfig().to_dict(), HubertConfig().to_dict() | WavLMConfig().to_dict()
    own = {
        "front_end", "num_mel_bins", "log_mel_cmn", "log_mel_prior_frames", "stem_kernel_size", "feature_grad_mult",
        "encode_visible_only",
        "predictor_num_hidden_layers", "predictor_num_attention_heads", "predictor_intermediate_size",
        "predictor_dropout", "predictor_max_positions", "predictor_keeps_hidden",
        "num_mixture_components", "mixture_feature_size", "mixture_features", "mixture_layers", "mixture_temperature",
        "mixture_instance_norm", "mixture_whitened", "mixture_transitions", "num_frozen_components",
        "frozen_feature_size",
    }  # fmt: skip
    assert set(ours) - set(theirs) == own


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"front_end": "mfcc"}, "front_end"),
        ({"hidden_size": 50}, "num_attention_heads"),
        ({"conv_dim": [32] * 6}, "conv_stride"),
        ({"conv_dim": [], "conv_stride": [], "conv_kernel": []}, "conv_dim"),
        ({"conv_stride": [0] * 7}, "`conv_stride` holds 0"),
        ({"conv_stride": [10] * 7}, "`conv_kernel` and `conv_stride` make frames of .* samples"),
        ({"conv_kernel": [1] * 7, "conv_stride": [1] * 7}, "make frames of 1 samples"),
        ({"num_mixture_components": 1}, "num_mixture_components"),
        ({"num_frozen_components": 0}, "num_frozen_components"),
        ({"num_frozen_components": 10001, "mixture_transitions": True}, "num_frozen_components"),
        ({"tdnn_dim": [32]}, "tdnn_kernel"),
        ({"tdnn_kernel": [5, 3, 3, 1, -1]}, "`tdnn_kernel` holds -1"),
        ({"tdnn_dim": [8] * 1000, "tdnn_kernel": [1] * 1000, "tdnn_dilation": [1] * 1000}, "from 1 to 64"),
        ({"mask_feature_prob": 1.5}, "mask_feature_prob"),
        ({"num_conv_pos_embedding_groups": 5}, "num_conv_pos_embedding_groups"),
        ({"num_conv_pos_embedding_groups": 0}, "num_conv_pos_embedding_groups"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"predictor_num_attention_heads": -8}, "predictor_num_attention_heads"),
        ({"hidden_size": -48}, "`hidden_size` is -48"),
        ({"num_hidden_layers": 10**8}, "`num_hidden_layers` is 100000000; it must lie between 1 and 1,000"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"hidden_size": "48"}, "hidden_size.*expected int, got str"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_dropout": NAN}, "`hidden_dropout` is nan"),
        ({"layerdrop": -0.1}, "layerdrop"),
        ({"layer_norm_eps": INFINITY}, "layer_norm_eps"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps"),
        ({"initializer_range": NAN}, "initializer_range"),
        ({"hidden_act": "geluu"}, "hidden_act"),
        ({"problem_type": "regresion"}, "`problem_type` is 'regresion'; choose one of None, single_label"),
        ({"ctc_loss_reduction": "average"}, "ctc_loss_reduction"),
        ({"front_end": "log_mel", "num_mel_bins": 500}, "201 bins"),
        ({"front_end": "log_mel", "stem_kernel_size": 4}, "`stem_kernel_size` is 4.*odd number"),
        ({"stem_kernel_size": 5}, "`stem_kernel_size` is 5.*log_mel"),
        ({"log_mel_cmn": True}, "`log_mel_cmn` goes with `front_end`.*waveform"),
        ({"front_end": "log_mel", "log_mel_prior_frames": 10}, "`log_mel_prior_frames` .*`log_mel_cmn`.* off"),
        ({"log_mel_prior_frames": -1}, "`log_mel_prior_frames` is -1"),
        ({"pad_token_id": 32}, "`pad_token_id` is 32, but `vocab_size` 32"),
        ({"pad_token_id": -1}, "pad_token_id"),
        ({"num_labels": 0}, "num_labels"),
        ({"predictor_keeps_hidden": True, "encode_visible_only": True}, "predictor_keeps_hidden.*encode_visible_only"),
    ],
)
def test_config_errors_name_the_field(make_config, changes, names):
    with pytest.raises(StrictDataclassError, match=f"(?s){names}"):
        make_config(**changes)


def test_every_number_of_the_configuration_has_a_range():
    numbers = {
        field.name
        for field in dataclasses.fields(SJepaConfig)
        if field.name in SJepaConfig.__annotations__
        and any(kind in str(field.type) for kind in ("int", "float"))
        and not field.name.endswith("_token_id")
    }
    assert numbers == RANGES.keys()


def test_a_saved_configuration_that_was_edited_gets_a_sentence(make_config, tmp_path):
    SJepaModel(make_config()).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    for changes, message in (
        ({"num_attention_heads": 0}, "`num_attention_heads` is 0; it must lie between 1 and 65,536.$"),
        ({"hidden_dropout": NAN}, "`hidden_dropout` is nan; it must lie between 0 and 1.$"),
        ({"hidden_size": "48"}, "'hidden_size' expected int, got str"),
        ({"num_hidden_layers": 10**8}, "`num_hidden_layers` is 100000000"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(saved | changes))
        for open_it in (open_config, functools.partial(open_pretrained, AutoModel)):
            with pytest.raises(ValueError, match=message) as raised:
                open_it(tmp_path)
            assert "\n" not in str(raised.value) and "Error" not in str(raised.value)


def test_what_from_pretrained_is_given_is_checked_too(make_config, tmp_path):
    SJepaForCTC(make_config()).save_pretrained(tmp_path)
    for changes, name in (({"num_attention_heads": 0}, "num_attention_heads"), ({"vocab_size": -1}, "vocab_size")):
        with pytest.raises(Exception, match=f"(?s)`{name}`"):
            SJepaForCTC.from_pretrained(tmp_path, **changes)
    larger = SJepaForCTC.from_pretrained(tmp_path, vocab_size=40, pad_token_id=39, ignore_mismatched_sizes=True)
    assert larger.lm_head.out_features == 40


def test_frame_count_is_the_convolutions_own(make_config):
    config = make_config()
    assert (config.inputs_to_logits_ratio, config.receptive_field) == (320, 400)
    for samples in (400, 719, 720, 15_999, 16_000):
        frames = samples
        for kernel, stride in zip(config.conv_kernel, config.conv_stride):
            frames = (frames - kernel) // stride + 1
        assert config.num_frames(samples) == frames == (samples - 400) // 320 + 1
    assert config.num_frames(399) == 0
    assert config.num_frames(torch.tensor([399, 400])).tolist() == [0, 1]


def test_outputs(config):
    model = SJepaModel(config).eval()
    output = model(torch.randn(2, 16000), output_hidden_states=True)
    assert output.last_hidden_state.shape == (2, 49, 48)
    assert output.extract_features.shape == (2, 49, 32 if config.front_end == "waveform" else 24)
    assert len(output.hidden_states) == config.num_hidden_layers + 1
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert model(torch.randn(2, 16000)).hidden_states is None
    eager = SJepaModel._from_config(config, attn_implementation="eager").eval()
    attentions = eager(torch.randn(2, 16000), output_attentions=True).attentions
    assert len(attentions) == config.num_hidden_layers
    torch.testing.assert_close(attentions[0].sum(-1), torch.ones(2, 4, 49))


def test_num_layers_stops_early(config):
    model = SJepaModel(config).eval()
    waveforms = torch.randn(2, 8000)
    whole = model(waveforms, output_hidden_states=True).hidden_states
    for layers in (1, 2, 3):
        assert torch.equal(model(waveforms, num_layers=layers).last_hidden_state, whole[layers])
    for layers in (-1, 4):
        with pytest.raises(ValueError, match=f"`num_layers` is {layers}: it must lie between 0 and 3"):
            model(waveforms, num_layers=layers)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_changes_nothing(config, padded_batch, attention):
    waveforms, attention_mask, lengths = padded_batch
    model = SJepaModel._from_config(config, attn_implementation=attention).eval()
    batch = model(waveforms, attention_mask=attention_mask, output_hidden_states=True)
    for row, length in enumerate(lengths):
        alone = model(waveforms[row : row + 1, :length], output_hidden_states=True)
        frames = config.num_frames(int(length))
        assert alone.last_hidden_state.shape[1] == frames
        for together, single in zip(batch.hidden_states, alone.hidden_states):
            torch.testing.assert_close(together[row, :frames], single[0], atol=1e-5, rtol=0)


def test_without_a_mask_padding_is_speech_like_any_other(config, padded_batch):
    waveforms, attention_mask, _ = padded_batch
    model = SJepaModel(config).eval()
    difference = (model(waveforms).last_hidden_state - model(waveforms, attention_mask).last_hidden_state)[1, :20]
    assert difference.abs().max() > 1e-3


def test_hidden_frames_do_not_reach_the_output_of_others(config):
    """What lies under the mask is blanked: other samples there give the same output everywhere."""
    model = SJepaModel(config).eval()
    if config.front_end == "waveform":
        pytest.skip("its group norm reads the whole clip")
    mask = torch.zeros(1, 49, dtype=torch.bool)
    mask[:, 10:20] = True
    features = torch.randn(1, 49, 24)
    outputs = []
    for change in (0.0, 5.0):
        model.feature_extractor.forward = lambda *_, change=change: features + change * mask[:, :, None]
        outputs.append(model(torch.randn(1, 16000), mask_time_indices=mask).last_hidden_state)
    assert torch.equal(*outputs)


def test_eager_equals_sdpa(config, padded_batch):
    waveforms, attention_mask, lengths = padded_batch
    eager = SJepaModel._from_config(config, attn_implementation="eager").eval()
    sdpa = SJepaModel._from_config(config, attn_implementation="sdpa").eval()
    sdpa.load_state_dict(eager.state_dict())
    for row, frames in enumerate(config.num_frames(lengths)):
        a, b = (model(waveforms, attention_mask).last_hidden_state[row, :frames] for model in (eager, sdpa))
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", ["stem"], indirect=True)
def test_compiles_into_one_graph(config, padded_batch):
    """By itself; in training, and over waveforms, it is compiled within the model of pretraining."""
    waveforms, attention_mask, _ = padded_batch
    config.num_hidden_layers = 1  # more are more of the same, which takes its time
    model = SJepaModel(config).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    mask = torch.rand(3, 49) < 0.5
    output = compiled(waveforms, attention_mask=attention_mask, mask_time_indices=mask).last_hidden_state
    expected = model(waveforms, attention_mask=attention_mask, mask_time_indices=mask).last_hidden_state
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("model_class", [SJepaModel, SJepaForPreTraining])
def test_gradient_checkpointing_gives_the_same_gradients(config, model_class, reentrant):
    config.layerdrop = 0.3  # drawn inside the layer: the recomputation must draw the same
    config.hidden_dropout = 0.1
    gradients, runs, waveforms, inputs = [], [], torch.randn(2, 8000), {}
    if model_class is SJepaForPreTraining:
        mask = torch.zeros(2, 24, dtype=torch.bool)
        mask[:, 3:9] = True
        inputs = {"mask_time_indices": mask, "target_posteriors": torch.rand(2, 24, 10).softmax(-1)}
    model = model_class(config).train()
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            layer = model.base_model.encoder.layers[0]
            layer.attention.register_forward_pre_hook(lambda *_: runs.append(1))
        model.zero_grad()
        torch.manual_seed(1)
        output = model(waveforms, **inputs)
        (output.loss if inputs else output.last_hidden_state.square().mean()).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(plain, checkpointed, atol=1e-7, rtol=1e-5)
    assert len(runs) == 2, "once forward, once more for the gradient"
    assert not waveforms.requires_grad


def test_layers_over_frozen_ones_learn_with_gradient_checkpointing(make_config):
    model = SJepaModel(make_config()).train().requires_grad_(False)
    learning = [p.requires_grad_() for p in model.encoder.layers[0].attention.q_proj.parameters()]
    learning += [model.feature_extractor.conv_layers[0].layer_norm.weight.requires_grad_()]
    model.gradient_checkpointing_enable()
    model(torch.randn(2, 8000)).last_hidden_state.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in learning)
    model.requires_grad_(False)
    assert not model(torch.randn(2, 8000)).last_hidden_state.requires_grad


@pytest.mark.parametrize("config", ["stem"], indirect=True)
def test_compiles_into_one_graph_with_gradient_checkpointing(config):
    config.num_hidden_layers = 1
    model = SJepaModel(config).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.compile(model, fullgraph=True, backend="aot_eager")(torch.randn(2, 4000))[0].square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_layerdrop_leaves_layers_out_in_training_alone(make_config):
    dropouts = ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout")
    model = SJepaModel(make_config(layerdrop=1.0, **dict.fromkeys(dropouts, 0.0)))
    for training in (True, False):
        first, *others = model.train(training)(torch.randn(1, 8000), output_hidden_states=True).hidden_states
        assert all(torch.equal(first, other) == training for other in others)


def test_layerdrop_leaves_no_parameter_without_a_gradient(make_config):
    model = SJepaModel(make_config(layerdrop=0.99)).train()
    model(torch.randn(2, 8000)).last_hidden_state.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_front_end_gradient_is_multiplied(make_config):
    gradients, direction = [], torch.randn(2, 12, 48)
    for multiplier in (1.0, 0.1):
        torch.manual_seed(0)
        config = make_config(feature_grad_mult=multiplier, hidden_dropout=0.0, activation_dropout=0.0,
                             attention_dropout=0.0, feat_proj_dropout=0.0, layerdrop=0.0)  # fmt: skip
        model = SJepaModel(config).train()
        (model(torch.randn(2, 4000)).last_hidden_state * direction).sum().backward()
        gradients.append(
            (model.feature_extractor.conv_layers[0].conv.weight.grad, model.feature_projection.projection.weight.grad)
        )
    torch.testing.assert_close(gradients[1][0], 0.1 * gradients[0][0], atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(gradients[1][1], gradients[0][1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("model_class", [SJepaModel, SJepaForCTC, SJepaForPreTraining])
def test_the_front_end_can_be_frozen_in_every_class(model_class, config):
    model = model_class(config)
    model.freeze_feature_encoder()
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if "feature_extractor." in name} != set()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_norms_and_tables_in_fp32(config, dtype, tmp_path, padded_batch):
    waveforms, attention_mask, _ = padded_batch
    SJepaModel(config).save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, dtype=dtype).eval()
    assert model.encoder.layers[0].layer_norm.weight.dtype == torch.float32
    assert model.encoder.layers[0].attention.q_proj.weight.dtype == dtype
    full = AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    expected = full(waveforms, attention_mask).last_hidden_state
    for inputs in (waveforms, waveforms.to(dtype)):
        output = model(inputs, attention_mask).last_hidden_state
        assert output.dtype == dtype
        assert (output.float() - expected)[0].abs().mean() < 0.05
    if config.front_end == "log_mel":
        assert model.half().feature_extractor.mel_filters.dtype == torch.float32


@pytest.mark.parametrize("model_class", [SJepaModel, SJepaForCTC, SJepaForPreTraining])
def test_save_and_load(config, model_class, tmp_path):
    model = model_class(config).eval()
    model.save_pretrained(tmp_path)
    again = model_class.from_pretrained(tmp_path).eval()
    assert {n for n, _ in model.named_buffers()} == {n for n, _ in again.named_buffers()}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    waveforms = torch.randn(1, 8000)
    a, b = (m(waveforms)[0] for m in (model, again))
    assert torch.equal(a, b)
    assert type(AutoConfig.from_pretrained(tmp_path)) is SJepaConfig


def test_mel_tables_survive_from_pretrained(make_config, tmp_path):
    model = SJepaModel(make_config("log_mel"))
    model.save_pretrained(tmp_path)
    fourier, mel_filters = model.feature_extractor.tables()
    again = SJepaModel.from_pretrained(tmp_path).feature_extractor
    assert torch.equal(again.fourier, fourier) and torch.equal(again.mel_filters, mel_filters)
    assert (SJepaModel(SJepaConfig(front_end="log_mel")).feature_extractor.mel_filters.sum(0) > 0).all()


def test_log_mel_is_the_textbook_one(make_config):
    model = SJepaModel(make_config("log_mel")).feature_extractor
    waveform = torch.randn(1, 4000)
    spectrum = torch.stft(waveform, 400, 320, window=torch.hann_window(400), center=False, return_complex=True)
    expected = (spectrum.abs().square().transpose(1, 2) @ model.mel_filters).clamp_min(1e-10).log()
    expected = (expected - expected.mean()) / (expected.var(correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(model(waveform), expected, atol=1e-4, rtol=1e-4)


def test_without_the_clip_s_mean_a_channel_s_colour_is_gone(make_config):
    front_end, plain = (
        SJepaModel(make_config("log_mel", log_mel_cmn=on)).feature_extractor.double() for on in (True, False)
    )
    waveforms, lengths = torch.randn(2, 8000, dtype=torch.float64), torch.tensor([8000, 5000])
    frames = front_end(waveforms, lengths)
    assert frames[0].mean(0).abs().max() < 1e-6 and frames[1, : frame_lengths(5000)].mean(0).abs().max() < 1e-6
    assert plain(waveforms, lengths)[0].mean(0).abs().max() > 1e-2
    # Other mel filters of the same bands are another colour: bins that are some decibels louder or quieter.
    gains = torch.logspace(-2, 2, front_end.output_size, dtype=torch.float64)
    front_end.mel_filters *= gains
    torch.testing.assert_close(front_end(waveforms, lengths), frames)


@pytest.mark.parametrize("prior_frames", [0, 10])
def test_digital_silence_moves_no_other_frame_and_sounds_like_the_quietest(make_config, prior_frames):
    config = make_config("log_mel", log_mel_cmn=True, log_mel_prior_frames=prior_frames)
    front_end = SJepaModel(config).feature_extractor
    speech, zeros = torch.randn(1, 8080), torch.zeros(1, 9600)  # 25 frames; 30 hops
    speech[:, :80] = speech[:, -80:] = 0.0  # no frame is half of speech and half of zeros
    alone = front_end(speech)[0]
    quietest = alone[alone.sum(-1).argmin()]
    for parts, first in (([zeros, speech, zeros], 30), ([speech, zeros], 0), ([zeros, speech], 30)):
        waveform = torch.cat(parts, dim=1)
        frames = front_end(waveform)[0]
        torch.testing.assert_close(frames[first : first + 25], alone)
        silent = torch.cat([frames[:first], frames[first + 25 :]])
        torch.testing.assert_close(silent, quietest.expand(len(silent), -1))
        padded = torch.cat([waveform, torch.randn(1, 3000)], dim=1)
        found = front_end(padded, torch.tensor([waveform.shape[1]]))[0]
        torch.testing.assert_close(found[: len(frames)], frames)
        assert not found[len(frames) :].any()
    nothing = front_end(torch.zeros(1, 9600))[0]
    assert nothing.isfinite().all() and (nothing == nothing[0]).all() and nothing.any() == bool(prior_frames)


def test_average_speech_counts_in_the_mean_as_if_it_had_been_heard(make_config):
    front_end, plain = (
        SJepaModel(make_config("log_mel", log_mel_cmn=on, log_mel_prior_frames=10 * on)).feature_extractor.double()
        for on in (True, False)
    )
    front_end.layer_norm = plain.layer_norm = torch.nn.Identity()
    front_end.layer_norm.forward = lambda log_mel, counted: log_mel
    waveform = torch.randn(1, 5000, dtype=torch.float64)
    log_mel = plain(waveform)[0]
    tilt = torch.linspace(2.25, -2.25, front_end.output_size, dtype=torch.float64)
    average = (log_mel.mean() + tilt).expand(10, -1)  # falls by 4.5 nats, as loud as the clip
    expected = log_mel - torch.cat([log_mel, average]).mean(0)
    torch.testing.assert_close(front_end(waveform)[0], expected)
    padded = torch.cat([waveform, torch.randn(1, 5000)], dim=1)
    alone = front_end(padded, torch.tensor([5000]))[0, : len(expected)]
    torch.testing.assert_close(alone, expected)
    louder = 20.0 * waveform
    torch.testing.assert_close(front_end(louder)[0], expected)


def test_hidden_frames_and_bins_are_hidden_from_the_stem_too(make_config):
    model = SJepaModel(make_config("log_mel", stem_kernel_size=3, feature_grad_mult=1.0)).double().eval()
    frames, given = {}, model.feature_extractor.forward

    def read(*args):
        frames["read"] = given(*args).detach().requires_grad_()
        return frames["read"]

    model.feature_extractor.forward = read
    waveforms, shape = torch.randn(2, 8000), (2, frame_lengths(8000))
    hidden = torch.rand(shape) < 0.4
    bins = torch.rand(*shape, model.config.num_mel_bins) < 0.3
    output = model(waveforms, mask_time_indices=hidden, mask_mel_indices=bins).last_hidden_state
    gradient = torch.autograd.grad(output.square().sum(), frames["read"])[0]
    gone = hidden[:, :, None] | bins
    assert (gradient[gone] == 0).all() and (gradient[~gone] != 0).all()


def test_hidden_bins_need_log_mel_frames(make_config):
    waveforms, bins = torch.randn(1, 4000), torch.zeros(1, frame_lengths(4000), 64, dtype=torch.bool)
    with pytest.raises(ValueError, match="`mask_mel_indices` go with `front_end` .log_mel."):
        SJepaModel(make_config())(waveforms, mask_mel_indices=bins)
    with pytest.raises(ValueError, match=r"`mask_mel_indices` must be bool.*\(batch_size, frames, num_mel_bins\)"):
        SJepaModel(make_config("log_mel"))(waveforms, mask_mel_indices=bins[:, :, 1:])


def test_initialisation(make_config):
    model = SJepaModel(make_config(hidden_size=96, num_conv_pos_embeddings=32))
    conv = model.encoder.pos_conv_embed.conv
    assert conv.weight.std().item() == pytest.approx((4 / (32 * 96)) ** 0.5, rel=0.05)
    assert model.encoder.layers[0].attention.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.encoder.layers[0].attention.q_proj.bias.abs().max() == 0
    weight = model.feature_extractor.conv_layers[1].conv.weight
    assert weight.std().item() == pytest.approx((2 / (32 * 3)) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (dict(input_values=torch.randn(2, 399)), "399 samples"),
        (dict(input_values=torch.randn(2, 1, 4000)), "channel"),
        (dict(input_values=torch.randn(4000)), r"\(batch_size, num_samples\)"),
        (dict(input_values=torch.ones(2, 4000, dtype=torch.int16)), "32768"),
        (dict(input_values=torch.randn(2, 4000), attention_mask=torch.ones(2, 12)), "samples, not frames"),
        (dict(input_values=torch.randn(1, 4000), attention_mask=torch.arange(4000)[None] > 9), "clips on the right"),
        (dict(input_values=torch.randn(2, 4000).index_fill(1, torch.tensor(7), NAN)), "hold NaN or infinite samples"),
        (dict(input_values=torch.full((1, 4000), INFINITY)), "hold NaN or infinite samples"),
        (
            dict(input_values=torch.randn(2, 4000), mask_time_indices=torch.zeros(2, 12)),
            r"bool of shape \(2, 12\) \(batch_size, frames\)",
        ),
    ],
)
def test_wrong_input_gets_a_sentence(config, inputs, message):
    with pytest.raises(ValueError, match=message):
        SJepaModel(config)(**inputs)


def test_layerdrop_passes_clips_through_in_training_alone(make_config):
    layer = SJepaModel(make_config("log_mel", layerdrop=0.5)).encoder.layers[0]
    hidden_states = torch.randn(64, 5, layer.layer_norm.weight.shape[0])
    passed = (layer(hidden_states) == hidden_states).all((1, 2))
    assert 10 < passed.sum() < 54
    assert not (layer.eval()(hidden_states) == hidden_states).any()
