import errno
import json
import signal

import pytest
from accelerate import Accelerator
from finetuning_runs import FAST, At, prepare
from safetensors import SafetensorError

from sjepa_hf.saving import ASIDE
from training import finetune_ctc
from training.common.output_directory import checkpoints
from training.common.progress import Heartbeat
from training.finetuning.resuming import choose_checkpoint
from training.finetuning.saving import written_together


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def torn(*args, **kwargs):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def broken_off(*args, **kwargs):
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")


@pytest.mark.parametrize(
    ("where", "error", "said"),
    [
        ("transformers.modeling_utils.safe_save_file", torn, "cannot be written .*No space left"),
        ("torch.save", broken_off, r"cannot be written \(torch.save broke off: is the disk full\?\)"),
        ("transformers.TrainerState.save_to_json", full, "No space left on device"),
    ],
)
def test_a_checkpoint_that_cannot_be_written_is_named_and_leaves_those_before_it(
    where, error, said, checkpoint, mine, tmp_path, monkeypatch
):
    out, saved = tmp_path / "out", []
    command = ["--model_name_or_path", checkpoint, "--train_data", str(mine), "--output_dir", str(out), *FAST]
    command += ["--max_steps", "6", "--eval_steps", "2", "--save_total_limit", "5"]
    prepared = finetune_ctc.prepare

    def with_trouble(*settings):
        run = prepared(*settings)
        save = run.trainer._save_checkpoint

        def save_in_time(*args, **kwargs):
            saved.append(run.trainer.state.global_step)
            if len(saved) == 2:
                monkeypatch.setattr(where, error)
            save(*args, **kwargs)

        run.trainer._save_checkpoint = save_in_time
        return run

    monkeypatch.setattr(finetune_ctc, "prepare", with_trouble)
    with pytest.raises(SystemExit, match=f"error: .*checkpoint-4: {said}"):
        finetune_ctc.main(command)
    monkeypatch.undo()
    assert saved == [2, 4]
    assert sorted(path.name for path in out.iterdir()) == [".lock", "checkpoint-2"]
    assert choose_checkpoint("auto", out) == str(out / "checkpoint-2")
    finetune_ctc.main([*command, "--resume_from_checkpoint", "auto"])
    assert json.loads((out / "final" / "results.json").read_text())["steps"] == 6


def test_what_is_written_together_is_there_whole_or_not_at_all(tmp_path):
    directory, accelerator = tmp_path / "checkpoint-3", Accelerator(cpu=True)
    for text in ("old", "new"):
        with written_together(directory, accelerator, True) as aside:
            assert checkpoints(tmp_path) == ([directory] if text == "new" else [])
            assert aside.name == f"{ASIDE}checkpoint-3"
            (aside / "part").write_text(text)
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    with pytest.raises(OSError, match="checkpoint-3"), written_together(directory, accelerator, True) as aside:
        (aside / "part").write_text("half")
        broken_off()
    assert (directory / "part").read_text() == "new" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(RuntimeError, match="another fault"), written_together(directory, accelerator, True):
        raise RuntimeError("another fault")


def test_the_best_checkpoint_is_recorded_by_the_name_that_it_keeps(checkpoint, mine, tmp_path, caplog):
    """And the newest stays beside it, whatever the limit: by it a later start knows that the run has ended."""
    caplog.set_level("INFO")
    options = ("--max_steps", "8", "--eval_steps", "2", "--metric_for_best_model", "loss")
    ready = prepare(finetune_ctc, checkpoint, mine, tmp_path, *options)
    trainer, losses = ready.trainer, iter([1.0, 0.5, 0.9, 0.8])
    evaluate = trainer._evaluate

    def chosen(*args, **kwargs):
        return evaluate(*args, **kwargs) | {"eval_loss": next(losses), "eval_learned": 1.0}

    trainer._evaluate = chosen
    trainer.args.eval_on_start = False
    loaded = []
    trainer._load_best_model = lambda: loaded.append(trainer.state.best_model_checkpoint)
    finetune_ctc.train(ready, Heartbeat("training"))
    assert loaded == [str(tmp_path / "checkpoint-4")]
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-8"]
    for path in checkpoints(tmp_path):
        assert json.loads((path / "trainer_state.json").read_text())["best_model_checkpoint"] == loaded[0]
    again = prepare(finetune_ctc, checkpoint, mine, tmp_path, *options, "--resume_from_checkpoint", "auto")
    with pytest.raises(SystemExit) as ended:
        finetune_ctc.train(again, Heartbeat("training"))
    assert not ended.value.code and "final is finished: it has taken 8 steps" in caplog.text


def test_a_run_that_goes_back_sets_aside_what_lies_beyond(stopped, checkpoint, mine):
    """Its own would be taken for the older ones; and what is set aside stays, though one checkpoint is kept."""
    options = ("--max_steps", "6", "--save_total_limit", "1")
    at_3 = ("--resume_from_checkpoint", str(stopped / "checkpoint-3"))
    (stopped / "checkpoint-5").mkdir()
    ready = prepare(finetune_ctc, checkpoint, mine, stopped, *options, *at_3)
    assert (stopped / "checkpoint-5").is_dir(), "nothing is changed before the training begins"
    ready.trainer.add_callback(At(4, signal.SIGTERM))
    with pytest.raises(SystemExit):
        finetune_ctc.train(ready, Heartbeat("training"))
    assert choose_checkpoint("latest", stopped) == str(stopped / "checkpoint-4")
    finetune_ctc.train(
        prepare(finetune_ctc, checkpoint, mine, stopped, *options, "--resume_from_checkpoint", "latest"),
        Heartbeat("training"),
    )
    assert (stopped / "checkpoint-5.abandoned").is_dir()
    assert (stopped / "final" / "results.json").is_file()
