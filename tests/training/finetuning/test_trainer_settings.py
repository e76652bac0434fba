import gc

import pytest
from finetuning_runs import SHORT, prepare, run, sentence
from transformers import TrainingArguments

from training import finetune_classification, finetune_ctc
from training.data.workers import start_method
from training.finetuning.trainer_settings import equal_intervals, interval, total_steps


def test_few_clips_train_for_enough_steps(checkpoint, mine, tmp_path):
    """20 clips, 2 held out, 8 a batch: 3 steps an epoch; what the user asks for stays."""
    ready = prepare(finetune_ctc, checkpoint, mine, tmp_path / "a")
    assert ready.trainer.args.num_train_epochs == 334
    assert ready.trainer.args.dataloader_multiprocessing_context is None, "nobody is started"
    ready = prepare(finetune_ctc, checkpoint, mine, tmp_path / "a", "--dataloader_num_workers", "2")
    assert ready.trainer.args.dataloader_multiprocessing_context == start_method()
    ready = prepare(finetune_ctc, checkpoint, mine, tmp_path / "b", "--min_steps", "60")
    assert ready.trainer.args.num_train_epochs == 30
    for option in ("--num_train_epochs=2", "--num-train-epochs=2"):
        assert prepare(finetune_ctc, checkpoint, mine, tmp_path / "c", option).trainer.args.num_train_epochs == 2


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
        ("--do-eval f", "`do_eval` false has no effect here"),
        ("--num_train_epoch 5", "--num_train_epoch (near: --num_train_epochs"),
        ("--eval_step 50", "--eval_step (near: --eval_steps"),
        ("--train_sampling_strategy batch_rebalance", "group_by_length"),
        ("--optim lomo", "`optim` lomo cannot be used"),
        ("--lr_scheduler_type cosine_with_min_lr", "`lr_scheduler_kwargs`"),
        ("--report_to nonsense", "`report_to` nonsense is unknown"),
        ("--max_steps 0", "no step would be trained"),
        ("--max_steps -1 --num_train_epochs 0", "no step would be trained"),
        ("--learning_rate -1", "`learning_rate` must be at least 0, got -1.0"),
        ("--head_learning_rate -1", "`head_learning_rate` must be at least 0, got -1.0"),
        ("--per_device_train_batch_size 0", "`per_device_train_batch_size` must be at least 1, got 0"),
        ("--gradient_accumulation_steps 0", "`gradient_accumulation_steps` must be at least 1, got 0"),
        ("--hub_model_id ada/asr", "`hub_model_id` has no effect without `push_to_hub`: set that to true, or"),
        ("--hub_strategy every_save", "`hub_strategy` has no effect without `push_to_hub`"),
        ("--push_to_hub true --hub_strategy every_save", "`hub_strategy` must be end"),
        ("--push_to_hub true --hub_revision draft", "`hub_revision` draft does not go with fine-tuning"),
        ("--seed -1", "`seed` must lie between 0 and"),
        ("--eval_fraction 1", "`eval_fraction` must be at least 0 and below 1, got 1.0"),
        ("--eval_fraction 0", "`eval_fraction` must be above 0, got 0.0"),
        ("--resume_from_checkpoint latest", "out to resume from: start without resuming"),
        ("--resume_from_checkpoint true", "'true' is not a directory: name a checkpoint, or give latest"),
        ("--resume_from_checkpoint=", "'' is not a directory"),
        ("--resume_from_checkpoint /nowhere", "'/nowhere' is not a directory"),
    ],
)
def test_what_the_trainer_cannot_do_is_refused_before_data_are_read(options, message, tmp_path):
    """Neither the checkpoint nor the data exist: the setting is refused first."""
    nowhere = tmp_path / "nowhere"
    assert message in sentence(finetune_ctc, str(nowhere), nowhere, tmp_path / "out", *options.split())
    gc.collect()  # Transformers would find the half-made configuration of DeepSpeed, and ask it for ZeRO


def test_a_batch_larger_than_the_data_is_refused_where_it_would_be_dropped(checkpoint, mine, tmp_path):
    options = ("--dataloader_drop_last", "true", "--per_device_train_batch_size", "64")
    message = sentence(finetune_ctc, checkpoint, mine, tmp_path / "out", *options)
    assert "18 clips do not fill one of 64: no step would be trained" in message
    ready = prepare(finetune_ctc, checkpoint, mine, tmp_path / "out", *options[2:])
    assert ready.trainer.args.num_train_epochs == 1000  # a step an epoch


def test_each_step_that_may_be_the_best_is_saved(checkpoint, mine, tmp_path):
    both = ("--max_steps", "200", "--eval_steps", "50", "--save_steps", "100")
    message = sentence(finetune_ctc, checkpoint, mine, tmp_path, *both)
    assert "`save_steps` comes to 100 and `eval_steps` to 50: the best step would not always be saved" in message
    shares = ("--max_steps", "90", "--eval_steps", "0.2", "--save_steps", "0.4")  # 25 and 36 steps
    assert "comes to 36 and `eval_steps` to 25" in sentence(finetune_ctc, checkpoint, mine, tmp_path, *shares)
    ready = prepare(finetune_ctc, checkpoint, mine, tmp_path, *both, "--load_best_model_at_end", "false")
    assert (ready.trainer.args.eval_steps, ready.trainer.args.save_steps) == (50, 100)


@pytest.mark.parametrize("options", ["--label_smoothing_factor 0.1", "--metric_for_best_model loss"])
def test_what_the_trainer_can_do_works(options, checkpoint, classes, tmp_path):
    ready, final = run(finetune_classification, checkpoint, classes, tmp_path, *SHORT, *options.split())
    assert (final / "results.json").is_file()
    assert ready.trainer.args.greater_is_better is ("loss" not in options)


def test_evaluations_keep_their_distance():
    assert [interval(0.05, total) for total in (100, 300, 1000, 8)] == [25, 25, 50, 8]
    assert interval(7, 100) == 7 and interval(None, 100) is None
    assert equal_intervals({"eval_steps": "10"}) == ["--save_steps", "10"]
    assert equal_intervals({"save_strategy": "epoch"}) == ["--eval_strategy", "epoch"]
    assert equal_intervals({"eval_steps": "10", "save_steps": "20", "eval_strategy": "no"}) == []


def test_steps_of_an_epoch_and_of_the_run(tmp_path):
    def steps(clips: int, **settings) -> tuple[int, int]:
        settings = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "use_cpu": True} | settings
        return total_steps(TrainingArguments(str(tmp_path), **settings), clips)

    assert steps(40, num_train_epochs=3) == (3, 9), "five batches, two in a step"
    assert steps(40, num_train_epochs=1.5) == (3, 5)
    assert steps(44, dataloader_drop_last=True, num_train_epochs=3) == (3, 9) != steps(49, num_train_epochs=3)
    assert steps(40, num_train_epochs=3, max_steps=7) == (3, 7)
    with pytest.raises(ValueError, match="7 clips do not fill one of 8"):
        steps(7, dataloader_drop_last=True)
