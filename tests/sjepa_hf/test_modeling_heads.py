import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForAudioXVector,
    AutoModelForCTC,
    Trainer,
    TrainingArguments,
    WavLMConfig,
    WavLMForXVector,
)

from sjepa_hf import (
    SJepaForAudioFrameClassification,
    SJepaForCTC,
    SJepaForPreTraining,
    SJepaForSequenceClassification,
    SJepaForXVector,
    SJepaModel,
)
from sjepa_hf.modeling_sjepa_heads import masked_mean_and_std, random_spans


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


def test_hidden_states_come_when_asked_for(head_config):
    model = SJepaForSequenceClassification(head_config).eval()
    assert model(torch.randn(1, 4000)).hidden_states is None
    assert len(model(torch.randn(1, 4000), output_hidden_states=True).hidden_states) == 4
    assert isinstance(model(torch.randn(1, 4000), return_dict=False), tuple)


def test_ctc_loss_is_torchs(make_config, padded_batch):
    waveforms, attention_mask, _ = padded_batch
    model, labels = SJepaForCTC(make_config()).eval(), labels_for(SJepaForCTC)
    log_probs = model(waveforms, attention_mask).logits.log_softmax(-1)
    expected = torch.nn.functional.ctc_loss(
        log_probs.transpose(0, 1), labels.clamp(min=0), torch.tensor([49, 27, 1]), torch.tensor([4, 2, 1]),
        zero_infinity=True,
    )  # fmt: skip
    torch.testing.assert_close(model(waveforms, attention_mask, labels=labels).loss, expected)


def test_frame_labels_of_padding_do_not_count(make_config, padded_batch):
    waveforms, attention_mask, _ = padded_batch
    model = SJepaForAudioFrameClassification(make_config(**SMALL)).eval()
    classes = torch.randint(5, (3, 49))
    loss = model(waveforms, attention_mask, labels=classes).loss
    one_hot = torch.nn.functional.one_hot(classes, 5)
    torch.testing.assert_close(model(waveforms, attention_mask, labels=one_hot).loss, loss)
    classes[1, 27:], classes[2, 1:] = 3, 0
    torch.testing.assert_close(model(waveforms, attention_mask, labels=classes).loss, loss)
    classes[0, 0] = -100
    assert model(waveforms, attention_mask, labels=classes).loss != loss


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


def test_random_spans_reach_their_share_on_real_frames_only():
    lengths = torch.tensor([500, 200, 10, 0]).repeat(400)
    mask = random_spans(lengths, 500, prob=0.2, span=10)
    shares = mask.float().sum(1).view(400, 4).mean(0) / torch.tensor([500, 200, 1, 1])
    # Spans overlap: fewer frames are hidden than spans would cover side by side.
    assert 0.16 < shares[0] < 0.20 and 0.16 < shares[1] < 0.20
    assert not mask[lengths <= 10].any() and not mask[lengths == 200][:, 200:].any()
    runs = mask[0].int().diff(prepend=torch.tensor([0])).eq(1).sum()
    assert mask[0].sum() >= 10 * runs  # whole spans, or several run together


NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "final_dropout", "layerdrop"),
    0.0,
)


@pytest.mark.parametrize("what", ["mask_time", "mask_feature"])
def test_spec_augment_hides_while_training_only(what, make_config, padded_batch):
    waveforms, attention_mask, _ = padded_batch
    model = SJepaForCTC(make_config(**(NO_DROPOUT | {"mask_time_prob": 0.0, f"{what}_prob": 0.5})))
    given = []
    model.sjepa.register_forward_pre_hook(lambda module, args, kwargs: given.append(set(kwargs)), with_kwargs=True)
    clean = model.eval()(waveforms, attention_mask).logits
    hidden = model.train()(waveforms, attention_mask).logits
    assert not torch.allclose(clean, hidden, atol=1e-3)
    model.config.apply_spec_augment = False
    torch.testing.assert_close(model(waveforms, attention_mask).logits, clean)
    assert [f"{what}_indices" in names for names in given] == [False, True, False]


@pytest.mark.parametrize("head_class", HEADS)
@pytest.mark.parametrize("training", [False, True])
def test_compiles_into_one_graph(head_class, make_config, padded_batch, training):
    waveforms, attention_mask, _ = padded_batch
    config = make_config(use_weighted_layer_sum=True, mask_feature_prob=0.1, **SMALL)
    model = head_class(config).train(training)
    model(waveforms, attention_mask)  # Transformers hooks the layers on the first call, under a lock
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    output = compiled(waveforms, attention_mask)
    if not training:
        torch.testing.assert_close(output.logits, model(waveforms, attention_mask).logits, atol=1e-5, rtol=1e-4)


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
