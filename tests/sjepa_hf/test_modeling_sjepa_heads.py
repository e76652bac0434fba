import copy
import json

import pytest
import torch
from apple_gpu import AppleGpu
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForAudioXVector,
    AutoModelForCTC,
    Trainer,
    TrainingArguments,
    Wav2Vec2CTCTokenizer,
    WavLMConfig,
    WavLMForXVector,
    pipeline,
)
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import Wav2Vec2BaseModelOutput

from sjepa_hf import (
    SJepaForAudioFrameClassification,
    SJepaForCTC,
    SJepaForPreTraining,
    SJepaForSequenceClassification,
    SJepaForXVector,
    SJepaModel,
)
from sjepa_hf.feature_extraction import feature_extractor
from sjepa_hf.modeling_sjepa_heads import masked_mean_and_std


HEADS = {
    SJepaForCTC: AutoModelForCTC,
    SJepaForSequenceClassification: AutoModelForAudioClassification,
    SJepaForAudioFrameClassification: AutoModelForAudioFrameClassification,
    SJepaForXVector: AutoModelForAudioXVector,
}
SMALL = dict(
    num_labels=5, classifier_proj_size=16, tdnn_dim=[24, 24, 40], tdnn_kernel=[5, 3, 1], tdnn_dilation=[1, 2, 1],
    xvector_output_dim=12,
)  # fmt: skip


@pytest.fixture(params=[False, True], ids=["last_layer", "all_layers"])
def head_config(request, make_config):
    return make_config(use_weighted_layer_sum=request.param, **SMALL)


def labels_for(head_class):
    if head_class is SJepaForCTC:
        return torch.tensor([[5, 6, 7, 7], [8, 9, -100, -100], [4, -100, -100, -100]])
    if head_class is SJepaForAudioFrameClassification:
        return torch.randint(5, (3, 49))
    return torch.tensor([0, 4, 2])


@pytest.mark.parametrize("head_class", HEADS)
def test_every_head_learns_in_bf16(head_class, head_config, padded_batch):
    model = head_class(head_config).bfloat16()
    waveforms, attention_mask, _ = padded_batch
    model(waveforms.bfloat16(), attention_mask, labels=labels_for(head_class)).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("head_class", HEADS)
def test_an_apple_gpu_learns_as_a_cpu_does(head_class, head_config, padded_batch):
    model, inputs, found = head_class(head_config).eval(), (*padded_batch[:2], labels_for(head_class)), []
    for device in ("cpu", "mps:0"):
        with AppleGpu():
            there = copy.deepcopy(model).to(device)
            loss = there(*(values.to(device) for values in inputs)).loss
            loss.backward()
            assert loss.device.type == device[:3]
            found.append([loss.cpu(), *(p.grad.cpu() for p in there.parameters() if p.grad is not None)])
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("head_class", HEADS)
def test_padding_changes_nothing(head_class, head_config, padded_batch):
    waveforms, attention_mask, lengths = padded_batch
    model = head_class(head_config).eval()
    together = model(waveforms, attention_mask)
    for i, length in enumerate(lengths):
        alone = model(waveforms[i : i + 1, :length])
        frames = model.config.num_frames(int(length))
        for name in ("logits", "embeddings"):
            if name in alone:
                batched = together[name][i : i + 1]
                batched = batched[:, :frames] if batched.ndim == 3 else batched
                torch.testing.assert_close(batched, alone[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("head_class", HEADS)
def test_learns_and_opens_from_one_checkpoint(head_class, head_config, padded_batch, tmp_path):
    waveforms, attention_mask, _ = padded_batch
    model = head_class(head_config)
    loss = model(waveforms, attention_mask, labels=labels_for(head_class)).loss
    loss.backward()
    head = {name: p for name, p in model.named_parameters() if not name.startswith("sjepa.")}
    if head_class is SJepaForXVector:  # as in WavLM, the loss reads the classifier, not the embedding itself
        assert "classifier.weight" in head
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().max() > 0 for p in head.values()), head.keys()
    assert model.sjepa.encoder.layers[0].attention.q_proj.weight.grad.abs().max() > 0
    model.freeze_base_model()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == head.keys()

    model.eval().save_pretrained(tmp_path)
    again = HEADS[head_class].from_pretrained(tmp_path).eval()
    assert type(again) is head_class
    assert torch.equal(again(waveforms)[0], model(waveforms)[0])
    assert type(AutoModel.from_pretrained(tmp_path)) is SJepaModel


def test_a_pretrained_encoder_takes_any_head(make_config, tmp_path):
    pretrained = SJepaForPreTraining(make_config())
    pretrained.save_pretrained(tmp_path)
    for head_class in HEADS:
        model = head_class.from_pretrained(tmp_path, use_weighted_layer_sum=True, **SMALL)
        assert torch.equal(
            model.sjepa.feature_projection.projection.weight, pretrained.sjepa.feature_projection.projection.weight
        )
        assert torch.equal(model.layer_weights, torch.full((4,), 0.25))
        for parameter in model.parameters():  # what the checkpoint lacks is initialised, not left as memory was
            assert torch.isfinite(parameter).all() and parameter.abs().max() < 20


@pytest.mark.parametrize("head_class", HEADS)
def test_tuples_hold_what_outputs_by_name_do(head_class, head_config, padded_batch, tmp_path):
    head_class(head_config).save_pretrained(tmp_path)
    model = head_class.from_pretrained(tmp_path, return_dict=False).eval()
    inputs = dict(input_values=padded_batch[0], attention_mask=padded_batch[1], labels=labels_for(head_class))
    found, expected = model(**inputs), model(**inputs, return_dict=True)
    assert type(found) is tuple and all(a.equal(b) for a, b in zip(found, expected.to_tuple(), strict=True))


def test_hidden_states_come_when_asked_for(head_config):
    model = SJepaForSequenceClassification(head_config).eval()
    assert model(torch.randn(1, 4000)).hidden_states is None
    assert len(model(torch.randn(1, 4000), output_hidden_states=True).hidden_states) == 4
    clip = torch.randn(1, 4000)
    (logits,) = model(clip, return_dict=False)
    assert logits.equal(model(clip).logits)


def test_single_hidden_states_of_a_weighted_sum(make_config):
    model = SJepaForSequenceClassification(make_config(**SMALL, use_weighted_layer_sum=True)).eval()
    clip = torch.randn(1, 4000)
    layers = model(clip, output_hidden_states=True).hidden_states
    for numbers, wanted in (([1], [1]), ([-1, 0], [0, len(layers) - 1]), (2, [2])):
        found = model(clip, output_hidden_states=numbers).hidden_states
        assert len(found) == len(wanted) and all(layers[i].equal(layer) for i, layer in zip(wanted, found))
    with pytest.raises(ValueError, match="`num_layers` leaves out layers of which `use_weighted_layer_sum`"):
        model(clip, num_layers=1)


def test_ctc_loss_is_torchs(make_config, padded_batch):
    waveforms, attention_mask, _ = padded_batch
    model, labels = SJepaForCTC(make_config()).eval(), labels_for(SJepaForCTC)
    log_probs = model(waveforms, attention_mask).logits.log_softmax(-1)
    expected = torch.nn.functional.ctc_loss(
        log_probs.transpose(0, 1), labels.clamp(min=0), torch.tensor([49, 27, 1]), torch.tensor([4, 2, 1]),
        zero_infinity=True,
    )  # fmt: skip
    torch.testing.assert_close(model(waveforms, attention_mask, labels=labels).loss, expected)


@pytest.mark.parametrize(("problem_type", "num_labels"), [("multi_label_classification", 5), ("regression", 2)])
def test_problem_types_have_the_losses_of_transformers(make_config, padded_batch, problem_type, num_labels):
    config = make_config(**(SMALL | {"num_labels": num_labels}), problem_type=problem_type)
    model, labels = SJepaForSequenceClassification(config).eval(), torch.rand(3, num_labels).round(decimals=1)
    output = model(*padded_batch[:2], labels=labels)
    torch.testing.assert_close(output.loss, ForSequenceClassificationLoss(labels, output.logits, config))
    output.loss.backward()
    for wrong in (labels.long(), labels[:2], labels.T.contiguous(), labels[:, 0]):
        with pytest.raises(ValueError, match=rf"{problem_type}.* floating point of shape \(3, {num_labels}\)"):
            model(*padded_batch[:2], labels=wrong)


def test_a_number_for_each_clip_is_no_single_class(make_config, padded_batch):
    config = make_config(**(SMALL | {"num_labels": 1}))
    model, labels = SJepaForSequenceClassification(config).eval(), torch.tensor([0.5, -2.0, 3.0])
    with pytest.raises(ValueError, match="single class teaches nothing.*regression"):
        model(*padded_batch[:2], labels=torch.zeros(3, dtype=torch.long))
    config.problem_type = "regression"
    for shape in ((3,), (3, 1)):
        output = model(*padded_batch[:2], labels=labels.view(shape))
        torch.testing.assert_close(output.loss, (output.logits[:, 0] - labels).square().mean())


def test_frame_labels_of_padding_do_not_count(make_config, padded_batch):
    waveforms, attention_mask, _ = padded_batch
    model = SJepaForAudioFrameClassification(make_config(**SMALL)).eval()
    classes = torch.randint(5, (3, 49))
    loss = model(waveforms, attention_mask, labels=classes).loss
    one_hot = torch.nn.functional.one_hot(classes, 5)
    for dtype in (torch.int64, torch.float32, torch.bool):
        torch.testing.assert_close(model(waveforms, attention_mask, labels=one_hot.to(dtype)).loss, loss)
    classes[1, 27:], classes[2, 1:] = 3, 0
    torch.testing.assert_close(model(waveforms, attention_mask, labels=classes).loss, loss)
    classes[0, 0] = -100
    without = model(waveforms, attention_mask, labels=classes).loss
    assert without != loss
    for left_out in (-100, 0):
        one_hot[0, 0] = left_out
        torch.testing.assert_close(model(waveforms, attention_mask, labels=one_hot).loss, without)


def test_speaker_head_is_wavlms(make_config):
    """The same weights in both heads, over the same features: the same embeddings and loss."""
    sizes = dict(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    theirs = WavLMForXVector(WavLMConfig(conv_dim=[32] * 7, **sizes, **SMALL)).eval()
    ours = SJepaForXVector(make_config(**SMALL)).eval()
    weights = {k: v for k, v in theirs.state_dict().items() if not k.startswith("wavlm.")}
    for i, layer in enumerate(theirs.tdnn):
        kernel = weights.pop(f"tdnn.{i}.kernel.weight")
        weights[f"tdnn.{i}.conv.weight"] = kernel.view(layer.out_conv_dim, layer.kernel_size, -1).transpose(1, 2)
        weights[f"tdnn.{i}.conv.bias"] = weights.pop(f"tdnn.{i}.kernel.bias")
    missing, unexpected = ours.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith("sjepa.") for name in missing)
    features, labels = torch.randn(2, 49, 48), torch.tensor([1, 3])
    for model in (ours.sjepa, theirs.wavlm):
        model.forward = lambda *args, **kwargs: type(
            "Output", (), {"last_hidden_state": features, "hidden_states": None, "attentions": None}
        )()
    a, b = (model(torch.randn(2, 16000), labels=labels) for model in (ours, theirs))
    torch.testing.assert_close(a.embeddings, b.embeddings, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(a.loss, b.loss, atol=1e-4, rtol=1e-4)


def test_statistics_of_real_frames():
    values, lengths = torch.randn(3, 20, 4), (20, 7, 1)
    mask = torch.arange(20) < torch.tensor(lengths)[:, None]
    mean, deviation = masked_mean_and_std(values, mask)
    for i, length in enumerate(lengths):
        torch.testing.assert_close(mean[i], values[i, :length].mean(0))
        if length > 1:
            torch.testing.assert_close(deviation[i], values[i, :length].std(0))
    assert deviation[2].abs().max() < 1e-6


NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "final_dropout", "layerdrop"),
    0.0,
)


COMPILED = dict(use_weighted_layer_sum=True, mask_feature_prob=0.1, **(SMALL | {"num_hidden_layers": 1}))


@pytest.mark.parametrize("head_class", HEADS)
def test_compiles_into_one_graph(head_class, make_config, padded_batch, monkeypatch):
    """Over an encoder that has done its work: that is compiled by itself, and below with a head."""
    waveforms, attention_mask, _ = padded_batch
    model = head_class(make_config(**COMPILED)).eval()
    layers = model.sjepa(waveforms, attention_mask, output_hidden_states=True).hidden_states
    done = dict(last_hidden_state=layers[-1], hidden_states=layers)
    monkeypatch.setattr(model.sjepa, "forward", lambda *_, **__: Wav2Vec2BaseModelOutput(**done))
    output = torch.compile(model, fullgraph=True, backend="eager")(waveforms, attention_mask)
    torch.testing.assert_close(output.logits, model(waveforms, attention_mask).logits, atol=1e-5, rtol=1e-4)


def test_compiles_into_one_graph_with_its_encoder(make_config, padded_batch):
    """In training, with SpecAugment."""
    model = SJepaForCTC(make_config(**COMPILED)).train()
    model(*padded_batch[:2])  # Transformers hooks the layers on the first call, under a lock
    torch.compile(model, fullgraph=True, backend="eager")(*padded_batch[:2])


def test_trainer_divides_accumulated_losses(make_config, tmp_path):
    """Two batches of two accumulated give the weights of one batch of four."""
    config = make_config(**(NO_DROPOUT | SMALL), apply_spec_augment=False)
    clips = [{"input_values": torch.randn(4000), "labels": i} for i in range(4)]
    trained = []
    for size in (4, 2):
        torch.manual_seed(0)
        model = SJepaForSequenceClassification(config)
        arguments = TrainingArguments(
            tmp_path / str(size), per_device_train_batch_size=size, gradient_accumulation_steps=4 // size, max_steps=1,
            optim="sgd", learning_rate=1.0, max_grad_norm=0.0, report_to="none", use_cpu=True, save_strategy="no",
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=clips).train()
        trained.append(model.classifier.weight.detach())
    torch.testing.assert_close(*trained, atol=1e-6, rtol=1e-4)


# Labels


@pytest.mark.parametrize("head_class", HEADS)
@pytest.mark.parametrize("wrong", [5, 10**6, 2**40, -1, -99])
def test_labels_of_no_class_get_a_sentence(head_class, wrong, make_config, padded_batch):
    waveforms, attention_mask, _ = padded_batch
    model, labels = head_class(make_config(vocab_size=5, **SMALL)), labels_for(head_class).clamp(max=4)
    labels.view(-1)[0] = wrong
    size = "vocab_size" if head_class is SJepaForCTC else "num_labels"
    with pytest.raises(ValueError, match=f"hold {wrong}, but with `{size}` 5 they go from 0 to 4, or are -100"):
        model(waveforms, attention_mask, labels=labels)


@pytest.mark.parametrize("head_class", HEADS)
def test_labels_of_another_type_or_shape_get_a_sentence(head_class, make_config, padded_batch):
    waveforms, attention_mask, _ = padded_batch
    model, labels = head_class(make_config(**SMALL)).eval(), labels_for(head_class)
    for wrong in (labels.float(), labels.clamp(min=0).bool()):
        with pytest.raises(ValueError, match="must be integers"):
            model(waveforms, attention_mask, labels=wrong)
    for wrong in (labels[:2], torch.cat([labels, labels]), torch.tensor(3)):
        with pytest.raises(ValueError, match="must have shape"):
            model(waveforms, attention_mask, labels=wrong)
    expected = model(waveforms, attention_mask, labels=labels).loss
    torch.testing.assert_close(model(waveforms, attention_mask, labels=labels.int()).loss, expected)


@pytest.mark.parametrize("head_class", HEADS)
def test_a_label_of_minus_100_leaves_its_clip_out(head_class, make_config, padded_batch):
    waveforms, attention_mask, _ = padded_batch
    model, labels = head_class(make_config(**SMALL)).eval(), labels_for(head_class)
    labels[1] = -100
    loss = model(waveforms, attention_mask, labels=labels).loss
    kept = torch.tensor([0, 2])
    alone = model(waveforms[kept], attention_mask[kept], labels=labels[kept]).loss
    # The mean of CTC losses runs over all clips; one without labels costs what its blanks cost.
    assert loss.isfinite() if head_class is SJepaForCTC else torch.allclose(loss, alone, atol=1e-5)


def test_frames_want_labels_of_their_own_number(make_config):
    model = SJepaForAudioFrameClassification(make_config(**SMALL))
    for shape in ((2, 23), (2, 25), (2, 24, 4), (2,)):
        with pytest.raises(ValueError, match=r"shape \(2, 24\) \(batch_size, frames\) or, one-hot, \(2, 24, 5\)"):
            model(torch.randn(2, 8000), labels=torch.zeros(shape, dtype=torch.long))


def test_labels_of_padded_frames_may_be_anything(make_config, padded_batch):
    waveforms, attention_mask, _ = padded_batch
    labels = torch.randint(5, (3, 49))
    labels[1, 27:], labels[2, 1:] = 77, -3
    model = SJepaForAudioFrameClassification(make_config(**SMALL))
    assert model(waveforms, attention_mask, labels=labels).loss.isfinite()


def test_ctc_wants_a_blank(make_config):
    with pytest.raises(ValueError, match="`pad_token_id` is None, but CTC needs a blank"):
        SJepaForCTC(make_config(pad_token_id=None))


# What padding writes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("blank", [0, 31])
def test_padded_frames_are_certain_blanks(dtype, blank, make_config, padded_batch):
    waveforms, attention_mask, lengths = padded_batch
    lengths[2], attention_mask[2, 300:] = 300, 0  # shorter than one frame
    model = SJepaForCTC(make_config(pad_token_id=blank)).to(dtype).eval()
    logits = model(waveforms, attention_mask).logits
    padded = torch.arange(49) >= model.config.num_frames(lengths)[:, None]
    assert padded.sum(1).tolist() == [0, 22, 49]
    assert logits.dtype == dtype and logits.isfinite().all()
    certain = torch.nn.functional.one_hot(torch.tensor(blank), 32).to(dtype)
    assert logits.softmax(-1)[padded].eq(certain).all()
    assert (logits.softmax(-1)[~padded] < 1).all()
    assert logits.float().log_softmax(-1).isfinite().all()


def test_blanks_of_padding_leave_loss_and_gradients_alone(make_config, padded_batch):
    """In the batch and clip by clip; what the padded frames hold does not reach them."""
    waveforms, attention_mask, lengths = padded_batch
    model = SJepaForCTC(make_config(ctc_loss_reduction="sum")).eval()
    labels = labels_for(SJepaForCTC)
    model(waveforms, attention_mask, labels=labels).loss.backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    sum(model(waveforms[i : i + 1, :n], labels=labels[i : i + 1]).loss for i, n in enumerate(lengths)).backward()
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(together[name], parameter.grad, atol=1e-4 * scale + 1e-6, rtol=1e-3)


@pytest.fixture
def transcriber(make_config, tmp_path):
    """A pipeline that writes a letter nearly every frame."""
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]
    (tmp_path / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    model = SJepaForCTC(make_config("log_mel", vocab_size=32)).eval()
    torch.nn.init.normal_(model.lm_head.weight)
    return pipeline(
        "automatic-speech-recognition", model=model, tokenizer=tokenizer, feature_extractor=feature_extractor(),
        device="cpu",
    )  # fmt: skip


def test_each_clip_of_a_batch_has_its_own_text(transcriber):
    clips = [torch.randn(n).numpy() for n in (16000, 3000, 450, 9037, 16000, 720)]
    alone = [transcriber(clip)["text"] for clip in clips]
    assert all(len(text) > 0 for text in alone)
    for batch_size in (2, 4, 6):
        assert [found["text"] for found in transcriber(clips, batch_size=batch_size)] == alone
    assert [found["text"] for found in transcriber(clips[::-1], batch_size=6)] == alone[::-1]


@pytest.mark.parametrize("options", [{}, {"chunk_length_s": 0.5}, {"chunk_length_s": 0.5, "stride_length_s": 0.1}])
def test_texts_times_and_chunks_do_not_depend_on_the_batch(transcriber, options):
    clips = [torch.randn(n).numpy() for n in (16000, 7000, 12345)]
    alone = [transcriber(clip, return_timestamps="word", **options) for clip in clips]
    together = list(transcriber(clips, batch_size=4, return_timestamps="word", **options))
    assert together == alone
    for clip, found in zip(clips, alone):
        assert found["chunks"][-1]["timestamp"][1] <= len(clip) / 16000
