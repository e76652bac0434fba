import csv
import json
import re

import numpy as np
import pytest
import soundfile
from finetuning_runs import SIZES, run, sentence, write_clips
from transformers import (
    AutoModelForCTC,
    BertConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from sjepa_hf.scores import data_name, read_scores
from training import finetune_ctc
from training.finetuning.text import build_tokenizer


def test_the_loss_falls_and_the_best_checkpoint_is_kept(recogniser):
    ready, final = recogniser
    assert json.loads((final / "training.json").read_text())["hours_taken"] > 0
    losses = [entry["loss"] for entry in ready.trainer.state.log_history if "loss" in entry]
    assert len(losses) == 20 * 3 and np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    results = json.loads((final / "results.json").read_text())
    assert results["steps"] == 60 and results["best_step"] == ready.trainer.state.best_global_step
    assert results["learned"] is True and "by chance" in results["verdict"]
    scores = {(score.task, score.metric): score for score in read_scores(final / "results.json")}
    greedy, lm = "speech recognition, greedy decoding", "speech recognition, beam search with an n-gram"
    assert list(scores) == [(greedy, "wer"), (greedy, "cer"), (lm, "wer"), (lm, "cer")]
    told = f"2 held-out clips, best checkpoint by held-out clips (step {results['best_step']})"
    assert {(score.clips, score.split, score.protocol) for score in scores.values()} == {(2, "held-out", told)}
    # Evaluated in padded batches while training, clip by clip at the end: the same.
    assert scores[greedy, "cer"].value == pytest.approx(ready.trainer.state.best_metric)
    assert {path.name for path in final.iterdir()} >= {"learning_curve.png", "text_normalization.json", "config.json"}
    rows = [json.loads(line) for line in (final / "transcripts.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(set(row["reference"]) <= set("AB ") for row in rows)


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
    assert {score.clips for score in read_scores(final / "results.json")} == {2}


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
    scored = {(score.data, score.split, score.clips) for score in read_scores(final / "results.json")}
    assert scored == {(data_name(dev), "validation", 2)}


def test_scored_clips_with_more_characters_than_frames_are_named(checkpoint, mine, tmp_path, caplog):
    """11 frames, as many as letters in two transcripts; those of one are alike and need blanks in between."""
    for part in ("dev", "test"):
        folder = write_clips(tmp_path / part, ["AB " * 20, "ABA", "BAB"])
        rows = list(csv.reader(open(folder / "metadata.csv")))
        rows[2][1], rows[3][1] = "ABABABABABA", "A" * 11
        csv.writer(open(folder / "metadata.csv", "w", newline="")).writerows(rows)
    options = ("--eval_data", str(tmp_path / "dev"), "--test_data", str(tmp_path / "test"), "--max_steps", "1")
    _, final = run(finetune_ctc, checkpoint, mine, tmp_path / "out", *options)
    for part in ("dev", "test"):
        said = rf"{part}: 1 clips have more characters than frames: .* losses for 0: \S*{part}/2\.wav\.\n"
        assert re.search(said, caplog.text)
    assert {score.clips for score in read_scores(final / "results.json")} == {3}


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
    (out / "final").mkdir(parents=True)
    for options in ((), ("--resume_from_checkpoint", "latest")):
        assert "holds the result of another run in final/" in sentence(finetune_ctc, checkpoint, mine, out, *options)
    (out / "checkpoint-7").mkdir(parents=True)
    assert "checkpoints of another run" in sentence(finetune_ctc, checkpoint, mine, out)
