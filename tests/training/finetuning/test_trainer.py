import itertools
import json
import os
import shutil
import signal
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from finetuning_runs import FAST, SHORT, SIZES, At, prepare, run, write_clips
from pretraining_runs import assert_equal_weights, start
from safetensors.torch import load_file
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForCTC,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerModel,
    Wav2Vec2FeatureExtractor,
    pipeline,
)

from sjepa_hf import SJepaForPreTraining
from sjepa_hf.opening import open_model
from sjepa_hf.scores import read_scores
from training import finetune_classification, finetune_ctc
from training.common.progress import Heartbeat
from training.finetuning.plan import plan
from training.finetuning.trainer import MissedEvaluationCallback


def test_the_encoder_is_frozen_first(checkpoint, mine, tmp_path):
    options = ("--freeze_encoder_steps", "2", "--eval_strategy", "no", "--load_best_model_at_end", "false")
    ready = prepare(finetune_ctc, checkpoint, mine, tmp_path, *options, "--max_steps", "3")
    model, seen = ready.trainer.model, []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append({name: value.clone() for name, value in model.state_dict().items()})

    ready.trainer.add_callback(Watch())
    finetune_ctc.train(ready, Heartbeat("training"))
    assert ready.trainer.args.ddp_find_unused_parameters, "with checkpointing, too, nobody waits for its gradients"
    first, frozen, last = seen[0], seen[2], model.state_dict()
    assert not frozen["lm_head.weight"].equal(first["lm_head.weight"])
    encoder = [name for name in first if name.startswith("sjepa.encoder")]
    assert all(frozen[name].equal(first[name]) for name in encoder)
    assert any(not last[name].equal(first[name]) for name in encoder)


@pytest.mark.parametrize(
    ("options", "moved"), [(("--lora_rank", "2"), False), (("--freeze_encoder_steps", "1"), True), (SHORT, True)]
)
def test_batch_norms_of_an_encoder_that_is_kept_are_kept(options, moved, mine, tmp_path):
    """Adapters travel without them: with others than the base has, nobody could open what was trained."""
    encoder = Wav2Vec2ConformerModel(Wav2Vec2ConformerConfig(**SIZES))
    encoder.save_pretrained(tmp_path / "encoder")
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "encoder")
    ready, final = run(finetune_ctc, str(tmp_path / "encoder"), mine, tmp_path / "out", *options, *SHORT)
    before, after = encoder.state_dict(), AutoModelForCTC.from_pretrained(final).base_model.state_dict()
    statistics = [name for name in before if name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert statistics and all(before[name].equal(after[name]) != moved for name in statistics)
    if "--freeze_encoder_steps" in options:
        assert {int(after[name]) for name in statistics if name.endswith("tracked")} == {1}


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


def test_a_frozen_encoder_stays_as_it_is(checkpoint, classes, tmp_path):
    options = ("--frozen", "true", "--num_train_epochs", "1")
    ready = prepare(finetune_classification, checkpoint, classes, tmp_path, *options)
    whole, modes = ready.trainer.model, set()
    whole.sjepa.register_forward_pre_hook(lambda encoder, _: modes.add((whole.training, encoder.training)))
    finetune_classification.train(ready, Heartbeat("training"))
    assert modes == {(True, False), (False, False)}, "the head trains on features without dropout"
    final = tmp_path / "final"
    before = SJepaForPreTraining.from_pretrained(checkpoint).sjepa.state_dict()
    model = AutoModelForAudioClassification.from_pretrained(final)
    assert model.config.use_weighted_layer_sum and model.layer_weights.unique().numel() > 1
    assert all(value.equal(before[name]) for name, value in model.sjepa.state_dict().items())


def test_noise_is_heard_in_training_alone(checkpoint, classes, tmp_path):
    """As many samples of each clip as before, padding still zero; what is evaluated is the clip itself."""
    options = ("--frozen", "true", "--num_train_epochs", "1", "--p_noise", "1")
    ready = prepare(finetune_classification, checkpoint, classes, tmp_path, *options)
    clean = {}
    for dataset in (ready.trainer.train_dataset, ready.trainer.eval_dataset):
        for number in range(len(dataset)):
            clip = torch.from_numpy(dataset[number]["input_values"])
            clean.setdefault(len(clip), []).append(clip)
    heard = []

    def look(model, args, inputs):
        heard.append((model.training, inputs["input_values"], inputs["attention_mask"]))

    ready.trainer.model.register_forward_pre_hook(look, with_kwargs=True)
    finetune_classification.train(ready, Heartbeat("training"))
    assert {training for training, *_ in heard} == {True, False}
    for training, batch, mask in heard:
        for row, real in zip(batch, mask.sum(1).tolist()):
            as_it_is = any(row[:real].equal(clip) for clip in clean[real])
            assert as_it_is != training and not row[real:].any()
    assert "100 % of them among coloured noise" in plan(ready.trainer, {}, ready.arguments)[0]


def test_only_evaluations_that_show_something_learned_are_candidates(checkpoint, mine, tmp_path):
    trainer = prepare(finetune_ctc, checkpoint, mine, tmp_path, *SHORT).trainer
    trainer.state.global_step = 5
    assert not trainer._determine_best_metric({"eval_cer": 0.1, "eval_learned": 0.0}, None)
    assert trainer.state.best_metric is None and trainer.state.best_global_step is None
    assert trainer._determine_best_metric({"eval_cer": 0.9, "eval_learned": 1.0}, None)
    assert trainer._determine_best_metric({"eval_cer": 0.8}, None), "too few clips to tell"
    assert not trainer._determine_best_metric({"eval_cer": 0.85, "eval_learned": 1.0}, None)


def test_a_signal_in_an_evaluation_loses_neither_step_nor_evaluation(checkpoint, classes, tmp_path):
    """Nor does a run that goes on from its last step take one more."""
    options = ("--max_steps", "5", "--eval_steps", "2", "--learning_rate", "0.005", "--resume_from_checkpoint", "auto")
    options += ("--metric_for_best_model", "accuracy")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(finetune_classification, checkpoint, classes, whole, *options)
    for step in (2, 2, 5):
        before = {path: path.stat().st_mtime_ns for path in stopped.glob("checkpoint-2/*")}
        ready = prepare(finetune_classification, checkpoint, classes, stopped, *options)
        ready.trainer.add_callback(At(step, signal.SIGINT, evaluating=True))
        with pytest.raises(SystemExit) as caught:
            finetune_classification.train(ready, Heartbeat("training"))
        assert caught.value.code == 130 and (stopped / f"checkpoint-{step}" / "trainer_state.json").is_file()
        assert all(path.stat().st_mtime_ns == then for path, then in before.items()), "saved anew, with other states"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ready, final = run(finetune_classification, checkpoint, classes, stopped, *options)
    assert_equal_weights(whole / "final", final)
    results = json.loads((final / "results.json").read_text())
    assert results == json.loads((whole / "final" / "results.json").read_text())
    assert (results["best_step"], results["steps"]) == (2, 5)
    assert [line["step"] for line in ready.trainer.state.log_history if "eval_loss" in line] == [0, 2, 4, 5]


@pytest.mark.parametrize(
    ("strategy", "step", "epoch", "due"),
    [
        ("steps", 4, 1.0, True),
        ("steps", 3, 0.75, False),
        ("steps", 5, 1.25, True),  # the last step
        ("epoch", 4, 1.0, True),
        ("epoch", 3, 0.75, False),
        ("epoch", 5, 1.25, True),
        ("no", 4, 1.0, False),
    ],
)
def test_when_an_evaluation_is_due(strategy, step, epoch, due, tmp_path):
    args = TrainingArguments(str(tmp_path), eval_strategy=strategy, eval_steps=2, use_cpu=True)
    state = TrainerState(global_step=step, epoch=epoch, eval_steps=2, max_steps=5)
    assert MissedEvaluationCallback.is_due(args, state) is due


ONE_GETS_A_SIGNAL = """
import os, signal, sys
sys.path.insert(0, "tests/helpers")
from finetuning_runs import At
from training import finetune_ctc
prepare = finetune_ctc.prepare
def with_signal(*settings):
    run = prepare(*settings)
    if os.environ["RANK"] == "1":
        run.trainer.add_callback(At({at}, signal.SIGTERM, evaluating={evaluating}))
    return run
finetune_ctc.prepare = with_signal
finetune_ctc.main()
"""


def test_of_several_processes_a_signal_to_one_saves_and_the_run_goes_on_as_without_it(checkpoint, mine, tmp_path):
    """Where an evaluation is due, then in the next one."""
    options = ["--model_name_or_path", checkpoint, "--train_data", str(mine), "--max_steps", "5", "--eval_steps", "2"]
    options += ["--p_noise", "0.5", *FAST[:-2], "--load_best_model_at_end", "false", "--output_dir"]

    def ended(out: str, script) -> tuple[str, int]:
        command = [*options, str(tmp_path / out), "--resume_from_checkpoint", "auto"]
        process = start(command, ranks=2, script=script)
        return process.communicate(timeout=300)[1], process.returncode

    whole, out = Path(finetune_ctc.__file__), tmp_path / "stopped"
    said, status = ended("whole", whole)
    assert status == 0, said[-3000:]
    for at, evaluating in ((2, False), (4, True)):
        (tmp_path / "script.py").write_text(ONE_GETS_A_SIGNAL.format(at=at, evaluating=evaluating))
        said, status = ended("stopped", tmp_path / "script.py")
        assert status == 143 and said.count(f"Stopped at step {at}: ") == 1, said[-3000:]
        assert (out / f"checkpoint-{at}" / "rng_state_1.pth").is_file()
        assert (out / "interrupted").read_text() == "SIGTERM came\n"
    said, status = ended("stopped", whole)
    assert status == 0 and not (out / "interrupted").exists(), said[-3000:]
    assert_equal_weights(tmp_path / "whole" / "final", out / "final")


def test_checkpoints_with_adapters_hold_the_merged_model_and_go_on(checkpoint, mine, tmp_path):
    options = ("--lora_rank", "2", "--max_steps", "4", "--eval_steps", "2", "--save_total_limit", "5")
    ready = prepare(finetune_ctc, checkpoint, mine, tmp_path, *options)
    ready.trainer.add_callback(At(2, signal.SIGTERM))
    with pytest.raises(SystemExit):
        finetune_ctc.train(ready, Heartbeat("training"))
    folder = tmp_path / "checkpoint-2"
    assert pipeline("automatic-speech-recognition", str(folder / "merged"), device="cpu").tokenizer is not None
    adapted = ready.trainer.model.eval()
    waveform = torch.randn(1, 8000)
    merged = AutoModelForCTC.from_pretrained(folder / "merged").eval()
    assert torch.allclose(merged(waveform).logits, adapted(waveform).logits, atol=1e-5)
    with pytest.raises(ValueError, match="holds adapters, not a whole model: .*`merged`"):
        open_model(AutoModelForCTC, folder)
    finetune_ctc.train(
        prepare(finetune_ctc, checkpoint, mine, tmp_path, *options, "--resume_from_checkpoint", "latest"),
        Heartbeat("training"),
    )
    assert json.loads((tmp_path / "final" / "results.json").read_text())["steps"] == 4


def test_no_clip_alone_in_its_batch_ends_a_run(checkpoint, tmp_path, texts, caplog):
    train, dev = (write_clips(tmp_path / name, texts[:3], "label", "ABA".__getitem__) for name in ("train", "dev"))
    for folder in (train, dev):
        soundfile.write(folder / "2.wav", np.full(12000, np.nan), 16000, subtype="FLOAT")
    ones = [f"--per_device_{part}_batch_size" for part in ("train", "eval")]
    options = ("--eval_data", str(dev), "--test_data", str(dev), ones[0], "1", ones[1], "1", "--max_steps", "4")
    for script, column in ((finetune_ctc, "--text_column"), (finetune_classification, "--label_column")):
        _, final = run(script, checkpoint, train, tmp_path / column, *options, column, "label")
        assert {score.clips for score in read_scores(final / "results.json")} == {2}
        assert "1 of 3 clips are left out: 1 non_finite." in caplog.text
        assert "1 of 3 training clips were replaced by others: 1 non_finite." in caplog.text
        caplog.clear()


def test_what_is_scored_is_scored_whole(checkpoint, mine, tmp_path):
    """Though the last training batch is left out where it is not full."""
    options = ("--dataloader_drop_last", "true", "--per_device_train_batch_size", "4", "--max_steps", "1")
    trainer = prepare(finetune_ctc, checkpoint, mine, tmp_path, *options, "--eval_fraction", "0.5").trainer
    assert len(trainer.train_dataset) == len(trainer.eval_dataset) == 10
    assert len(trainer.get_train_dataloader()) == 2 and len(trainer.get_eval_dataloader()) == 2
    assert len(trainer.predict(trainer.eval_dataset).predictions) == 10 and "eval_cer" in trainer.evaluate()


def test_batches_that_shared_memory_cannot_hold_are_refused(checkpoint, mine, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**16))
    monkeypatch.setattr("training.finetuning.trainer.local_processes", lambda accelerator: 3)
    options = ("--max_steps", "2", "--dataloader_num_workers", "2")
    ready = prepare(finetune_ctc, checkpoint, mine, tmp_path / "out", *options)
    with pytest.raises(
        ValueError, match="0 MiB free, but 2 workers of 3 processes each .*=1g, or lower `dataloader_num_workers`"
    ):
        finetune_ctc.train(ready, Heartbeat("training"))


@pytest.mark.parametrize(("script", "data"), [(finetune_ctc, "mine"), (finetune_classification, "classes")])
def test_at_the_end_the_wrapper_of_ddp_goes_before_the_group(script, data, checkpoint, request, tmp_path, monkeypatch):
    ready, there = prepare(script, checkpoint, request.getfixturevalue(data), tmp_path, *SHORT), []

    def trained(trainer, *_) -> torch.nn.Module:
        trainer.model_wrapped = torch.nn.Sequential(trainer.model)
        trainer.accelerator._models.append(trainer.model_wrapped)
        trainer.model_wrapped.circle = trainer.model_wrapped.forward
        wrapper = weakref.ref(trainer.model_wrapped)
        monkeypatch.setattr(trainer.accelerator, "end_training", lambda: there.append(wrapper()))
        return trainer.model

    monkeypatch.setattr(script, "run_training", trained)
    script.train(ready, Heartbeat("training"))
    assert there == [None] and (tmp_path / "final" / "results.json").is_file()


GO_ON = ("--resume_from_checkpoint", "latest")
WORKER = ("--dataloader_num_workers", "1", "--per_device_train_batch_size", "1", "--per_device_eval_batch_size", "1")


@pytest.mark.parametrize("part", ["train", "eval"])
def test_a_batch_that_cannot_be_handed_over_ends_its_worker(part, checkpoint, mine, tmp_path):
    trainer = prepare(finetune_ctc, checkpoint, mine, tmp_path, *WORKER).trainer
    trainer.data_collator = lambda clips: {"input_values": lambda: None}
    loader = getattr(trainer, f"get_{part}_dataloader")()
    loader.base_dataloader.timeout = 5
    with pytest.raises(RuntimeError, match=r"DataLoader worker .*exit"):
        next(iter(loader))


def test_a_worker_leaves_ctrl_c_to_the_training_process(checkpoint, mine, tmp_path):
    trainer = prepare(finetune_ctc, checkpoint, mine, tmp_path, *WORKER).trainer
    collate = trainer.data_collator

    def interrupted(clips):
        os.kill(os.getpid(), signal.SIGINT)
        return collate(clips)

    trainer.data_collator = interrupted
    assert "input_values" in next(iter(trainer.get_train_dataloader()))


def test_workers_that_stay_for_all_epochs_do_not_change_what_a_resumed_run_draws(checkpoint, classes, tmp_path):
    """Resumed within an epoch, of which there are two steps, and at the end of one."""
    options = ("--dataloader_num_workers", "1", "--dataloader_persistent_workers", "true", "--max_steps", "6")
    options += ("--per_device_train_batch_size", "11", "--save_steps", "1", "--save_total_limit", "9")
    options += ("--eval_strategy", "no", "--load_best_model_at_end", "false", "--dropout", "0.2")
    run(finetune_classification, checkpoint, classes, tmp_path / "whole", *options)
    for step in (1, 2):
        saved = f"checkpoint-{step}"
        shutil.copytree(tmp_path / "whole" / saved, tmp_path / str(step) / saved)
        run(finetune_classification, checkpoint, classes, tmp_path / str(step), *options, *GO_ON)
        assert_equal_weights(*(tmp_path / name / "final" for name in ("whole", str(step))))


@pytest.mark.parametrize(("waiting", "step"), [(True, 2), (False, 1)])
def test_a_worker_that_dies_of_a_signal_does_not_cost_the_last_step(waiting, step, checkpoint, mine, tmp_path):
    """A worker's fourth batch is read after the second step, and made as early as in the first."""
    ready, calls = prepare(finetune_ctc, checkpoint, mine, tmp_path, *WORKER, "--max_steps", "6"), []
    collate = ready.trainer.data_collator

    def dying(clips):
        calls.append(clips)
        if len(calls) == 4:
            time.sleep(2 * waiting)
            os.kill(os.getppid(), signal.SIGINT)
            os._exit(1)
        return collate(clips)

    class Slow(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            time.sleep(0 if waiting else 2)

    ready.trainer.data_collator = dying
    ready.trainer.add_callback(Slow())
    with pytest.raises(SystemExit) as ended:
        finetune_ctc.train(ready, Heartbeat("training"))
    assert ended.value.code == 130
    saved = tmp_path / f"checkpoint-{step}"
    assert [path for path in tmp_path.iterdir() if path.name.startswith("checkpoint")] == [saved]
    assert json.loads((saved / "trainer_state.json").read_text())["global_step"] == step


def test_adapters_of_a_stopped_run_go_on_to_the_weights_of_one_that_is_not(checkpoint, mine, tmp_path):
    """By themselves, and merged into the model."""
    options = ("--lora_rank", "2", "--max_steps", "5", "--load_best_model_at_end", "false", "--p_noise", "0.5")
    options += ("--learning_rate", "1e-2", "--eval_steps", "5", "--save_total_limit", "5")
    run(finetune_ctc, checkpoint, mine, tmp_path / "whole", *options)
    ready = prepare(finetune_ctc, checkpoint, mine, tmp_path / "stopped", *options)
    ready.trainer.add_callback(At(2, signal.SIGTERM))
    with pytest.raises(SystemExit):
        finetune_ctc.train(ready, Heartbeat("training"))
    run(finetune_ctc, checkpoint, mine, tmp_path / "stopped", *options, *GO_ON)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert_equal_weights(whole / "final", stopped / "final")
    then, ours, theirs = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (stopped / "checkpoint-2", whole / "final" / "adapter", stopped / "final" / "adapter")
    )
    assert any("lora_B" in name for name in ours) and any("lm_head" in name for name in ours)
    for name, tensor in ours.items():
        assert tensor.equal(theirs[name]) and not tensor.equal(then[name]), name


def test_a_run_that_begins_with_the_head_alone_is_resumed_before_and_after_the_encoder_joins(
    checkpoint, mine, tmp_path
):
    options = ("--freeze_encoder_steps", "2", "--max_steps", "5", "--save_steps", "1", "--save_total_limit", "9")
    options += ("--eval_strategy", "no", "--load_best_model_at_end", "false", "--dropout", "0.2")
    whole = tmp_path / "whole"
    run(finetune_ctc, checkpoint, mine, whole, *options)
    moved = [
        any(not tensor.equal(before[name]) for name, tensor in after.items() if name.startswith("sjepa.encoder"))
        for before, after in itertools.pairwise(
            load_file(whole / f"checkpoint-{step}" / "model.safetensors") for step in range(1, 6)
        )
    ]
    assert moved == [False, True, True, True]
    for step in (1, 2, 3):
        saved = f"checkpoint-{step}"
        shutil.copytree(whole / saved, tmp_path / str(step) / saved)
        run(finetune_ctc, checkpoint, mine, tmp_path / str(step), *options, *GO_ON)
        assert_equal_weights(whole / "final", tmp_path / str(step) / "final")
