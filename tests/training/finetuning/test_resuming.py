import csv
import json
import shutil
from pathlib import Path

import pytest
from finetuning_runs import FAST, SHORT, prepare, run, sentence
from transformers import pipeline

from sjepa_hf import SJepaConfig
from training import finetune_classification, finetune_ctc
from training.common.progress import Heartbeat
from training.data.waveforms import read_audio
from training.finetuning.resuming import check_classes, check_normalization, check_vocabulary


GO_ON = ("--resume_from_checkpoint", "latest")


def test_the_checkpoint_of_a_stopped_run_opens_and_goes_on(stopped, checkpoint, mine, caplog):
    caplog.set_level("INFO")
    folder = stopped / "checkpoint-3"
    assert not (stopped / "final").exists()
    recognise = pipeline("automatic-speech-recognition", str(folder), device="cpu")
    assert isinstance(recognise({"raw": read_audio(mine / "0.wav"), "sampling_rate": 16000})["text"], str)
    assert (folder / "text_normalization.json").is_file()
    for word in ("auto", "latest", str(folder)):
        ready = prepare(finetune_ctc, checkpoint, mine, stopped, "--max_steps", "6", "--resume_from_checkpoint", word)
        assert ready.trainer.args.resume_from_checkpoint == str(folder)
    finetune_ctc.train(ready, Heartbeat("training"))
    assert json.loads((stopped / "final" / "results.json").read_text())["steps"] == 6
    record = json.loads((stopped / "final" / "training.json").read_text())
    assert record["hours_taken"] is None, "nobody has timed the session before"
    history = [entry["step"] for entry in ready.trainer.state.log_history if "eval_cer" in entry]
    assert history.count(0) == 1 and history[-1] == 6
    before = {path: path.stat().st_mtime_ns for path in stopped.rglob("*")}
    with pytest.raises(SystemExit) as ended:
        finetune_ctc.train(
            prepare(finetune_ctc, checkpoint, mine, stopped, "--max_steps", "6", *GO_ON), Heartbeat("training")
        )
    assert not ended.value.code and "final is finished: it has taken 6 steps" in caplog.text
    assert before == {path: path.stat().st_mtime_ns for path in stopped.rglob("*")}


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
    from sjepa_hf.feature_extraction import feature_extractor

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


def test_a_file_of_a_checkpoint_that_says_nothing_is_named(tmp_path):
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(ValueError, match=r"vocab\.json is no JSON"):
        check_vocabulary(str(tmp_path), None)
    (tmp_path / "text_normalization.json").write_text("[]")
    with pytest.raises(ValueError, match=r"text_normalization\.json holds list where a JSON object should be"):
        check_normalization(str(tmp_path), {"case": "upper"})


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
    assert "cannot be resumed" in sentence(finetune_ctc, checkpoint, mine, stopped, *options, str(torn))
    (stopped / "checkpoint-3" / "optimizer.pt").unlink()
    assert "None of the checkpoints" in sentence(finetune_ctc, checkpoint, mine, stopped, *options, "latest")


def test_a_run_with_nothing_but_torn_checkpoints_begins_and_sets_them_aside(stopped, checkpoint, mine, caplog):
    """As the scheduler that gives `auto` expects it; `latest` asks for a checkpoint."""
    caplog.set_level("INFO")
    (stopped / "checkpoint-3" / "trainer_state.json").write_text("{")
    shutil.copytree(stopped / "checkpoint-3", stopped / "checkpoint-1")
    options = ("--max_steps", "4", "--save_total_limit", "1", "--resume_from_checkpoint")
    assert "None of the checkpoints" in sentence(finetune_ctc, checkpoint, mine, stopped, *options, "latest")
    before = sorted(stopped.rglob("*"))
    prepare(finetune_ctc, checkpoint, mine, stopped, *options, "auto", "--dry_run", "true")
    assert sorted(stopped.rglob("*")) == before
    caplog.clear()
    _, final = run(finetune_ctc, checkpoint, mine, stopped, *options, "auto")
    for step in (1, 3):
        assert f"checkpoint-{step} is passed over: trainer_state.json is missing or torn" in caplog.text
        assert (stopped / f"checkpoint-{step}.abandoned").is_dir()
    assert "holds no checkpoint that is whole: the run begins" in caplog.text
    assert json.loads((final / "results.json").read_text())["steps"] == 4
    shutil.rmtree(stopped / "checkpoint-4")
    (stopped / "checkpoint-5").mkdir()
    assert "holds the result of another run" in sentence(finetune_ctc, checkpoint, mine, stopped, *options, "auto")
    assert (stopped / "checkpoint-5").is_dir()


@pytest.mark.parametrize("script", [finetune_ctc, finetune_classification])
def test_an_output_directory_belongs_to_one_run(script, checkpoint, mine, classes, tmp_path, monkeypatch):
    data = str(mine if script is finetune_ctc else classes)
    command = ["--model_name_or_path", checkpoint, "--train_data", data, "--output_dir", str(tmp_path), *FAST, *SHORT]
    with script.settings(command):
        for options in ([], ["--resume_from_checkpoint", "auto"]):
            assert "is in use by a run that is still active" in sentence(script, checkpoint, data, tmp_path, *options)
        with script.settings([*command, "--dry_run", "true"]):
            pass
        assert "is in use by a run that is still active" in sentence(script, checkpoint, data, tmp_path)
    (tmp_path / "checkpoint-2").mkdir()
    assert "holds checkpoints of another run" in sentence(script, checkpoint, data, tmp_path)
    (tmp_path / "checkpoint-2").rmdir()
    assert "no file or folder" in sentence(script, checkpoint, "/absent", tmp_path)
    monkeypatch.setattr(script, "train", lambda *_: None)
    for _ in range(2):
        script.main(command)  # neither an error nor an end leaves a lock


@pytest.mark.parametrize("place", ["", "merged"], ids=["whole", "adapters"])
def test_the_classes_of_a_checkpoint_are_read_where_its_model_lies(place, tmp_path):
    """Adapters have no configuration of their own: it lies beside the model that they are merged into."""
    (tmp_path / "adapter_config.json").write_text("{}")
    SJepaConfig(id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1}).save_pretrained(tmp_path / place)
    check_classes(str(tmp_path), ["no", "yes"])
    with pytest.raises(ValueError, match="The labels have changed since .*: the class 'maybe' is new"):
        check_classes(str(tmp_path), ["maybe", "no", "yes"])
