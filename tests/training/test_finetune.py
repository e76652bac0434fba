"""Fine-tuning on a few seconds of tones: both scripts, their output, and what is refused."""

import csv
import json
import re

import numpy as np
import pytest
import soundfile
import torch
from finetuning_runs import SIZES, prepare, run, sentence, write_clips
from peft import PeftModel
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForCTC,
    BertConfig,
    HubertConfig,
    HubertForCTC,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMForCTC,
    pipeline,
)

from sjepa_hf import SJepaConfig, SJepaForCTC, SJepaForPreTraining
from sjepa_hf.scores import data_name
from training import decoding, finetune_classification, finetune_ctc
from training.data.labelled import open_labelled
from training.data.waveforms import read_audio
from training.finetuning.data import drawn
from training.finetuning.model import with_adapters
from training.finetuning.ngram import estimate
from training.finetuning.text import build_tokenizer


def test_few_clips_train_for_enough_steps(checkpoint, mine, tmp_path):
    """20 clips, 2 held out, 8 a batch: 3 steps an epoch; what the user asks for stays."""
    ready = prepare(finetune_ctc, checkpoint, mine, tmp_path / "a")
    assert ready.trainer.args.num_train_epochs == 334
    ready = prepare(finetune_ctc, checkpoint, mine, tmp_path / "b", "--min_steps", "60")
    assert ready.trainer.args.num_train_epochs == 30
    ready = prepare(finetune_ctc, checkpoint, mine, tmp_path / "c", "--num_train_epochs", "2")
    assert ready.trainer.args.num_train_epochs == 2


# CTC


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory, checkpoint, mine, texts):
    """The default recipe but for the number of epochs, with a language model."""
    output = tmp_path_factory.mktemp("ctc")
    estimate(texts, 2).save(output / "lm.arpa")
    options = ("--num_train_epochs", "20", "--logging_steps", "1", "--lm", str(output / "lm.arpa"))
    options += ("--mask_time_prob", "0", "--dropout", "0")
    options += ("--learning_rate", "3e-3", "--head_learning_rate", "1e-2")
    return run(finetune_ctc, checkpoint, mine, output, *options)


def test_the_loss_falls_and_the_best_checkpoint_is_kept(recogniser):
    ready, final = recogniser
    losses = [entry["loss"] for entry in ready.trainer.state.log_history if "loss" in entry]
    assert len(losses) == 20 * 3 and np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    results = json.loads((final / "results.json").read_text())
    assert results["steps"] == 60 and results["best_step"] == ready.trainer.state.best_global_step
    assert results["learned"] is True and "by chance" in results["verdict"]
    scores = results["scores"]["held out"]
    assert scores["clips"] == 2 and scores["greedy"].keys() == scores["lm"].keys() == {"wer", "cer"}
    # Evaluated in padded batches while training, clip by clip at the end: the same.
    assert scores["greedy"]["cer"] == pytest.approx(ready.trainer.state.best_metric)
    assert {path.name for path in final.iterdir()} >= {"learning_curve.png", "text_normalization.json", "config.json"}
    rows = [json.loads(line) for line in (final / "transcripts.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(set(row["reference"]) <= set("AB ") for row in rows)


def test_pipeline_and_decode_command_agree_with_the_results(recogniser, mine, capsys):
    ready, final = recogniser
    rows = [json.loads(line) for line in (final / "transcripts.jsonl").read_text().splitlines()]
    recognise = pipeline("automatic-speech-recognition", str(final), device="cpu")
    for row in rows:
        text = recognise({"raw": read_audio(row["clip"]), "sampling_rate": 16000})["text"]
        assert " ".join(text.split()) == row["greedy"]
    decoding.main(["decode", "--model", str(final), "--data", str(mine), "--lm", str(final.parent / "lm.arpa")])
    lines = capsys.readouterr().out.splitlines()
    assert re.search(r": 20 clips, 80 words, \d+ characters; greedy: WER \d+\.\d\d %, CER .* %; lm: WER", lines[0])
    shown = [line for line in lines if line.startswith("  heard")]
    assert len(shown) == 6 and sum("(worst)" in line for line in lines) == 3
    (scores,) = json.loads(lines[-1]).values()
    assert scores["clips"] == 20 and scores["lm"].keys() == {"wer", "cer"}


def test_the_encoder_is_frozen_first(checkpoint, mine, tmp_path):
    options = ("--freeze_encoder_steps", "2", "--eval_strategy", "no", "--load_best_model_at_end", "false")
    for steps, moved in ((2, False), (3, True)):
        ready = prepare(finetune_ctc, checkpoint, mine, tmp_path / str(steps), *options, "--max_steps", str(steps))
        before = {name: value.clone() for name, value in ready.trainer.model.state_dict().items()}
        finetune_ctc.train(ready)
        changed = {name for name, value in ready.trainer.model.state_dict().items() if not value.equal(before[name])}
        assert "lm_head.weight" in changed
        assert any(name.startswith("sjepa.encoder") for name in changed) == moved


def test_head_and_encoder_have_learning_rates_of_their_own(checkpoint, mine, tmp_path):
    options = ("--learning_rate", "1e-5", "--head_learning_rate", "1e-3", "--mask_time_prob", "0.3")
    options += ("--dropout", "0.2")
    trainer = prepare(finetune_ctc, checkpoint, mine, tmp_path, *options).trainer
    trainer.create_optimizer()
    rates = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            assert rates.pop(id(parameter)) == (1e-3 if name.startswith("lm_head") else 1e-5), name
    assert not rates and trainer.model.config.mask_time_prob == 0.3
    assert trainer.model.config.hidden_dropout == trainer.model.dropout.p == 0.2


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
    ("model_class", "config"),
    [(SJepaForCTC, SJepaConfig), (HubertForCTC, HubertConfig), (WavLMForCTC, WavLMConfig)],
    ids=["sjepa", "hubert", "wavlm"],
)
def test_every_adapter_has_a_gradient(model_class, config):
    model = with_adapters(model_class(config(**SIZES, vocab_size=7, layerdrop=0.0)), rank=2).train()
    model(torch.randn(2, 8000), labels=torch.tensor([[5, 6], [6, 5]])).loss.backward()
    adapters = {name: p for name, p in model.named_parameters() if "lora_B" in name}  # A has none before B moves
    assert len(adapters) >= 4 and all(p.grad is not None and p.grad.any() for p in adapters.values())
    head = [p for name, p in model.named_parameters() if "lm_head.modules_to_save" in name]
    assert len(head) == 2 and all(p.requires_grad for p in head)


def test_from_scratch_keeps_the_sizes_and_forgets_the_weights(checkpoint, mine, tmp_path):
    trained = prepare(finetune_ctc, checkpoint, mine, tmp_path).trainer.model.state_dict()
    fresh = prepare(finetune_ctc, checkpoint, mine, tmp_path, "--from_scratch", "true").trainer.model
    name = "sjepa.encoder.layers.0.attention.q_proj.weight"
    assert fresh.state_dict()[name].shape == trained[name].shape and not fresh.state_dict()[name].equal(trained[name])
    assert all(p.requires_grad for p in fresh.parameters())


def test_other_encoders_and_a_given_tokenizer(mine, tmp_path):
    folder = tmp_path / "wav2vec2"
    Wav2Vec2Model(Wav2Vec2Config(**SIZES)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=False, do_normalize=True).save_pretrained(folder)
    build_tokenizer(["ABCDE"]).save_pretrained(tmp_path / "tokenizer")
    options = ("--tokenizer_name_or_path", str(tmp_path / "tokenizer"), "--max_steps", "1", "--eval_strategy", "no")
    options += ("--load_best_model_at_end", "false", "--mask_feature_prob", "0.1")
    _, final = run(finetune_ctc, str(folder), mine, tmp_path / "out", *options)
    model = AutoModelForCTC.from_pretrained(final)
    assert model.config.vocab_size == 10 and model.config.model_type == "wav2vec2"
    assert model.config.ctc_zero_infinity and model.config.ctc_loss_reduction == "mean"
    assert json.loads((final / "results.json").read_text())["scores"]["held out"]["clips"] == 2


def test_clips_that_cannot_be_learnt_are_named(checkpoint, tmp_path, texts, caplog):
    folder = write_clips(tmp_path / "data", texts[:6])
    rows = list(csv.reader(open(folder / "metadata.csv")))
    rows[1][1], rows[2][1] = "A" * 60, "?!"  # equal letters need a blank between them
    csv.writer(open(folder / "metadata.csv", "w", newline="")).writerows(rows)
    soundfile.write(folder / "2.wav", np.full(12000, np.nan), 16000, subtype="FLOAT")
    dev = str(write_clips(tmp_path / "dev", texts[6:8]))
    options = ("--eval_data", dev, "--num_train_epochs", "1")
    ready, final = run(finetune_ctc, checkpoint, folder, tmp_path / "out", *options)
    assert len(ready.trainer.train_dataset) == 4
    assert re.search(r"1 clips have more characters than frames and are left out: \S+/0\.wav", caplog.text)
    assert re.search(r"1 clips have an empty transcript and are left out: \S+/1\.wav", caplog.text)
    assert "2.wav: non_finite" in caplog.text
    assert json.loads((final / "results.json").read_text())["scores"][data_name(dev)]["clips"] == 2


def test_a_smaller_part_lies_in_a_larger_one(mine):
    clips = open_labelled([str(mine)], ["text"])
    parts = [drawn(clips, share * clips.hours) for share in (0.2, 0.6, 2.0)]
    names = [{part.clip(i).name for i in range(len(part))} for part in parts]
    assert names[0] < names[1] < names[2] and len(names[2]) == 20
    assert 0.2 * clips.hours <= parts[0].hours < 0.2 * clips.hours + max(clips.num_samples) / 16000 / 3600


def test_ctc_refuses_with_a_sentence(checkpoint, mine, tmp_path, texts):
    out = tmp_path / "out"
    message = sentence(finetune_ctc, checkpoint, write_clips(tmp_path / "other", texts[:2], "words"), out)
    assert "No column of transcripts was found" in message and "file_name, words" in message
    assert "`text_column`" in message
    build_tokenizer(["xyz"]).save_pretrained(tmp_path / "xyz")
    message = sentence(finetune_ctc, checkpoint, mine, out, "--tokenizer_name_or_path", str(tmp_path / "xyz"))
    assert "No character of the transcripts" in message
    BertConfig().save_pretrained(tmp_path / "bert")
    assert "bert, which has no CTC head" in sentence(finetune_ctc, str(tmp_path / "bert"), mine, out)
    assert "cannot be opened" in sentence(finetune_ctc, str(tmp_path / "nothing"), mine, out)
    (tmp_path / "by_voice" / "anna").mkdir(parents=True)
    soundfile.write(tmp_path / "by_voice" / "anna" / "0.wav", np.zeros(8000), 16000)
    (tmp_path / "by_voice" / "bert").mkdir()
    soundfile.write(tmp_path / "by_voice" / "bert" / "0.wav", np.zeros(8000), 16000)
    assert "metadata.csv" in sentence(finetune_ctc, checkpoint, tmp_path / "by_voice", out)
    assert "from_scratch" in sentence(
        finetune_ctc, checkpoint, mine, out, "--from_scratch", "true", "--lora_rank", "2"
    )
    assert "`reinit_layers` leaves layers to be learned" in sentence(
        finetune_ctc, checkpoint, mine, out, "--reinit_layers", "1", "--lora_rank", "2"
    )
    (out / "checkpoint-7").mkdir(parents=True)
    assert "checkpoints of another run" in sentence(finetune_ctc, checkpoint, mine, out)


# Classification


def test_classification(checkpoint, classes, tmp_path):
    options = (
        "--num_train_epochs",
        "6",
        "--learning_rate",
        "1e-3",
        "--eval_fraction",
        "0.25",
        "--mask_time_prob",
        "0",
    )
    _, final = run(finetune_classification, checkpoint, classes, tmp_path, *options)
    scores = json.loads((final / "results.json").read_text())["scores"]["held out"]
    assert scores == {"clips": 6, "accuracy": 1.0, "macro_f1": 1.0} and (final / "learning_curve.png").is_file()
    classify = pipeline("audio-classification", str(final), device="cpu")
    for name in "AB":
        audio = {"raw": read_audio(next((classes / name).iterdir())), "sampling_rate": 16000}
        assert classify(audio)[0]["label"] == name


def test_a_frozen_encoder_stays_as_it_is(checkpoint, classes, tmp_path):
    options = ("--frozen", "true", "--num_train_epochs", "1")
    ready = prepare(finetune_classification, checkpoint, classes, tmp_path, *options)
    whole, modes = ready.trainer.model, set()
    whole.sjepa.register_forward_pre_hook(lambda encoder, _: modes.add((whole.training, encoder.training)))
    finetune_classification.train(ready)
    assert modes == {(True, False), (False, False)}, "the head trains on features without dropout"
    final = tmp_path / "final"
    before = SJepaForPreTraining.from_pretrained(checkpoint).sjepa.state_dict()
    model = AutoModelForAudioClassification.from_pretrained(final)
    assert model.config.use_weighted_layer_sum and model.layer_weights.unique().numel() > 1
    assert all(value.equal(before[name]) for name, value in model.sjepa.state_dict().items())


def test_classification_refuses_with_a_sentence(checkpoint, classes, tmp_path, texts):
    one = write_clips(tmp_path / "one", texts[:4], "label", label=lambda i: "A")
    assert "have the label 'A'" in sentence(finetune_classification, checkpoint, one, tmp_path / "out")
    new = write_clips(tmp_path / "new", texts[:4], "label", label=lambda i: "AC"[i % 2])
    options = ("--eval_data", str(new))
    message = sentence(finetune_classification, checkpoint, classes, tmp_path / "out", *options)
    assert "has labels that train_data has not: 'C'" in message
    message = sentence(finetune_classification, checkpoint, classes, tmp_path / "out", "--epochs_of_what", "3")
    assert "--epochs_of_what" in message


@pytest.mark.parametrize("script", [finetune_ctc, finetune_classification])
def test_recipes_hold_known_fields_and_a_wrong_one_is_named(script, checkpoint, mine, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(script.RECIPE.read_text() + "learning_rates: 1\n")
    message = sentence(script, checkpoint, mine, tmp_path / "out", "--config", str(recipe))
    assert "unknown fields: learning_rates" in message
