"""What a fine-tuning tells before and after it trains, what its checkpoints hold, and how it goes on from them."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from finetuning_runs import prepare, run, sentence
from transformers import AutoModelForCTC, TrainerCallback, pipeline

from sjepa_hf.opening import open_model
from training import finetune_classification, finetune_ctc
from training.data.waveforms import read_audio
from training.finetuning.trainer_settings import interval, with_equal_intervals


SHORT = ("--max_steps", "2")


class At(TrainerCallback):
    """Sends a signal to this process at a step, or in the evaluation after it."""

    def __init__(self, step: int, number: int, evaluating: bool = False):
        self.step, self.number, self.evaluating = step, number, evaluating

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and not self.evaluating:
            os.kill(os.getpid(), self.number)

    def on_prediction_step(self, args, state, control, **kwargs):
        if state.global_step == self.step and self.evaluating:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def stopped(checkpoint, mine, tmp_path):
    """A CTC run that SIGTERM has ended after its third step; its folder of output."""
    ready = prepare(finetune_ctc, checkpoint, mine, tmp_path / "run", "--max_steps", "6")
    ready.trainer.add_callback(At(3, signal.SIGTERM))
    with pytest.raises(SystemExit) as caught:
        finetune_ctc.train(ready)
    assert caught.value.code == 143
    return tmp_path / "run"


# Before


def test_the_plan_is_told_and_a_dry_run_stops_there(checkpoint, mine, tmp_path, caplog):
    caplog.set_level("INFO")
    required = ["--model_name_or_path", checkpoint, "--train_data", str(mine), "--output_dir", str(tmp_path / "out")]
    finetune_ctc.main([*required, "--use_cpu", "true", "--dry_run", "--max_steps", "30"])
    for said in (
        "Training on 18 clips",
        "Scoring held out: 2 clips",
        r"27,767 of 27,895 parameters are trained, on cpu",
        "30 steps of 8 clips, 3 an epoch (10.0 epochs)",
        "of a batch is padding",
        "Evaluation every 8 steps",
        f"{tmp_path}/out/final",
        "nothing is trained",
    ):
        assert said in caplog.text, said
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--label_smoothing_factor 0.1", "`label_smoothing_factor` has no meaning for CTC"),
        ("--prediction_loss_only true", "`prediction_loss_only` True does not go"),
        ("--batch_eval_metrics true", "`batch_eval_metrics`"),
        ("--eval_do_concat_batches false", "`eval_do_concat_batches`"),
        ("--neftune_noise_alpha 5", "`neftune_noise_alpha`"),
        ("--fp16_full_eval true", "`fp16_full_eval`"),
        ("--debug underflow_overflow", "`debug`"),
        ("--fp16 true", "`fp16` needs a GPU"),
        ("--fsdp full_shard", "`fsdp`"),
        ("--deepspeed /nowhere.json", "deepspeed"),
        ("--remove_unused_columns true", "`remove_unused_columns`"),
        ("--metric_for_best_model bleu", "choose cer, wer, loss"),
        ("--metric_for_best_model cer --greater_is_better true", "would keep the worst cer"),
        ("--eval_strategy no", "With --load_best_model_at_end false"),
        ("--do_train false", "--dry_run"),
        ("--train_sampling_strategy batch_rebalance", "group_by_length"),
        ("--optim lomo", "`optim` lomo cannot be used"),
        ("--lr_scheduler_type cosine_with_min_lr", "`lr_scheduler_kwargs`"),
        ("--report_to nonsense", "`report_to` nonsense is unknown"),
        ("--max_steps 0", "no step would be trained"),
        ("--max_steps -1 --num_train_epochs 0", "no step would be trained"),
        ("--learning_rate -1", "`learning_rate` is -1.0"),
        ("--head_learning_rate -1", "`head_learning_rate` is -1.0"),
        ("--per_device_train_batch_size 0", "`per_device_train_batch_size` is 0"),
        ("--gradient_accumulation_steps 0", "`gradient_accumulation_steps` is 0"),
        ("--seed -1", "`seed` is -1"),
        ("--resume_from_checkpoint /nowhere", "/nowhere is no directory"),
    ],
)
def test_what_the_trainer_cannot_do_is_refused_before_data_are_read(options, message, tmp_path):
    """Neither the checkpoint nor the data exist: the setting is refused first."""
    nowhere = tmp_path / "nowhere"
    assert message in sentence(finetune_ctc, str(nowhere), nowhere, tmp_path / "out", *options.split())


def test_a_batch_larger_than_the_data_is_refused_where_it_would_be_dropped(checkpoint, mine, tmp_path):
    options = ("--dataloader_drop_last", "true", "--per_device_train_batch_size", "64")
    message = sentence(finetune_ctc, checkpoint, mine, tmp_path / "out", *options)
    assert "18 clips do not fill one of 64: no step would be trained" in message
    ready = prepare(finetune_ctc, checkpoint, mine, tmp_path / "out", *options[2:])
    assert ready.trainer.args.num_train_epochs == 1000  # a step an epoch


@pytest.mark.parametrize("options", ["--label_smoothing_factor 0.1", "--metric_for_best_model loss"])
def test_what_the_trainer_can_do_works(options, checkpoint, classes, tmp_path):
    ready, final = run(finetune_classification, checkpoint, classes, tmp_path, *SHORT, *options.split())
    assert (final / "results.json").is_file()
    assert ready.trainer.args.greater_is_better is ("loss" not in options)


def test_evaluations_keep_their_distance():
    assert [interval(0.05, total) for total in (100, 300, 1000, 8)] == [25, 25, 50, 2]
    assert interval(7, 100) == 7 and interval(None, 100) is None
    assert with_equal_intervals(["--eval_steps", "10"]) == ["--eval_steps", "10", "--save_steps", "10"]
    assert with_equal_intervals(["--save_strategy=epoch"]) == ["--save_strategy=epoch", "--eval_strategy", "epoch"]
    both = ["--eval_steps", "10", "--save_steps", "20", "--eval_strategy", "no"]
    assert with_equal_intervals(both) == both


# After


def test_a_run_that_has_learned_nothing_says_so_and_keeps_no_noise(checkpoint, mine, tmp_path, caplog):
    options = ("--max_steps", "8", "--eval_steps", "1", "--learning_rate", "1e-5")
    ready, final = run(finetune_ctc, checkpoint, mine, tmp_path, *options)
    results = json.loads((final / "results.json").read_text())
    assert results["learned"] is False and results["best_step"] is None and results["verdict"]
    assert "NOTHING WAS LEARNED" in caplog.text and results["verdict"] in caplog.text
    last = AutoModelForCTC.from_pretrained(tmp_path / "checkpoint-8").state_dict()
    assert all(value.equal(last[name]) for name, value in AutoModelForCTC.from_pretrained(final).state_dict().items())
    evaluations = [entry for entry in ready.trainer.state.log_history if "eval_cer" in entry]
    assert [entry["step"] for entry in evaluations] == list(range(9))
    assert all(entry["eval_learned"] == 0 and 0 <= entry["eval_blank_frames"] <= 1 for entry in evaluations[1:])


def test_only_evaluations_that_show_something_learned_are_candidates(checkpoint, mine, tmp_path):
    trainer = prepare(finetune_ctc, checkpoint, mine, tmp_path, *SHORT).trainer
    trainer.state.global_step = 5
    assert not trainer._determine_best_metric({"eval_cer": 0.1, "eval_learned": 0.0}, None)
    assert trainer.state.best_metric is None and trainer.state.best_global_step is None
    assert trainer._determine_best_metric({"eval_cer": 0.9, "eval_learned": 1.0}, None)
    assert trainer._determine_best_metric({"eval_cer": 0.8}, None), "too few clips to tell"
    assert not trainer._determine_best_metric({"eval_cer": 0.85, "eval_learned": 1.0}, None)


def test_classes_that_were_not_learned(checkpoint, classes, tmp_path):
    options = ("--max_steps", "1", "--learning_rate", "0", "--head_learning_rate", "0", "--eval_fraction", "0.5")
    _, final = run(finetune_classification, checkpoint, classes, tmp_path, *options)
    results = json.loads((final / "results.json").read_text())
    assert results["learned"] is False and results["best_step"] is None


# Checkpoints


def test_the_checkpoint_of_a_stopped_run_opens_and_goes_on(stopped, checkpoint, mine):
    folder = stopped / "checkpoint-3"
    assert not (stopped / "final").exists()
    recognise = pipeline("automatic-speech-recognition", str(folder), device="cpu")
    assert isinstance(recognise({"raw": read_audio(mine / "0.wav"), "sampling_rate": 16000})["text"], str)
    assert (folder / "text_normalization.json").is_file()
    for word in ("True", "auto", "latest", str(folder)):
        ready = prepare(finetune_ctc, checkpoint, mine, stopped, "--max_steps", "6", "--resume_from_checkpoint", word)
        assert ready.trainer.args.resume_from_checkpoint == str(folder)
    finetune_ctc.train(ready)
    assert json.loads((stopped / "final" / "results.json").read_text())["steps"] == 6
    history = [entry["step"] for entry in ready.trainer.state.log_history if "eval_cer" in entry]
    assert history.count(0) == 1 and history[-1] == 6


def test_a_signal_in_an_evaluation_loses_no_step(checkpoint, mine, tmp_path):
    ready = prepare(finetune_ctc, checkpoint, mine, tmp_path, "--max_steps", "6", "--eval_steps", "2")
    ready.trainer.add_callback(At(4, signal.SIGINT, evaluating=True))
    with pytest.raises(SystemExit) as caught:
        finetune_ctc.train(ready)
    assert caught.value.code == 130 and (tmp_path / "checkpoint-4" / "trainer_state.json").is_file()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def rewritten(mine: Path, folder: Path, change) -> Path:
    """The clips with other transcripts."""
    shutil.copytree(mine, folder)
    rows = list(csv.reader(open(folder / "metadata.csv")))
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([rows[0], *([name, change(text)] for name, text in rows[1:])])
    return folder


def test_going_on_with_other_transcripts_is_refused(stopped, checkpoint, mine, tmp_path):
    options = ("--max_steps", "6", "--resume_from_checkpoint", "latest")
    shifted = rewritten(mine, tmp_path / "shifted", lambda text: text.replace("b", "z"))
    message = sentence(finetune_ctc, checkpoint, shifted, stopped, *options)
    assert "the character 'Z' is new, the character 'B' is gone" in message and "checkpoint-3" in message
    more = rewritten(mine, tmp_path / "more", lambda text: text + " c d")
    assert "the characters 'C', 'D' are new" in sentence(finetune_ctc, checkpoint, more, stopped, *options)
    message = sentence(finetune_ctc, checkpoint, mine, stopped, *options, "--space_characters", "-")
    assert "normalised with `spaces`" in message
    message = sentence(finetune_ctc, checkpoint, mine, stopped, *options, "--lora_rank", "2")
    assert "holds whole weights, not adapters" in message


def test_going_on_with_other_classes_or_another_model_is_refused(checkpoint, classes, tmp_path, make_config):
    from sjepa_hf import SJepaForPreTraining
    from sjepa_hf.saving import feature_extractor

    out = tmp_path / "out"
    run(finetune_classification, checkpoint, classes, out, *SHORT)
    options = (*SHORT, "--resume_from_checkpoint", "auto")
    shutil.copytree(classes, tmp_path / "renamed")
    (tmp_path / "renamed" / "B").rename(tmp_path / "renamed" / "C")
    message = sentence(finetune_classification, checkpoint, tmp_path / "renamed", out, *options)
    assert "the class 'C' is new, the class 'B' is gone" in message
    SJepaForPreTraining(make_config("log_mel")).save_pretrained(tmp_path / "other")
    feature_extractor().save_pretrained(tmp_path / "other")
    message = sentence(finetune_classification, str(tmp_path / "other"), classes, out, *options)
    assert "checkpoint-2 is of another model" in message


def test_torn_checkpoints_are_passed_over(stopped, checkpoint, mine, caplog):
    torn = stopped / "checkpoint-5"
    shutil.copytree(stopped / "checkpoint-3", torn)
    options = ("--max_steps", "6", "--resume_from_checkpoint")
    whole = (torn / "model.safetensors").read_bytes()
    for name, content in (("model.safetensors", whole[: len(whole) // 2]), ("trainer_state.json", b"{")):
        (torn / name).write_bytes(content)
        ready = prepare(finetune_ctc, checkpoint, mine, stopped, *options, "latest")
        assert ready.trainer.args.resume_from_checkpoint == str(stopped / "checkpoint-3")
        assert f"{torn} is passed over: {name}" in caplog.text
    assert "cannot be gone on from" in sentence(finetune_ctc, checkpoint, mine, stopped, *options, str(torn))
    (stopped / "checkpoint-3" / "optimizer.pt").unlink()
    assert "None of the checkpoints" in sentence(finetune_ctc, checkpoint, mine, stopped, *options, "latest")


def test_checkpoints_with_adapters_hold_the_merged_model_and_go_on(checkpoint, mine, tmp_path):
    options = ("--lora_rank", "2", "--max_steps", "4", "--eval_steps", "2", "--save_total_limit", "5")
    ready = prepare(finetune_ctc, checkpoint, mine, tmp_path, *options)
    ready.trainer.add_callback(At(2, signal.SIGTERM))
    with pytest.raises(SystemExit):
        finetune_ctc.train(ready)
    folder = tmp_path / "checkpoint-2"
    assert pipeline("automatic-speech-recognition", str(folder / "merged"), device="cpu").tokenizer is not None
    adapted = ready.trainer.model.eval()
    waveform = torch.randn(1, 8000)
    merged = AutoModelForCTC.from_pretrained(folder / "merged").eval()
    assert torch.allclose(merged(waveform).logits, adapted(waveform).logits, atol=1e-5)
    with pytest.raises(ValueError, match="holds adapters, not a whole model: .*`merged`"):
        open_model(AutoModelForCTC, folder)
    finetune_ctc.train(prepare(finetune_ctc, checkpoint, mine, tmp_path, *options, "--resume_from_checkpoint", "true"))
    assert json.loads((tmp_path / "final" / "results.json").read_text())["steps"] == 4


def test_batches_that_shared_memory_cannot_hold_are_refused(checkpoint, mine, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**16))
    options = ("--max_steps", "2", "--dataloader_num_workers", "2")
    ready = prepare(finetune_ctc, checkpoint, mine, tmp_path / "out", *options)
    with pytest.raises(
        ValueError, match="0 MiB free, but 2 workers .*--shm-size=1g, or lower `dataloader_num_workers`"
    ):
        finetune_ctc.train(ready)
