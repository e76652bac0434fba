import pytest
import torch
from finetuning_runs import SIZES, prepare, run, sentence
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    HubertConfig,
    HubertForCTC,
    SEWDConfig,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerForCTC,
    WavLMConfig,
    WavLMForCTC,
)

from sjepa_hf import SJepaConfig, SJepaForCTC, SJepaForSequenceClassification
from training import finetune_ctc
from training.finetuning.arguments import FineTuningArguments
from training.finetuning.model import open_with_head, shortest_batch, with_adapters


def test_the_top_layers_can_start_afresh(checkpoint, mine, tmp_path):
    old = AutoModelForCTC.from_pretrained(checkpoint).state_dict()
    model = prepare(finetune_ctc, checkpoint, mine, tmp_path, "--reinit_layers", "1").trainer.model
    weights = {name: value for name, value in model.state_dict().items() if name.startswith("sjepa")}
    changed = {name for name, value in weights.items() if not value.equal(old[name])}
    top = {name for name in weights if name.startswith("sjepa.encoder.layers.1.") and name.endswith("weight")}
    assert changed == {name for name in top if "norm" not in name}
    assert weights["sjepa.encoder.layers.1.attention.q_proj.weight"].std() > 0.01
    message = sentence(finetune_ctc, checkpoint, mine, tmp_path / "b", "--reinit_layers", "3")
    assert "`reinit_layers` is 3, but the encoder has 2 layers" in message


def test_adapters_are_saved_with_the_head_and_merged(checkpoint, mine, tmp_path):
    _, final = run(finetune_ctc, checkpoint, mine, tmp_path, "--lora_rank", "2", "--num_train_epochs", "1")
    merged = AutoModelForCTC.from_pretrained(final).eval()
    base = AutoModelForCTC.from_pretrained(checkpoint, vocab_size=merged.config.vocab_size)
    adapted = PeftModel.from_pretrained(base, final / "adapter").eval()
    waveform = torch.randn(1, 8000)
    expected = merged(waveform).logits
    assert torch.allclose(adapted(waveform).logits, expected, atol=1e-5)
    with adapted.disable_adapter():
        assert not torch.allclose(adapted(waveform).logits, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("model_class", "config", "maps"),
    [
        (SJepaForCTC, SJepaConfig, 6),
        (HubertForCTC, HubertConfig, 6),
        (WavLMForCTC, WavLMConfig, 2),
        (Wav2Vec2ConformerForCTC, Wav2Vec2ConformerConfig, 9),  # two feed-forward blocks, attention with positions
    ],
    ids=["sjepa", "hubert", "wavlm", "conformer"],
)
def test_every_linear_map_of_a_layer_has_an_adapter_with_a_gradient(model_class, config, maps):
    model = with_adapters(model_class(config(**SIZES, vocab_size=7, layerdrop=0.0)), rank=2).train()
    model(torch.randn(2, 8000), labels=torch.tensor([[5, 6], [6, 5]])).loss.backward()
    adapters = {name: p for name, p in model.named_parameters() if "lora_B" in name}  # A has none before B moves
    assert len(adapters) == maps * model.config.num_hidden_layers
    assert all(p.grad is not None and p.grad.any() for p in adapters.values())
    head = [p for name, p in model.named_parameters() if "lm_head.modules_to_save" in name]
    assert len(head) == 2 and all(p.requires_grad for p in head)


@pytest.mark.parametrize("config", [SJepaConfig, HubertConfig, WavLMConfig])
def test_adapters_are_refused_where_the_head_has_weights_of_layers(config, tmp_path):
    """They would be neither trained nor saved, and the adapters on their base give other logits than the result."""
    config = config(**SIZES, use_weighted_layer_sum=True)
    AutoModelForAudioClassification.from_config(config).save_pretrained(tmp_path)
    arguments = FineTuningArguments(model_name_or_path=str(tmp_path), lora_rank=2)
    with pytest.raises(ValueError, match="`lora_rank` cannot train layer_weights of this head"):
        open_with_head(AutoModelForAudioClassification, arguments)
    if config.model_type == "hubert":  # whose recogniser has none
        assert open_with_head(AutoModelForCTC, arguments).peft_config


@pytest.mark.parametrize("config", [SJepaConfig, HubertConfig, WavLMConfig])
def test_dimensions_are_hidden_in_training(config, tmp_path):
    """In WavLM too, whose configuration lacks a field that its SpecAugment reads."""
    AutoModelForCTC.from_config(config(**SIZES, vocab_size=7)).save_pretrained(tmp_path)
    arguments = FineTuningArguments(
        model_name_or_path=str(tmp_path), dropout=0.0, mask_time_prob=0.0, mask_feature_prob=0.5
    )
    model = open_with_head(AutoModelForCTC, arguments, layerdrop=0.0)
    waveform = torch.randn(1, 8000)
    seen = model.eval()(waveform).logits
    assert seen.equal(model(waveform).logits) and not torch.allclose(model.train()(waveform).logits, seen)


@pytest.mark.parametrize("config", [SJepaConfig, HubertConfig, WavLMConfig])
def test_a_sum_over_layers_is_trained_without_layers_that_are_left_out(config, tmp_path, caplog):
    """Where the frozen result of an encoder with LayerDrop is trained on, steps ended in tensors of other sizes."""
    caplog.set_level("INFO")
    config = config(**SIZES, use_weighted_layer_sum=True, layerdrop=0.99)
    AutoModelForAudioClassification.from_config(config).save_pretrained(tmp_path)
    model = open_with_head(AutoModelForAudioClassification, FineTuningArguments(model_name_or_path=str(tmp_path)))
    model.train()(torch.randn(2, 8000), labels=torch.tensor([0, 1])).loss.backward()
    ours = config.model_type == "sjepa"  # drops by value
    assert model.config.layerdrop == (0.99 if ours else 0.0) and ("LayerDrop is off" in caplog.text) != ours


@pytest.mark.parametrize("setting", ["lora_rank", "reinit_layers"])
def test_layers_that_lie_elsewhere_get_a_sentence(setting, tmp_path):
    AutoModelForCTC.from_config(SEWDConfig(**(SIZES | {"conv_dim": [16] * 13}), vocab_size=7)).save_pretrained(
        tmp_path
    )
    arguments = FineTuningArguments(model_name_or_path=str(tmp_path), **{setting: 1})
    with pytest.raises(ValueError, match=f"`{setting}` looks for the layers of .* and SEWDModel has none: leave it"):
        open_with_head(AutoModelForCTC, arguments)


@pytest.mark.parametrize("config", [SJepaConfig, WavLMConfig, Wav2Vec2ConformerConfig])
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_no_dropout_is_none_at_all(config, lora_rank, tmp_path):
    AutoModelForCTC.from_config(config(**SIZES, vocab_size=7)).save_pretrained(tmp_path)
    for given, left in ((0.0, False), (None, True)):
        arguments = FineTuningArguments(model_name_or_path=str(tmp_path), lora_rank=lora_rank, dropout=given)
        model = open_with_head(AutoModelForCTC, arguments)
        assert any(getattr(module, "p", 0) for module in model.modules()) == left


def test_from_scratch_keeps_the_sizes_and_forgets_the_weights(checkpoint, mine, tmp_path):
    trained = prepare(finetune_ctc, checkpoint, mine, tmp_path).trainer.model.state_dict()
    fresh = prepare(finetune_ctc, checkpoint, mine, tmp_path, "--from_scratch", "true").trainer.model
    name = "sjepa.encoder.layers.0.attention.q_proj.weight"
    assert fresh.state_dict()[name].shape == trained[name].shape and not fresh.state_dict()[name].equal(trained[name])
    assert all(p.requires_grad for p in fresh.parameters())


@pytest.mark.parametrize("from_scratch", [False, True])
def test_weights_are_in_fp32_however_the_checkpoint_was_saved(from_scratch, tmp_path):
    SJepaForCTC(SJepaConfig(**SIZES)).bfloat16().save_pretrained(tmp_path)
    arguments = FineTuningArguments(model_name_or_path=str(tmp_path), from_scratch=from_scratch)
    model = open_with_head(AutoModelForCTC, arguments)
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_what_becomes_of_a_head_is_told(tmp_path, caplog):
    caplog.set_level("INFO")
    SJepaForCTC(SJepaConfig(**SIZES, vocab_size=9)).save_pretrained(tmp_path)
    arguments = FineTuningArguments(model_name_or_path=str(tmp_path))
    open_with_head(AutoModelForCTC, arguments, keep_head=True, vocab_size=9)
    assert not caplog.text
    open_with_head(AutoModelForCTC, arguments, vocab_size=9)
    (said,) = caplog.messages
    assert said.endswith(f"is drawn anew; with `tokenizer_name_or_path` {tmp_path} it and its vocabulary are kept.")
    caplog.clear()
    for keep_head in (False, True):
        open_with_head(AutoModelForCTC, arguments, keep_head=keep_head, vocab_size=7)
    said = f"{tmp_path} has lm_head for 9 outputs, here there are 7 (another vocabulary, classes or clusters)"
    assert caplog.messages == [f"{said}: it is fresh."] * 2


def test_a_recogniser_gives_logits_alone_whatever_the_checkpoint_gave(tmp_path):
    options = {"output_hidden_states": True, "output_attentions": True, "problem_type": "regression"}
    SJepaForCTC(SJepaConfig(**SIZES, **options, attn_implementation="eager")).save_pretrained(tmp_path)
    for from_scratch in (False, True):
        arguments = FineTuningArguments(model_name_or_path=str(tmp_path), from_scratch=from_scratch)
        model = open_with_head(AutoModelForCTC, arguments)
        assert list(model(torch.randn(1, 8000))) == ["logits"] and model.config.problem_type is None


def test_a_fresh_head_keeps_no_weights_of_layers_from_an_earlier_fine_tuning(tmp_path):
    earlier = SJepaForSequenceClassification(SJepaConfig(**SIZES, use_weighted_layer_sum=True))
    torch.nn.init.normal_(earlier.layer_weights)
    earlier.save_pretrained(tmp_path)
    model = open_with_head(AutoModelForAudioClassification, FineTuningArguments(model_name_or_path=str(tmp_path)))
    assert model.layer_weights.tolist() == pytest.approx([1 / 3] * 3)


def test_the_shortest_batch_is_what_spec_augment_of_transformers_takes(make_config):
    config = AutoConfig.for_model("hubert", mask_time_length=10, mask_time_prob=0.05)
    assert shortest_batch(config) == 400 + 9 * 320
    for changes in ({"apply_spec_augment": False}, {"mask_time_prob": 0.0}):
        assert shortest_batch(AutoConfig.for_model("hubert", **changes)) == 0
    assert shortest_batch(make_config(mask_time_length=10, mask_time_prob=0.05)) == 0
