import pytest
import torch
import transformers
from apple_gpu import AppleGpu
from transformers import AutoModel, AutoModelForPreTraining, Trainer, TrainingArguments

from sjepa_hf import SJepaForPreTraining, SJepaModel
from sjepa_hf.soft_targets import soft_target_divergence


PREDICTORS = [
    {},
    {"predictor_keeps_hidden": True},
]


@pytest.fixture
def masked_batch(padded_batch):
    """Inputs of a training step: the padded batch, a mask over real frames and random soft targets."""
    waveforms, attention_mask, lengths = padded_batch
    real = torch.arange(49) < ((lengths - 400) // 320 + 1)[:, None]
    mask = (torch.rand(3, 49) < 0.5) & real
    return {
        "input_values": waveforms,
        "attention_mask": attention_mask,
        "mask_time_indices": mask,
        "target_posteriors": torch.randn(3, 49, 10).mul(2).softmax(-1),
    }, real


@pytest.mark.parametrize("include_visible", [True, False])
def test_loss_is_the_mean_over_the_frames_that_count(config, masked_batch, include_visible):
    inputs, real = masked_batch
    model = SJepaForPreTraining(config).eval()
    output = model(**inputs, include_visible=include_visible)
    mask, targets = inputs.pop("mask_time_indices"), inputs.pop("target_posteriors")
    logits = model(**inputs, mask_time_indices=mask).logits
    divergence = soft_target_divergence(logits.flatten(0, 1), targets.flatten(0, 1)).view(3, 49)
    counted = real if include_visible else mask
    torch.testing.assert_close(output.loss, divergence[counted].mean())
    torch.testing.assert_close(output.masked_loss, divergence[mask].mean())
    assert output.num_masked_frames == mask.sum()
    if include_visible:
        torch.testing.assert_close(output.visible_loss, divergence[real & ~mask].mean())
        assert output.num_visible_frames == (real & ~mask).sum()
    else:
        assert output.visible_loss is None and output.num_visible_frames == 0
        assert output.logits[~mask].abs().max() == 0, "nothing is computed that the loss does not read"
    torch.testing.assert_close(output.logits[counted], logits[counted])


def test_given_positions_change_nothing(config, masked_batch):
    inputs, real = masked_batch
    model = SJepaForPreTraining(config).eval()
    mask = inputs["mask_time_indices"]
    positions = {
        "masked_positions": mask.flatten().nonzero().squeeze(1),
        "visible_positions": (real & ~mask).flatten().nonzero().squeeze(1),
    }
    torch.testing.assert_close(model(**inputs).loss, model(**inputs, **positions).loss)


def test_predictor_at_masked_frames_equals_the_full_length_computation(config, masked_batch):
    """Queries, feed-forward and head run at masked frames only; a dense layer over all frames must agree there."""
    inputs, _ = masked_batch
    model = SJepaForPreTraining(config).eval()
    mask = inputs["mask_time_indices"]
    hidden = torch.randn(3, 49, 48)
    positions = mask.flatten().nonzero().squeeze(1)
    everywhere = model.predictor(hidden, mask, torch.arange(3 * 49))
    torch.testing.assert_close(model.predictor(hidden, mask, positions), everywhere[positions], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("changes", [*PREDICTORS, {"encode_visible_only": True}])
def test_padding_changes_nothing(config, masked_batch, padded_batch, changes):
    config = type(config)(**(config.to_dict() | changes))
    inputs, _ = masked_batch
    lengths = padded_batch[2]
    model = SJepaForPreTraining(config).eval()
    together = model(**inputs)
    sums = 0.0
    for row, length in enumerate(lengths):
        frames = config.num_frames(int(length))
        alone = model(
            inputs["input_values"][row : row + 1, :length],
            mask_time_indices=inputs["mask_time_indices"][row : row + 1, :frames],
            target_posteriors=inputs["target_posteriors"][row : row + 1, :frames],
        )
        torch.testing.assert_close(alone.logits[0], together.logits[row, :frames], atol=1e-5, rtol=0)
        sums += alone.loss * (alone.num_masked_frames + alone.num_visible_frames)
    count = together.num_masked_frames + together.num_visible_frames
    torch.testing.assert_close(together.loss, sums / count, atol=1e-5, rtol=1e-5)


def test_without_a_mask_the_encoder_predicts_every_frame(config):
    model = SJepaForPreTraining(config).eval()
    waveforms = torch.randn(2, 8000)
    hidden = model.sjepa(waveforms).last_hidden_state
    torch.testing.assert_close(model(waveforms).logits, model.cluster_head(hidden))
    with pytest.raises(ValueError, match="mask_time_indices"):
        model(waveforms, target_posteriors=torch.rand(2, 24, 10))


def test_a_loss_of_one_s_own_is_learned_from_too(config, masked_batch):
    model = SJepaForPreTraining(config).eval()
    output = model(**masked_batch[0])
    (gradient,) = torch.autograd.grad(output.logits.square().mean(), model.predictor.mask_token)
    assert output.loss.requires_grad and gradient.abs().max() > 0


@pytest.mark.parametrize("changes", [*PREDICTORS, {"encode_visible_only": True}])
def test_every_parameter_learns(config, masked_batch, changes):
    config = type(config)(**(config.to_dict() | changes))
    inputs, _ = masked_batch
    model = SJepaForPreTraining(config).train()
    model(**inputs).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.any() for p in model.sjepa.feature_extractor.parameters())
    assert not any(name.startswith("mixture") for name, _ in model.named_parameters())


@pytest.mark.parametrize("config", ["waveform"], indirect=True)
def test_compiles_into_one_graph_over_visible_frames(config, masked_batch):
    config.encode_visible_only, config.num_hidden_layers = True, 1  # more are more of the same
    inputs, real = masked_batch
    model = SJepaForPreTraining(config).train()
    mask = inputs["mask_time_indices"]
    inputs["masked_positions"] = mask.flatten().nonzero().squeeze(1)
    inputs["visible_positions"] = (real & ~mask).flatten().nonzero().squeeze(1)
    inputs["longest_visible"] = int((real & ~mask).sum(1).max())
    compiled, losses = torch.compile(model, fullgraph=True, backend="aot_eager"), []
    for call in (model, compiled):
        torch.manual_seed(1)  # the same dropout
        losses.append(call(**inputs).loss)
    torch.testing.assert_close(*losses)
    losses[1].backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("config", "part"), [("waveform", "student"), ("stem", "student"), ("waveform", "teacher")], indirect=["config"]
)
def test_compiles_into_one_graph_for_batches_of_all_sizes(config, part):
    """
    As training compiles both: whole, once for padded batches, whatever their clips and lengths. Without gradients the
    front end of waveforms has other code, that of log-mel has not.
    """
    config.num_hidden_layers = 1
    for name in ("hidden", "attention", "activation", "feat_proj", "predictor"):
        setattr(config, f"{name}_dropout", 0.0)
    config.layerdrop = 0.0
    model = SJepaForPreTraining(config).train()
    module = model if part == "student" else model.sjepa.eval()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(module, dynamic=True, fullgraph=True, backend=count)
    losses, generator = [], torch.Generator().manual_seed(0)
    for clips in (2, 3, 5, 4, 2):
        for _ in range(4):
            lengths = torch.randint(2000, 20000, (clips,), generator=generator)
            longest = int(lengths.max())
            waveforms, attention_mask = torch.randn(clips, longest), torch.arange(longest) < lengths[:, None]
            if part == "teacher":
                with torch.no_grad():
                    compiled(waveforms, attention_mask, num_layers=1)
                continue
            real = torch.arange(config.num_frames(longest)) < config.num_frames(lengths)[:, None]
            mask = real & (torch.arange(real.shape[1]) % 3 == 0)
            inputs = dict(
                attention_mask=attention_mask,
                mask_time_indices=mask,
                target_posteriors=torch.rand(*mask.shape, config.num_mixture_components).softmax(-1),
                masked_positions=mask.flatten().nonzero().squeeze(1),
                visible_positions=(real & ~mask).flatten().nonzero().squeeze(1),
            )
            losses.append(compiled(waveforms, **inputs).loss)
            losses[-1].backward()
    assert len(graphs) == 1
    if part == "student":
        torch.testing.assert_close(losses[-1], model(waveforms, **inputs).loss)
        assert all(p.grad is not None for p in model.parameters())


def test_without_a_masked_frame_encoding_visible_ones_only_is_the_ordinary_encoder(config, padded_batch):
    waveforms, attention_mask, lengths = padded_batch
    model = SJepaForPreTraining(config).eval()
    real = torch.arange(49) < config.num_frames(lengths)[:, None]
    inputs = dict(attention_mask=attention_mask, mask_time_indices=torch.zeros_like(real), output_hidden_states=True)
    ordinary = model(waveforms, **inputs)
    config.encode_visible_only = True
    visible_only = model(waveforms, **inputs)
    torch.testing.assert_close(visible_only.logits, ordinary.logits, atol=1e-5, rtol=1e-5)
    for new, old in zip(visible_only.hidden_states, ordinary.hidden_states, strict=True):
        torch.testing.assert_close(new[real], old[real], atol=1e-5, rtol=1e-5)


def test_visible_frames_are_encoded_as_if_there_were_no_others(config, masked_batch):
    config.encode_visible_only = True
    inputs, real = masked_batch
    model = SJepaForPreTraining(config).eval()
    mask = inputs["mask_time_indices"]
    states = model(**inputs, output_hidden_states=True).hidden_states
    embedded = model.sjepa(
        inputs["input_values"], inputs["attention_mask"], mask_time_indices=mask, num_layers=0
    ).last_hidden_state  # with positions, before the first layer
    for clip, visible in enumerate(real & ~mask):
        expected = embedded[clip, visible][None]
        for number, layer in enumerate(model.sjepa.encoder.layers, start=1):
            expected = layer(expected)
            torch.testing.assert_close(states[number][clip, visible], expected[0], atol=1e-5, rtol=1e-5)
        assert not states[-1][clip, ~visible].any()


def test_room_for_more_visible_frames_changes_nothing(config, masked_batch):
    config.encode_visible_only = True
    inputs, real = masked_batch
    model = SJepaForPreTraining(config).eval()
    most = int((real & ~inputs["mask_time_indices"]).sum(1).max())
    losses = [model(**inputs, longest_visible=longest).loss for longest in (most, most + 5, 1000)]
    torch.testing.assert_close(torch.stack(losses), model(**inputs).loss.expand(3), atol=1e-6, rtol=1e-6)


def test_only_pretraining_leaves_masked_frames_out(config, masked_batch):
    """Fine-tuning hides frames through the same argument of the encoder: they stay where they are."""
    inputs, _ = masked_batch
    model = SJepaForPreTraining(config).eval()
    arguments = inputs["input_values"], inputs["attention_mask"], inputs["mask_time_indices"]
    before = model.sjepa(*arguments).last_hidden_state
    config.encode_visible_only = True
    assert torch.equal(model.sjepa(*arguments).last_hidden_state, before)


@pytest.mark.parametrize("changes", [{}, {"encode_visible_only": True}])
def test_tuples_hold_what_outputs_by_name_do(config, masked_batch, tmp_path, changes):
    for name, value in changes.items():
        setattr(config, name, value)
    SJepaForPreTraining(config).save_pretrained(tmp_path)
    model = SJepaForPreTraining.from_pretrained(tmp_path, return_dict=False).eval()
    trained, _ = masked_batch
    for inputs in (trained, {"input_values": trained["input_values"]}):
        found, expected = model(**inputs, output_hidden_states=True), model(**inputs, return_dict=True)
        assert type(found) is tuple and found[0].equal(expected.to_tuple()[0])


def test_replace_mixture_keeps_all_but_the_last_layer(config, masked_batch, tmp_path):
    model = SJepaForPreTraining(config)
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.replace_mixture(17, 48)
    for name, parameter in model.named_parameters():
        if name.startswith("cluster_head.output"):
            assert parameter.shape[0] == 17
        else:
            assert torch.equal(parameter, before[name])
    model.save_pretrained(tmp_path)
    again = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert (again.mixture.num_components, again.mixture.num_features) == (17, 48)
    assert torch.equal(again.mixture.means, model.mixture.means)


def test_transitions_travel_with_their_mixture(make_config, tmp_path):
    model = SJepaForPreTraining(make_config(mixture_transitions=True))
    assert torch.equal(model.mixture.transitions.pairs, torch.full((10, 10), 0.01))
    model.mixture.transitions.pairs.copy_(torch.rand(10, 10))
    kept = model.mixture.transitions.pairs.clone()
    model.replace_mixture(7, 5, keep_frozen=True)
    assert model.frozen_mixture.transitions.pairs.equal(kept) and model.mixture.transitions.num_states == 7
    model.mixture.transitions.pairs.copy_(torch.rand(7, 7))
    model.save_pretrained(tmp_path)
    again, loading = AutoModelForPreTraining.from_pretrained(tmp_path, dtype=torch.bfloat16, output_loading_info=True)
    assert not any(loading.values())
    for name, tensor in model.state_dict().items():
        if "mixture" in name:
            assert again.state_dict()[name].equal(tensor) and tensor.dtype == torch.float32, name
    _, loading = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())


def test_a_checkpoint_without_transitions_opens_with_new_ones(make_config, tmp_path):
    SJepaForPreTraining(make_config()).save_pretrained(tmp_path)
    assert not any("transitions" in name for name in SJepaForPreTraining.from_pretrained(tmp_path).state_dict())
    model = SJepaForPreTraining.from_pretrained(tmp_path, mixture_transitions=True)
    assert model.mixture.transitions.pairs.allclose(torch.tensor(0.01))
    assert model.mixture.transitions.initial.allclose(torch.tensor(0.1))


def test_frozen_targets_are_a_second_loss_from_a_second_last_layer(config, masked_batch, tmp_path):
    inputs, real = masked_batch
    model = SJepaForPreTraining(config).eval()
    frozen, old = inputs["target_posteriors"], model(**inputs)
    model.replace_mixture(7, 5, keep_frozen=True)
    inputs["target_posteriors"] = torch.randn(3, 49, 7).softmax(-1)
    alone = model(**inputs)
    both = model(**inputs, frozen_posteriors=frozen, frozen_weight=0.25)
    torch.testing.assert_close(both.frozen_loss, old.loss, msg="the kept last layer knows the kept clusters")
    torch.testing.assert_close(both.loss, 0.75 * alone.loss + 0.25 * old.loss)
    both.loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    model.save_pretrained(tmp_path)
    _, loading = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values()), "the encoder opens alone without a word about the rest"
    again = SJepaForPreTraining.from_pretrained(tmp_path).eval()
    assert again.frozen_mixture.means.equal(model.frozen_mixture.means)
    torch.testing.assert_close(again(**inputs, frozen_posteriors=frozen, frozen_weight=0.25).loss, both.loss)
    again.replace_mixture(3, 4)
    assert again.config.num_frozen_components is None and not any("frozen" in name for name in again.state_dict())


def test_mixture_travels_and_the_encoder_opens_alone(config, tmp_path, caplog):
    model = SJepaForPreTraining(config).eval()
    model.mixture.fit(torch.randn(500, 48) * 3)
    model.save_pretrained(tmp_path)
    again = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.mixture.buffers(), again.mixture.buffers()))
    encoder = AutoModel.from_pretrained(tmp_path).eval()
    assert type(encoder) is SJepaModel
    waveforms = torch.randn(1, 4000)
    assert torch.equal(encoder(waveforms).last_hidden_state, model.sjepa(waveforms).last_hidden_state)
    half = AutoModelForPreTraining.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(half.mixture.means, model.mixture.means)


def test_targets_that_do_not_fit_get_a_sentence(make_config, masked_batch):
    inputs, _ = masked_batch
    model, targets = SJepaForPreTraining(make_config()), inputs["target_posteriors"]
    for wrong in (targets[:, :, :9], targets[:, :48], torch.cat([targets, targets], 1), targets[:2], targets.long()):
        with pytest.raises(ValueError, match=r"`target_posteriors` must be floating point of shape \(3, 49, 10\)"):
            model(**(inputs | {"target_posteriors": wrong}))
    with pytest.raises(ValueError, match="without a frozen mixture"):
        model(**inputs, frozen_posteriors=targets)
    model.replace_mixture(7, 5, keep_frozen=True)
    inputs["target_posteriors"] = targets[:, :, :7]
    with pytest.raises(ValueError, match=r"`frozen_posteriors` must be floating point of shape \(3, 49, 10\)"):
        model(**inputs, frozen_posteriors=targets[:, :, :7], frozen_weight=0.5)
    with pytest.raises(ValueError, match="second target"):
        model(**(inputs | {"target_posteriors": None}), frozen_posteriors=targets)
    with pytest.raises(ValueError, match=r"`mask_time_indices` must be bool of shape \(3, 49\)"):
        model(**(inputs | {"mask_time_indices": inputs["mask_time_indices"].long()}))
    with pytest.raises(ValueError, match="channel"):
        model(inputs["input_values"][:, None])


def test_a_mask_over_padding_counts_real_frames_alone(config, masked_batch):
    batch, real = masked_batch
    model = SJepaForPreTraining(config).eval()
    everywhere = model(**{**batch, "mask_time_indices": torch.ones_like(real)})
    assert everywhere.num_masked_frames == real.sum()
    torch.testing.assert_close(everywhere.loss, model(**{**batch, "mask_time_indices": real}).loss)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: {"target_posteriors": 10 * batch["target_posteriors"]}, "must be posteriors"),
        (lambda batch: {"target_posteriors": torch.randn(3, 49, 10)}, "must be posteriors"),
        (lambda batch: {"frozen_weight": 0.5}, "no effect without `frozen_posteriors`"),
        (lambda batch: {"labels": torch.zeros(3, 49)}, "no `labels`.*one-hot"),
    ],
)
def test_targets_that_cannot_be_meant_are_refused(config, masked_batch, change, message):
    batch, _ = masked_batch
    with pytest.raises(ValueError, match=message):
        SJepaForPreTraining(config)(**{**batch, **change(batch)})


def test_padded_targets_may_hold_anything(config, masked_batch):
    batch, real = masked_batch
    model = SJepaForPreTraining(config).eval()
    filled = batch["target_posteriors"].masked_fill(~real[:, :, None], -7.0)
    torch.testing.assert_close(model(**{**batch, "target_posteriors": filled}).loss, model(**batch).loss)


def test_units_of_a_mixture_that_was_never_fitted_are_warned_of(make_config, padded_batch, caplog):
    model = SJepaForPreTraining(make_config(mixture_features="mfcc", mixture_feature_size=39)).eval()
    transformers.utils.logging.enable_propagation()
    transformers.utils.logging.warning_once.cache_clear()
    try:
        model.units(*padded_batch[:2])
        assert "never been fitted" in caplog.text
        caplog.clear()
        transformers.utils.logging.warning_once.cache_clear()
        model.mixture.fit(torch.randn(200, 39), num_iterations=1)
        model.units(*padded_batch[:2])
        assert "never been fitted" not in caplog.text
    finally:
        transformers.utils.logging.disable_propagation()


ENTRIES = {
    "with a mask": lambda model, *batch: model(*batch, mask_time_indices=torch.ones(1, 12, dtype=torch.bool)),
    "without a mask": lambda model, *batch: model(*batch),
    "units of the prediction": lambda model, *batch: model.units(*batch, source="prediction"),
    "units": lambda model, *batch: model.units(*batch),
}


@pytest.mark.parametrize("features", ["mfcc", "log_mel", "encoder"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_refuses_samples_that_cannot_be_meant(make_config, entry, features):
    layers, size = ([2], 48) if features == "encoder" else (None, {"mfcc": 39, "log_mel": 69}[features])
    config = make_config(mixture_features=features, mixture_layers=layers, mixture_feature_size=size)
    model, waveforms = SJepaForPreTraining(config).eval(), torch.randn(1, 4000)
    with pytest.raises(ValueError, match="NaN or infinite samples"):
        ENTRIES[entry](model, waveforms.index_fill(1, torch.tensor(7), torch.nan))
    with pytest.raises(ValueError, match="pad clips on the right"):
        ENTRIES[entry](model, waveforms, torch.arange(4000)[None] > 9)


def test_the_trainer_predicts(config, masked_batch, tmp_path):
    batch, _ = masked_batch
    rows = [{name: values[n] for name, values in batch.items()} for n in range(3)]
    settings = TrainingArguments(str(tmp_path), report_to="none", label_names=["target_posteriors"], use_cpu=True)
    trainer = Trainer(SJepaForPreTraining(config), settings, eval_dataset=rows)
    logits = trainer.predict(rows).predictions[-1]
    assert logits.shape == (3, 49, 10)
    assert trainer.evaluate()["eval_loss"] > 0


def test_an_apple_gpu_gives_the_units_of_a_cpu(make_config, padded_batch):
    model, found = SJepaForPreTraining(make_config(mixture_features="mfcc", mixture_feature_size=39)).eval(), []
    for device in ("cpu", "mps:0"):
        with AppleGpu(), torch.no_grad():
            inputs = [values.to(device) for values in padded_batch[:2]]
            both = [model.to(device).units(*inputs, source=source, top_k=3) for source in ("mixture", "prediction")]
            found.append([(each.units.cpu(), each.top_posteriors.cpu()) for each in both])
    torch.testing.assert_close(found[1], found[0])
