import copy
import json

import numpy as np
import pytest
import soundfile
from finetuning_runs import SHORT, SIZES, prepare, run, sentence, write_clips
from other_encoders import KINDS, save_other
from transformers import AutoModelForAudioClassification, pipeline

from sjepa_hf import SJepaConfig
from sjepa_hf.feature_extraction import feature_extractor
from sjepa_hf.scores import read_scores
from training import finetune_classification
from training.common.progress import Heartbeat
from training.data.waveforms import read_audio
from training.finetuning.classification import check_labels_known


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
    scores = read_scores(final / "results.json")
    assert [(s.metric, s.value) for s in scores] == [("accuracy", 1.0), ("macro_f1", 1.0)]
    assert {(s.subject, s.data, s.split, s.clips) for s in scores} == {("this model", classes.name, "held-out", 6)}
    assert (final / "learning_curve.png").is_file()
    classify = pipeline("audio-classification", str(final), device="cpu")
    for name in "AB":
        audio = {"raw": read_audio(next((classes / name).iterdir())), "sampling_rate": 16000}
        assert classify(audio)[0]["label"] == name


@pytest.mark.parametrize("kind", ["sjepa", "hubert"])
def test_what_a_checkpoint_was_for_before_says_nothing_of_the_classes(kind, classes, tmp_path):
    """It told several labels to a clip, and gave hidden states and attention with them."""
    config = SJepaConfig(**SIZES) if kind == "sjepa" else copy.deepcopy(KINDS["hubert"])
    before = AutoModelForAudioClassification.from_config(config, attn_implementation="eager")
    before.config.problem_type = "multi_label_classification"
    before.config.output_hidden_states = before.config.output_attentions = True
    before.save_pretrained(tmp_path / "before")
    feature_extractor().save_pretrained(tmp_path / "before")
    _, final = run(finetune_classification, str(tmp_path / "before"), classes, tmp_path / "out", *SHORT)
    answers = pipeline("audio-classification", str(final), device="cpu")(
        {"raw": read_audio(next((classes / "A").iterdir())), "sampling_rate": 16000}
    )
    assert sum(answer["score"] for answer in answers) == pytest.approx(1)
    assert json.loads((final / "config.json").read_text())["problem_type"] == "single_label_classification"


def copy_of(classes, tmp_path):
    """The two classes of sound in folders of their own, to which others can be added."""
    for path in classes.glob("*/*.wav"):
        (tmp_path / "data" / path.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / path.parent.name / path.name).symlink_to(path)
    return tmp_path / "data"


def test_silence_is_a_class_like_any_other(checkpoint, classes, tmp_path, caplog):
    data = copy_of(classes, tmp_path)
    (data / "silence").mkdir()
    for number in range(12):
        soundfile.write(data / "silence" / f"{number}.wav", np.zeros(6000), 16000)
    options = ("--num_train_epochs", "6", "--learning_rate", "1e-3", "--eval_fraction", "0.25")
    _, final = run(finetune_classification, checkpoint, data, tmp_path / "out", *options, "--mask_time_prob", "0")
    assert {score.value for score in read_scores(final / "results.json")} == {1.0} and "ilent" not in caplog.text
    classify = pipeline("audio-classification", str(final), device="cpu")
    assert classify({"raw": np.zeros(8000, np.float32), "sampling_rate": 16000})[0]["label"] == "silence"
    assert "unscored" not in json.loads((final / "results.json").read_text())


def test_classes_that_no_clip_scores_are_named(checkpoint, classes, tmp_path, caplog):
    data, rng = copy_of(classes, tmp_path), np.random.default_rng(0)
    for name in ("nine", "two"):
        (data / name).mkdir()
        soundfile.write(data / name / "only.wav", 0.1 * rng.standard_normal(6000), 16000)
    required = ["--model_name_or_path", checkpoint, "--train_data", str(data), "--output_dir", str(tmp_path / "out")]
    finetune_classification.main([*required, "--use_cpu", "true", "--dry_run", *SHORT])
    warning = "2 of 4 classes have no clip for evaluation, and no accuracy or F1 tells of them: nine, two."
    assert warning in caplog.text
    _, final = run(finetune_classification, checkpoint, data, tmp_path / "out", *SHORT)
    assert json.loads((final / "results.json").read_text())["unscored"] == ["nine", "two"]
    assert "; nothing was scored of nine, two. The result is" in caplog.text


def test_classes_that_no_clip_is_left_to_learn_from_are_named(checkpoint, tmp_path, caplog):
    """All pieces of a recording are held out with its first, whatever they are."""
    rows, rng = [], np.random.default_rng(0)
    for number, labels in enumerate(("ACC", "ADD", "BBB", "BBB")):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, 0.1 * rng.standard_normal(18000), 16000)
        place = {"audio_filepath": str(path), "duration": 0.375}
        rows += [place | {"offset": 0.375 * i, "label": label} for i, label in enumerate(labels)]
    data = tmp_path / "pieces.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    required = ["--model_name_or_path", checkpoint, "--train_data", str(data), "--output_dir", str(tmp_path / "out")]
    finetune_classification.main([*required, "--eval_fraction", "0.5", "--use_cpu", "true", "--dry_run", *SHORT])
    warning = "1 of 4 classes have all their clips held out and cannot be learned: {}. Give eval_data."
    assert warning.format("C") in caplog.text or warning.format("D") in caplog.text


def test_every_clip_of_a_frame_is_taken(classes, tmp_path):
    """Also by an encoder whose SpecAugment refuses batches as short."""
    data, rng = copy_of(classes, tmp_path), np.random.default_rng(0)
    for path in data.glob("*/*.wav"):
        path.unlink()
        soundfile.write(path, 0.1 * rng.standard_normal(400 + 10 * len(path.stem)), 16000)
    hubert = str(save_other(KINDS["hubert"], tmp_path / "hubert"))
    ready, _ = run(finetune_classification, hubert, data, tmp_path / "out", *SHORT)
    assert len(ready.trainer.train_dataset) + sum(map(len, ready.evaluation.values())) == 24
    shorter = sentence(finetune_classification, hubert, data, tmp_path / "b", "--min_seconds", "0.02")
    assert "`min_seconds` must be at least 0.025" in shorter


def test_classification_refuses_with_a_sentence(checkpoint, classes, tmp_path, texts):
    one = write_clips(tmp_path / "one", texts[:4], "label", label=lambda i: "A")
    assert "have the label 'A'" in sentence(finetune_classification, checkpoint, one, tmp_path / "out")
    new = write_clips(tmp_path / "new", texts[:4], "label", label=lambda i: "AC"[i % 2])
    options = ("--eval_data", str(new))
    message = sentence(finetune_classification, checkpoint, classes, tmp_path / "out", *options)
    assert "has labels that train_data has not: C." in message
    with pytest.raises(ValueError, match=r"dev has labels that train_data has not: b, c, .*u, \.\.\.\.$"):
        check_labels_known("abcdefghijklmnopqrstuvwxyz", ["a"], "dev")
    message = sentence(finetune_classification, checkpoint, classes, tmp_path / "out", "--epochs_of_what", "3")
    assert "--epochs_of_what" in message


def test_clips_of_an_encoder_that_norms_over_padding_are_scored_alone(classes, tmp_path):
    """HuBERT base."""
    ready = prepare(finetune_classification, str(save_other(KINDS["hubert"], tmp_path)), classes, tmp_path, *SHORT)
    sizes, predict = [], ready.trainer.predict

    def watched(*args, **kwargs):
        with ready.trainer.model.register_forward_pre_hook(
            lambda model, inputs, named: sizes.append(len(named["input_values"])), with_kwargs=True
        ):
            return predict(*args, **kwargs)

    ready.trainer.predict = watched
    finetune_classification.train(ready, Heartbeat("training"))
    assert sizes == [1] * sum(map(len, ready.evaluation.values())) and len(sizes) > 1
