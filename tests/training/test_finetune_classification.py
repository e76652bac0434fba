from finetuning_runs import SHORT, prepare, run, sentence, write_clips
from other_encoders import KINDS, save_other
from transformers import (
    pipeline,
)

from sjepa_hf.scores import read_scores
from training import finetune_classification
from training.common.progress import Heartbeat
from training.data.waveforms import read_audio


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


def test_classification_refuses_with_a_sentence(checkpoint, classes, tmp_path, texts):
    one = write_clips(tmp_path / "one", texts[:4], "label", label=lambda i: "A")
    assert "have the label 'A'" in sentence(finetune_classification, checkpoint, one, tmp_path / "out")
    new = write_clips(tmp_path / "new", texts[:4], "label", label=lambda i: "AC"[i % 2])
    options = ("--eval_data", str(new))
    message = sentence(finetune_classification, checkpoint, classes, tmp_path / "out", *options)
    assert "has labels that train_data has not: 'C'" in message
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
