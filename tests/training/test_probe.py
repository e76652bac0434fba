import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from checkpoints import save
from torch import nn

from sjepa_hf import SJepaForPreTraining
from sjepa_hf.scores import MFCC, UNTRAINED, Score, read_scores
from training import probe
from training.evaluation.probes.results import report
from training.probe import ProbeArguments, main, open_tasks


@pytest.fixture
def checkpoint(tmp_path, make_config):
    return save(SJepaForPreTraining(make_config("log_mel")), tmp_path / "sjepa")


def test_all_probes_of_a_checkpoint(two_voices, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    command = [checkpoint, "--data", str(two_voices), "--utterance_labels", "voice", "mood", "--phones"]
    main([*command, "--utterance_splits", "4", "--phone_splits", "2", "--output", str(out)])
    assert sorted(path.name for path in out.iterdir()) == ["probes.json", "probes.png"]
    results = json.loads((out / "probes.json").read_text())
    voice = results["tasks"]["voice, linear probe"]
    assert (voice["clips"], voice["classes"], voice["splits"]) == (14, 2, 4)
    assert (voice["clips_without_label"], voice["classes_left_out"]) == (1, 1)
    phones = results["tasks"]["phones, mlp probe"]
    assert (phones["label"], phones["classifier"], phones["level"], phones["clips"]) == ("phones", "mlp", "frame", 16)
    assert results["data"] == [str(two_voices)] and results["protocol"]

    scores = {(s.task, s.subject, s.layer): s for s in read_scores(out / "probes.json")}
    for subject in (f"untrained:{checkpoint}", checkpoint):
        assert [key[2] for key in scores if key[:2] == ("voice, linear probe", subject)] == [0, 1, 2, 3]
    assert scores["voice, linear probe", "mfcc", None].value == 1.0
    share = results["tasks"]["mood, linear probe"]["commonest_class_share"]
    assert all(s.learned == (s.value > share) for s in scores.values() if s.task == "mood, linear probe")
    assert scores["mood, linear probe", "mfcc", None].value < 0.9  # there is nothing to be read
    assert scores["phones, linear probe", "mfcc", None].value > 0.85
    found = [scores[task, checkpoint, 3].value for task in ("phones, mlp probe", "mood, linear probe")]
    assert found[0] > found[1]
    one = scores["phones, linear probe", checkpoint, 0]
    assert len(one.values) == 2 and one.runs == "2 splits" and (one.data, one.split) == ("clips", "test")
    assert one.value == pytest.approx(np.mean(one.values)) and one.deviation == pytest.approx(np.std(one.values))
    assert phones["scored_share"] == pytest.approx(0.24, abs=0.005)
    assert one.protocol == f"2 classes, {phones['rows']} frames, random 76/24 splits of the recordings"
    table = capsys.readouterr().out
    assert "1 classes with a single recording were left out" in table and f"{100 * one.value:.1f} ±" in table
    assert "Best layer: MFCC 100.0 ± 0.0; untrained " in table
    assert "The best layer is chosen on the splits that are reported; MFCC has one layer." in table


def test_voices_are_kept_apart_on_request(two_voices, checkpoint, tmp_path, capsys):
    command = [checkpoint, "--data", str(two_voices), "--utterance_labels", "voice", "--phones", "--split_by", "voice"]
    options = ["--layers", "1", "--utterance_splits", "2", "--phone_splits", "2", "--no_baselines"]
    main([*command, *options, "--output", str(tmp_path / "out")])
    results = json.loads((tmp_path / "out" / "probes.json").read_text())
    apart = {task["label"]: task["apart"] for task in results["tasks"].values()}
    assert apart == {"voice": "recordings", "phones": "voice"}
    told = {score.task: score.protocol for score in read_scores(tmp_path / "out" / "probes.json")}
    assert told["voice, linear probe"].endswith("splits of the recordings")
    assert told["phones, mlp probe"].endswith("splits by voice")
    assert "voice kept apart" in capsys.readouterr().out


def test_an_output_that_cannot_be_is_told_before_anything_is_opened(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="error: `output` .*file cannot be written to: .*Not a directory"):
        main(["nowhere", "--data", "a", "--utterance_labels", "voice", "--output", str(tmp_path / "file")])


def test_a_wrong_checkpoint_is_told_before_any_data_are_read(tmp_path):
    with pytest.raises(SystemExit, match="error: .*nowhere cannot be opened: there is no such directory"):
        main([str(tmp_path / "nowhere"), "--data", str(tmp_path / "no-data"), "--utterance_labels", "voice"])


@pytest.mark.parametrize("name", ["mfcc", "fbank", "untrained:CHECKPOINT"])
def test_baselines_are_no_checkpoints(name, checkpoint):
    with pytest.raises(SystemExit, match="is no checkpoint: MFCC and the untrained encoder are probed beside every"):
        main([name.replace("CHECKPOINT", checkpoint), "--data", "nowhere", "--utterance_labels", "voice"])


def test_without_baselines_those_that_are_named_are_probed(two_voices, checkpoint, tmp_path, capsys):
    fresh = f"untrained:{checkpoint}"
    command = ["--data", str(two_voices), "--utterance_labels", "voice", "--utterance_splits", "2", "--layers", "2"]
    main([checkpoint, *command, "--output", str(tmp_path / "all")])
    every = {score.subject: score.value for score in read_scores(tmp_path / "all" / "probes.json")}
    for named in (["mfcc"], [checkpoint, fresh], ["mfcc", checkpoint]):
        main([*named, *command, "--baselines", "false", "--output", str(tmp_path / "some")])
        scores = read_scores(tmp_path / "some" / "probes.json")
        assert {s.subject: s.value for s in scores} == {subject: every[subject] for subject in named}
        assert all(s.layer == (None if s.subject == "mfcc" else 2) for s in scores)
    with pytest.raises(SystemExit, match="fbank is no checkpoint"):
        main(["fbank", *command, "--baselines", "false"])


def test_checkpoints_of_one_shape_share_the_untrained_encoder(two_voices, checkpoint, make_config, tmp_path, capsys):
    other = save(SJepaForPreTraining(make_config("log_mel")), tmp_path / "other")
    larger = save(SJepaForPreTraining(make_config("log_mel", num_hidden_layers=4)), tmp_path / "larger")
    command = [checkpoint, other, larger, "--data", str(two_voices), "--utterance_labels", "voice"]
    main(
        [*command, "--utterance_splits", "1", "--layers", "3", "--max_clips", "12", "--output", str(tmp_path / "out")]
    )
    scores = read_scores(tmp_path / "out" / "probes.json")
    fresh = [f"untrained:{checkpoint}", f"untrained:{larger}"]
    assert [s.subject for s in scores] == ["mfcc", fresh[0], checkpoint, other, fresh[1], larger]
    assert {s.layer for s in scores[1:]} == {3}
    assert json.loads((tmp_path / "out" / "probes.json").read_text())["clips"] == 12
    (head,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("layer ")]
    assert head == ["layer", "untrained", "sjepa", "sjepa", "other", "untrained", "larger", "larger"]


def test_subjects_have_the_seed_and_the_layers_that_are_asked_for(monkeypatch):
    def opened(name, device, untrained_seed=0):
        width = 3 if name.endswith("wide") else 2
        return SimpleNamespace(model=nn.Linear(2, width), opened=(name, untrained_seed))

    monkeypatch.setattr(probe, "open_encoder", opened)
    monkeypatch.setattr(probe, "features_of_layers", lambda encoder, layers=None: (*encoder.opened, layers))
    found = dict(probe.subjects(["a", "b", "wide", "a"], [2], True, 7))
    names = ["untrained:a", "a", "b", "untrained:wide", "wide"]
    assert found.pop("mfcc")[::2] == ("mfcc", None) and found == {name: (name, 7, [2]) for name in names}
    alone = dict(probe.subjects(["mfcc", "untrained:a"], [2], False, 7))
    assert alone == {"mfcc": ("mfcc", 7, None), "untrained:a": ("untrained:a", 7, [2])}, "MFCC has no second layer"


def test_clips_frames_and_splits_are_drawn_as_asked(two_voices):
    """And a silent clip, which may be a class of its own, has no phones."""

    def drawn(**settings):
        clips, tasks = open_tasks(ProbeArguments([str(two_voices)], ["voice"], **settings))
        names = [clips.clip(i).name for i in range(len(clips))]
        splits = {label: [score.tolist() for _, score in task.splits] for label, task in tasks.items()}
        return names, splits, len(tasks["phones"].classes) if "phones" in tasks else None

    soundfile.write(two_voices / "5.wav", np.zeros(6400), 16000)
    (names, splits, frames), (same, others, _) = (drawn(phones=True, seed=seed) for seed in (0, 1))
    assert len(names) == 15 and names == same and all(splits[label] != others[label] for label in splits)
    short = drawn(max_seconds=0.45)[0]
    assert str(two_voices / "5.wav") in short and len(short) < 16
    (some, _, few), (other, *_) = (drawn(phones=True, max_clips=10, max_frames=60, seed=seed) for seed in (0, 1))
    assert len(some) <= 10 and some != other and few == 60 < frames


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to probe for"),
        (["--utterance_labels", "accent"], "no column 'accent'"),
        (["--utterance_labels", "voice", "--layers", "last"], "`layers` must be 'all' or numbers"),
        (["--utterance_labels", "voice", "--layers", "2", "9", "--no_baselines"], "`layers` has 9, but .* 0 to 3"),
        (["--utterance_labels", "voice", "--split_by", "house"], "no column 'house'"),
        (["--utterance_labels", "voice", "--seed", "-1"], "`seed` must lie between 0 and"),
        (["--utterance_labels", "voice", "--phone_splits", "0"], "`phone_splits` must be at least 1"),
    ],
)
def test_what_cannot_work_gets_a_sentence(two_voices, checkpoint, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        main([checkpoint, "--data", str(two_voices), "--output", str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


def test_a_deviation_needs_two_splits(two_voices, checkpoint, tmp_path, capsys):
    options = [
        "--data",
        str(two_voices),
        "--utterance_labels",
        "voice",
        "--output",
        str(tmp_path / "out"),
        "--layers",
        "0",
    ]
    main([checkpoint, *options, "--utterance_splits", "1"])
    printed = capsys.readouterr().out
    assert "±" not in printed and "over 1 split;" in printed
    scores = read_scores(tmp_path / "out" / "probes.json")
    assert {(score.deviation, score.runs) for score in scores} == {(None, "1 split")}
    assert (tmp_path / "out" / "probes.png").is_file()


def test_a_dry_run_writes_nothing(two_voices, checkpoint, tmp_path, caplog):
    caplog.set_level("INFO")
    main(
        [
            checkpoint,
            "--data",
            str(two_voices),
            "--utterance_labels",
            "voice",
            "--output",
            str(tmp_path / "out"),
            "--dry_run",
        ]
    )
    assert "linear on 10 splits" in caplog.text and not (tmp_path / "out").exists()


def test_a_recipe_gives_what_the_command_line_does_not(two_voices, checkpoint, tmp_path):
    recipe = tmp_path / "probe.yaml"
    recipe.write_text(f"data: [{two_voices}]\nutterance_labels: [voice]\nutterance_splits: 7\nbaselines: false\n")
    main([checkpoint, "--config", str(recipe), "--utterance_splits", "2", "--output", str(tmp_path / "out")])
    scores = read_scores(tmp_path / "out" / "probes.json")
    assert {(score.runs, score.subject) for score in scores} == {("2 splits", checkpoint)}


def test_the_report_names_the_best_layer_and_who_is_at_chance():
    title = "voice, linear probe"
    task = {"apart": "recordings", "splits": 5, "classes": 2, "clips": 10, "rows": 10, "scored_share": 0.2}
    task |= {"commonest_class_share": 0.5, "classes_left_out": 1, "clips_without_label": 3}
    measured = {"/x/mine": (0.6, 0.9, 0.8), f"{UNTRAINED}/x/mine": (0.5, 0.4, 0.3)}
    values = [(name, layer, value) for name, own in measured.items() for layer, value in enumerate(own)]
    scores = [
        Score(name, title, "audio-classification", "d", "held-out", "accuracy", value, deviation=0.01, layer=layer)
        for name, layer, value in [*values, (MFCC, None, 0.7)]
    ]
    lines = report({"scores": scores, "tasks": {title: task}}).splitlines()
    assert lines[0].endswith("commonest class 50.0, recordings kept apart; MFCC 70.0 ± 1.0")
    assert [line.split() for line in lines[1:5]] == [
        ["layer", "mine", "untrained"],
        *(
            [str(n), str(100 * a), "±", "1.0", str(100 * b), "±", "1.0"]
            for n, (a, b) in enumerate(zip(*measured.values()))
        ),
    ]
    assert lines[5:] == [
        "Best layer: mine 90.0 ± 1.0 (layer 1); untrained 50.0 ± 1.0 (layer 0); MFCC 70.0 ± 1.0.",
        "The best layer is chosen on the splits that are reported; MFCC has one layer.",
        "No layer does better than always answering the commonest class: untrained.",
        "1 classes with a single recording were left out.",
        "3 clips without the label were left out.",
    ]
