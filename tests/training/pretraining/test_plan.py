"""A run says what it will do: the figures are those of the run, and a dry run leaves nothing behind."""

import json
import logging

import numpy as np
import pytest
import soundfile
from pretraining_runs import RECIPE

from training import pretrain
from training.data.clips import Clip
from training.pretraining import plan
from training.pretraining.arguments import parse_arguments
from training.pretraining.checkpoint_layout import STATE_DIRECTORY
from training.pretraining.monitoring import read_history


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """20 clips of noise, 0.5 to 3 seconds long, and one that is too short."""
    here, random = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    for number, seconds in enumerate([*np.linspace(0.5, 3.0, 20), 0.04]):
        soundfile.write(here / f"{number}.wav", 0.1 * random.standard_normal(int(16000 * seconds)), 16000)
    return here


@pytest.fixture
def arguments(folder, tmp_path):
    """The command line of a small run in the folder `out`."""

    def make(*options):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(RECIPE.format(front_end="log_mel") + f"\ntrain_data: {folder}\n")
        fixed = ["--config", str(recipe), "--output_dir", str(tmp_path / "out")]
        return [*fixed, "--report_to", "none", *options]

    return make


def lines(caplog) -> dict[str, str]:
    """What the plan has said, by the first word of each line."""
    return {m.split(":")[0]: m for m in (record.getMessage() for record in caplog.records) if ": " in m}


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(arguments, tmp_path, folder, caplog):
    caplog.set_level(logging.INFO)
    pretrain.main(arguments("--dry_run", "true", "--push_to_hub", "true", "--hub_model_id", "ada/encoder"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml"]
    said = lines(caplog)
    assert said["Data"] == (
        f"Data: 21 clips, 35 seconds: {folder}; 5 % are shorter than 0.1 s or unreadable and will be skipped."
    )
    assert "read by the training process itself; about " in said["Batches"] and "% padding." in said["Batches"]
    assert "parameters (3 layers of 32, log_mel front end)" in said["Model"] and "; fp32 on " in said["Model"]
    assert "Steps: 6 of phase 1, 8 of phase 2, 1 batch each" in said["Steps"]
    assert "8 clusters of mfcc" in said["Targets"] and "6 clusters of layer 2" in said["Targets"]
    assert f"in {tmp_path / 'out'}; pushed to the Hub as ada/encoder" in said["Output"]
    assert "A dry run: nothing was written." in caplog.text and len(caplog.records) <= 10


def test_a_dry_run_refuses_what_the_run_would_refuse(arguments, tmp_path):
    (tmp_path / "out" / "checkpoint-4").mkdir(parents=True)
    with pytest.raises(SystemExit, match="error: .*holds an earlier run"):
        pretrain.main(arguments("--dry_run", "true"))
    with pytest.raises(SystemExit, match="error: .*no file or folder"):
        pretrain.main(arguments("--dry_run", "true", "--output_dir", "o", "--train_data", str(tmp_path / "absent")))
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="error: `output_dir` .*file/out cannot be written to: .*Not a directory"):
        pretrain.main(arguments("--dry_run", "true", "--output_dir", str(tmp_path / "file" / "out")))


def test_the_plan_is_what_happens(pictures, arguments, tmp_path, caplog):
    """Hours, padding and the size of a checkpoint are those of the run; one that is resumed plans the rest."""
    caplog.set_level(logging.INFO)
    options = ["--phase1_steps", "12", "--phase2_steps", "12", "--layer_check_steps", "100", "--save_steps", "12"]
    options += ["--max_bad_fraction", "0.2"]
    parsed = parse_arguments(arguments(*options))
    run = pretrain.prepare(parsed)
    found = plan.estimate_data(run.data.stream, None, 1)
    size = plan.checkpoint_bytes(run.model, parsed)
    pretrain.pretrain(run)
    run.lock.release()
    last, out = read_history(tmp_path / "out" / "metrics.jsonl")[-1], tmp_path / "out"
    assert found.exact and found.sampled == 21
    assert last["hours_seen"] == pytest.approx(24 * found.batch_seconds / 3600, rel=0.15)
    assert last["padded_share"] == pytest.approx(found.padding, abs=0.05)
    written = sum(path.stat().st_size for path in (out / "final").rglob("*") if path.suffix in (".safetensors", ".pt"))
    assert size == pytest.approx(written, rel=0.15), "of so small a model; names and headers count"
    assert not (out / "final" / "effective_rank.png").exists(), "nothing was measured, nothing is drawn"
    assert (out / "final" / "loss.png").is_file() and "effective_rank" not in caplog.text
    record = json.loads((out / "final" / "training.json").read_text())
    assert "dry_run" not in record["settings"] and record["steps"] == 24
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = ["--resume_from_checkpoint", str(out / "checkpoint-12"), "--dry_run", "true"]
    pretrain.main(arguments(*options, *again))
    assert "Steps: 12 are taken; 0 of phase 1, 12 of phase 2" in lines(caplog)["Steps"]
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}, "a look changes nothing"
    assert (out / "checkpoint-12" / STATE_DIRECTORY).is_dir()


def test_large_data_are_judged_by_a_sample(tmp_path, arguments, monkeypatch):
    """Manifests with durations, by weight: no header is read, and hardly a row."""
    for name, seconds, count in (("short", 1.0, 3000), ("long", 10.0, 1000)):
        row = json.dumps({"audio_filepath": "absent.wav", "duration": seconds})
        (tmp_path / f"{name}.jsonl").write_text(f"{row}\n" * count)
    monkeypatch.setattr(Clip, "length", lambda self: pytest.fail("a header was read"))
    both = [str(tmp_path / "short.jsonl"), str(tmp_path / "long.jsonl")]
    parsed = parse_arguments(arguments("--train_data", *both, "--batch_seconds", "8"))
    run = pretrain.prepare(parsed)
    run.lock.release()
    found = plan.estimate_data(run.data.stream, None, 1)
    assert found.hours == pytest.approx((3000 * 1 + 1000 * 10) / 3600)
    assert not found.exact and found.sampled == plan.SAMPLED
    heard = found.batches * found.batch_seconds
    assert heard == pytest.approx(3000 * 1 + 1000 * 2, rel=0.2), "clips are cropped to two seconds"
    mostly_long = plan.estimate_data(run.data.stream, [1.0, 9.0], 1)
    assert mostly_long.batches * mostly_long.batch_seconds > 1.3 * heard
    assert found.heard == pytest.approx([3000 / 5000, 2000 / 5000])
    weighed = plan.estimate_data(run.data.stream, [3.0, 1.0], 1)
    assert weighed.heard == pytest.approx([3 / 5, 2 / 5]), "weights count clips, of which the long are cropped to 2 s"


def test_weights_are_told_in_audio(tmp_path, arguments, caplog):
    caplog.set_level(logging.INFO)
    for name, seconds, count in (("short", 0.5, 300), ("long", 2.0, 100)):
        row = json.dumps({"audio_filepath": "absent.wav", "duration": seconds})
        (tmp_path / f"{name}.jsonl").write_text(f"{row}\n" * count)
    both = ["--train_data", str(tmp_path / "short.jsonl"), str(tmp_path / "long.jsonl"), "--dry_run", "true"]
    pretrain.main(arguments(*both, "--train_data_weights", "4", "2"))
    assert "short.jsonl (33 % of the audio heard)" in lines(caplog)["Data"]
    assert "long.jsonl (67 % of the audio heard)" in lines(caplog)["Data"]
    caplog.clear()
    pretrain.main(arguments(*both))
    assert "of the audio heard" not in lines(caplog)["Data"]


def test_the_plan_says_what_a_run_starts_from(arguments, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    pretrain.main(arguments("--phase2_steps", "0", "--max_bad_fraction", "0.2"))
    start = str(tmp_path / "out" / "final")
    begun = ["--initial_checkpoint", start, "--output_dir", str(tmp_path / "next"), "--dry_run", "true"]
    for options, targets in (
        ([], "8 clusters of mfcc, fitted"),
        (["--frozen_weight", "1"], "with those of phase 1 for 100 % of the loss."),
        (
            ["--phase1_steps", "0", "--frozen_weight", "0.5"],
            f"with the frozen mixture of {start} for 50 % of the loss.",
        ),
    ):
        caplog.clear()
        pretrain.main(arguments(*begun, *options))
        said = lines(caplog)
        assert f", started from {start} with a new mixture and a new last layer of the head; " in said["Model"]
        assert targets in said["Targets"]
    caplog.clear()
    pretrain.main(arguments("--dry_run", "true", "--output_dir", str(tmp_path / "other")))
    assert "started from" not in lines(caplog)["Model"] and "of the loss" not in lines(caplog)["Targets"]


def test_a_full_disk_is_foreseen(arguments, monkeypatch):
    run = pretrain.prepare(parse_arguments(arguments()))
    run.lock.release()
    assert "ARE FREE" not in plan.about_output(run.arguments, run.model)
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1_000_000})())
    assert "ONLY 1 MB ARE FREE THERE" in plan.about_output(run.arguments, run.model)


def test_a_layer_that_is_never_checked_is_said_to_stay(arguments):
    for options, words in (
        ([], "later the one of the highest effective rank (measured every 3 steps)"),
        (["--layer_check_steps", "14"], "clusters of layer 2 of the EMA encoder to the end"),
        (["--target_layers", "1", "3"], "clusters of layer 1, 3 of the EMA encoder."),
    ):
        assert words in plan.about_targets(parse_arguments(arguments(*options)))


def test_too_much_that_cannot_be_read_is_foreseen(arguments, caplog):
    caplog.set_level(logging.INFO)
    pretrain.main(arguments("--dry_run", "true", "--max_bad_fraction", "0.04"))
    assert (
        "more than `max_bad_fraction` (0.04): the run will stop once that is beyond chance." in lines(caplog)["Data"]
    )
    pretrain.main(arguments("--dry_run", "true", "--min_seconds", "1.9", "--max_bad_fraction", "1"))
    assert "57 % are shorter than 1.9 s or unreadable" in lines(caplog)["Data"]


def test_what_noise_is_added_to_how_many_clips(arguments, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    pretrain.main(arguments("--dry_run", "true", "--p_noise", "0.5", "--noise_data", "coloured"))
    assert lines(caplog)["Noise"] == "Noise: coloured, made without recordings, added to 50 % of the clips."
    (tmp_path / "hiss").mkdir()
    soundfile.write(tmp_path / "hiss" / "1.wav", np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    caplog.clear()
    pretrain.main(arguments("--dry_run", "true", "--p_noise", "0.25", "--noise_data", str(tmp_path / "hiss")))
    assert "crops of 1 recording of" in lines(caplog)["Noise"] and "added to 25 % of" in lines(caplog)["Noise"]
