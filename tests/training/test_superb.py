import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from sjepa_hf import SJepaModel
from sjepa_hf.feature_extraction import feature_extractor
from sjepa_hf.scores import read_scores
from training import superb
from training.common.progress import Heartbeat
from training.data.labelled import open_labelled
from training.evaluation.encoders import TransformersEncoder, open_encoder
from training.evaluation.frozen_features import FeatureStore, FrozenFeatures
from training.evaluation.superb import evaluation
from training.evaluation.superb.arguments import parse_arguments
from training.superb import evaluate, main, prepare


@pytest.fixture
def folder(tmp_path):
    """40 clips of a low or a high tone in noise; words, phones, slots and slotted transcripts go with the tone."""
    rng = np.random.default_rng(0)
    (tmp_path / "clips").mkdir()
    with open(tmp_path / "clips" / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "tone", "who", "text", "phones", "size", "drink", "slotted", "all"])
        for i in range(40):
            high = i % 2
            time = np.arange(rng.integers(4000, 8000)) / 16000
            audio = 0.3 * np.sin(2 * np.pi * (2500 if high else 300) * time) + 0.03 * rng.standard_normal(len(time))
            soundfile.write(tmp_path / "clips" / f"{i}.wav", audio, 16000)
            slotted = "B-size big E-size one" if high else "one B-drink tea E-drink"
            row = [
                "high" if high else "low",
                "xyzw"[i % 4],
                "be" if high else "a cab",
                "IY1 sp" if high else "sil AE1",
            ]
            writer.writerow([f"{i}.wav", *row, "big" if high else "", "" if high else "tea", slotted, "same"])
    return str(tmp_path / "clips")


@pytest.fixture
def voices(tmp_path):
    """48 clips of eight speakers: a tone of their own, in noise."""
    rng = np.random.default_rng(0)
    (tmp_path / "voices").mkdir()
    rows = [["file_name", "who"]]
    for i in range(48):
        time = np.arange(rng.integers(7000, 12000)) / 16000
        audio = 0.3 * np.sin(2 * np.pi * 300 * (1 + i % 8) * time) + 0.03 * rng.standard_normal(len(time))
        soundfile.write(tmp_path / "voices" / f"{i}.wav", audio, 16000)
        rows.append([f"{i}.wav", f"speaker {i % 8}"])
    with open(tmp_path / "voices" / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path / "voices"


@pytest.fixture
def checkpoint(tmp_path, make_config):
    SJepaModel(make_config("log_mel", hidden_size=16, num_hidden_layers=2)).save_pretrained(tmp_path / "model")
    feature_extractor().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def call(tmp_path, folder):
    """Runs the script in `tmp_path` and returns its results."""

    def run(task, *options, train_data=folder):
        output = tmp_path / "out"
        common = ["--train_data", train_data, "--output_dir", str(output), "--cache_dir", str(tmp_path / "features")]
        main(["--task", task, *common, "--device", "cpu", *options])
        return [json.loads(line) for line in (output / f"{task}.jsonl").read_text().splitlines()]

    return run


@pytest.mark.parametrize(("option", "value"), [("split_by", "who"), ("stress", "false"), ("stacked_frames", "2")])
def test_other_splits_and_phones_are_other_results(call, option, value, tmp_path):
    options = ["--model", "mfcc", "--max_steps", "4", "--batch_size", "8"]
    (found,) = call("pr", *options, f"--{option}", value)
    assert str(found["hyperparameters"][option]).lower() == value
    (score,) = read_scores(tmp_path / "out" / "pr.json")
    assert score.task_type == "automatic-speech-recognition" and ", but batch_size 8 for 32, max" in score.protocol
    told = {"stress": "stress false for true", "stacked_frames": "stacked_frames 2 for 1"}
    assert score.protocol.endswith(told.get(option, "eval_steps 1 for 1000"))
    with pytest.raises(SystemExit, match=f"pr.jsonl holds results with `{option}` .*, not None: choose another"):
        call("pr", *options)


def test_too_few_clips(folder, tmp_path):
    rows = [{"audio_filepath": f"{folder}/{i}.wav", "who": "xy"[i]} for i in range(2)]
    (tmp_path / "two.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ["--task", "sid", "--label_column", "who", "--train_data", str(tmp_path / "two.jsonl")]
    with pytest.raises(SystemExit, match="error: --task sid: All 1 clips belong together: none of them can be"):
        main(["--model", "mfcc", *options])


def test_pooled_task_with_several_subjects(call, checkpoint, capsys, tmp_path, monkeypatch):
    options = ["--label_column", "tone", "--max_steps", "40", "--learning_rate", "3e-3", "--batch_size", "8"]
    subjects = ["mfcc", f"untrained:{checkpoint}", checkpoint]
    results = call("ks", "--model", *subjects, *options, "--seeds", "0", "1")
    assert [(r["encoder"], r["seed"]) for r in results] == [(name, seed) for name in subjects for seed in (0, 1)]
    for result in results:
        assert result["metrics"]["accuracy"] >= 0.9, result["encoder"]
        assert sum(result["layer_weights"]) == pytest.approx(1)
        assert len(result["layer_weights"]) == (1 if result["encoder"] == "mfcc" else 3)
        assert result["clips"] == {"train": 24, "dev": 8, "test": 8} and result["hours"]["test"] > 0
        assert result["dev_metrics"].keys() == {"class_mean_accuracy"}, "what chose the step has a name of its own"
        assert result["split"] == "test" and "speech_commands" in result["protocol"]
        assert result["hyperparameters"]["learning_rate"] == 3e-3 and result["hyperparameters"]["balanced"]
    assert results[4]["layer_weights"] != results[5]["layer_weights"]
    printed = capsys.readouterr().out
    assert "± " in printed and checkpoint in printed and "train 24 clips" in printed
    assert (tmp_path / "out" / "ks.md").read_text().strip() == printed.strip()
    scores = read_scores(tmp_path / "out" / "ks.json")
    assert [(score.subject, score.runs) for score in scores] == [(name, "2 seeds") for name in subjects]
    assert scores[0].values == [result["metrics"]["accuracy"] for result in results[:2]]
    assert (
        scores[0].protocol.startswith("8 test clips, a share held out at random; 40 steps; s3prl")
        and scores[0].clips == 8
    )
    assert scores[0].value == pytest.approx(np.mean(scores[0].values))
    assert scores[0].deviation == pytest.approx(np.std(scores[0].values, ddof=1))
    assert (tmp_path / "out" / "ks_layer_weights.png").is_file()
    assert not list((tmp_path / "out").glob("*incomplete*"))

    def fail(*_):
        raise AssertionError("the encoder ran again")

    monkeypatch.setattr(TransformersEncoder, "__call__", fail)
    again = call("sid", "--model", checkpoint, *options, "--seeds", "1")  # another task on the same clips
    assert again[0]["metrics"].keys() == {"accuracy"}


def test_results_join_those_of_earlier_calls(call, checkpoint, tmp_path):
    options = ["--label_column", "tone", "--max_steps", "4", "--batch_size", "8", "--untrained_seed", "5"]
    first = call("ks", "--model", "mfcc", f"untrained:{checkpoint}", *options, "--seeds", "0", "1")
    assert first[2]["encoder_digest"] == open_encoder(f"untrained:{checkpoint}", untrained_seed=5).digest
    both = call("ks", "--model", checkpoint, *options)
    assert both[:4] == first and [(r["encoder"], r["seed"]) for r in both[4:]] == [(checkpoint, 0)]
    scores = {score.subject: score.runs for score in read_scores(tmp_path / "out" / "ks.json")}
    assert scores == {"mfcc": "2 seeds", f"untrained:{checkpoint}": "2 seeds", checkpoint: "1 seed"}
    with pytest.raises(SystemExit, match="error: .*ks.jsonl holds results with `max_steps` 4, not 5: choose another"):
        call("ks", "--model", "mfcc", *options, "--max_steps", "5")


def test_runs_at_the_same_time_keep_each_other_s_results(folder, tmp_path):
    options = ["--task", "ks", "--train_data", folder, "--label_column", "tone", "--max_steps", "2", "--device", "cpu"]
    options += ["--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "features"), "--model"]
    begun = [prepare(parse_arguments([*options, name])) for name in ("mfcc", "fbank")]
    both = [evaluate(*one, Heartbeat("testing")) for one in begun][-1]
    assert [result["encoder"] for result in both] == ["mfcc", "fbank"]
    assert [score.subject for score in read_scores(tmp_path / "out" / "ks.json")] == ["mfcc", "fbank"]


def test_what_is_there_is_not_evaluated_again(call, checkpoint, make_config, folder, monkeypatch, caplog):
    """Unless its encoder has changed; and other audio or labels under the same name are refused."""
    caplog.set_level("INFO")
    scored, score = [], evaluation.Evaluation.score

    def counted(self, subject, encoder, fold, features, seed, heartbeat):
        scored.append((subject, seed))
        return score(self, subject, encoder, fold, features, seed, heartbeat)

    monkeypatch.setattr(evaluation.Evaluation, "score", counted)
    options = [
        "--label_column",
        "tone",
        "--max_steps",
        "4",
        "--batch_size",
        "8",
        "--model",
        "mfcc",
        checkpoint,
        "mfcc",
    ]
    first = call("ks", *options, "--seeds", "0")
    more = call("ks", *options, "--seeds", "0", "1")
    assert scored == [("mfcc", 0), (checkpoint, 0), ("mfcc", 1), (checkpoint, 1)]
    assert more[:2] == first and "mfcc: 1 of 2 results are in output_dir already" in caplog.text
    torch.manual_seed(1)
    SJepaModel(make_config("log_mel", hidden_size=16, num_hidden_layers=2)).save_pretrained(checkpoint)
    renewed = call("ks", *options, "--seeds", "1")
    assert scored[4:] == [(checkpoint, 0), (checkpoint, 1)] and len(renewed) == 4
    assert "is another than output_dir has results of: those of the seeds 0, 1 are scored again" in caplog.text
    assert {r["encoder_digest"] for r in renewed}.isdisjoint({more[1]["encoder_digest"]})
    table = f"{folder}/metadata.csv"
    with open(table) as file:
        text = file.read()
    for change in ("label", "audio"):
        with open(table, "w") as file:
            file.write(text.replace("3.wav,high", "3.wav,low") if change == "label" else text)
        if change == "audio":
            audio, rate = soundfile.read(f"{folder}/3.wav")
            soundfile.write(f"{folder}/3.wav", audio / 2, rate)
        with pytest.raises(SystemExit, match="error: .*ks.jsonl holds results of other clips or labels than"):
            call("ks", *options)
    assert len(scored) == 6


@pytest.mark.parametrize("task", ["sid", "sd"])
def test_a_clip_that_cannot_be_read_makes_no_other_data_of_each_run(voices, task):
    options = ["--task", task, "--model", "mfcc", "--train_data", str(voices), "--label_column", "who"]
    arguments, digests, path = parse_arguments(options), [], voices / "3.wav"
    for readable in (True, False, False):
        opened = evaluation.Evaluation(arguments)
        opened.open()
        moved = path if readable else path.rename(path.with_suffix(".gone"))
        digests.append(opened.data_digest)
        moved.rename(path)
    assert digests[0] != digests[1] == digests[2]


def test_folds(call, tmp_path, monkeypatch, capsys, caplog):
    """Four folds and two seeds are eight results and one score; after an interruption what is missing is run alone."""
    caplog.set_level("INFO")
    options = ["--label_column", "tone", "--folds", "who", "--max_steps", "4", "--batch_size", "8", "--model", "mfcc"]
    train, trained, most = evaluation.train, [], [3]

    def interrupted(head, task, features, *more):
        if len(trained) == most[0]:
            raise KeyboardInterrupt
        trained.append(features["test"].clips.labels["who"])
        return train(head, task, features, *more)

    monkeypatch.setattr(evaluation, "train", interrupted)
    with pytest.raises(SystemExit, match="130"):
        call("er", *options, "--seeds", "0", "1")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"er.jsonl", ".er.lock"}, (
        "three of eight are no score"
    )
    most[0] = 8
    results = call("er", *options, "--seeds", "0", "1")
    assert trained == [[who] * 10 for who in "wwxxyyzz"] and "mfcc: 3 of 8 results are in output_dir" in caplog.text
    assert [(r["fold"], r["seed"]) for r in results] == [(who, seed) for who in "wxyz" for seed in (0, 1)]
    assert {tuple(r["clips"].items()) for r in results} == {(("train", 24), ("dev", 6), ("test", 10))}
    (score,) = read_scores(tmp_path / "out" / "er.json")
    by_seed = [np.mean([r["metrics"]["accuracy"] for r in results if r["seed"] == seed]) for seed in (0, 1)]
    assert score.values == pytest.approx(by_seed) and score.runs == "2 seeds" and score.clips == 40
    assert "40 test clips, mean of 4 folds by who; 4 steps" in score.protocol
    printed = capsys.readouterr().out
    assert "mean of 4 folds by who; train 24 clips" in printed and f"{np.mean(by_seed):.4f} ± " in printed
    assert call("er", *options, "--seeds", "0", "1") == results
    tasks = tmp_path / "tasks.yaml"
    tasks.write_text("er: {folds: who, label_column: tone, train_data: %s}\n" % (tmp_path / "clips"))
    call_all = ["--task", "all", "--tasks", str(tasks), "--output_dir", str(tmp_path / "out")]
    main([*call_all, *options[4:], "--cache_dir", str(tmp_path / "features"), "--device", "cpu", "--seeds", "0", "1"])
    text = (tmp_path / "out" / "all.md").read_text()
    assert f"| mfcc | {np.mean(by_seed):.4f} |" in text


def test_intents_are_right_if_all_columns_are(call):
    options = ["--max_steps", "30", "--learning_rate", "3e-3", "--batch_size", "8", "--model", "mfcc"]
    (both,) = call("ic", "--label_column", "tone", "who", *options)
    assert both["hyperparameters"]["columns"] == ["tone", "who"] and both["metrics"]["accuracy"] < 0.9


def test_slots_by_classification(call):
    options = ["--max_steps", "60", "--learning_rate", "3e-3", "--batch_size", "8", "--model", "mfcc"]
    (result,) = call("sf", "--slot_columns", "size", "drink", *options)
    assert result["metrics"]["slot_type_f1"] >= 0.9 and result["metrics"]["slot_value_cer"] <= 0.1
    assert result["protocol"].startswith("not a task of SUPERB") and result["title"].endswith("classification")


@pytest.mark.parametrize(
    ("task", "column", "metrics"),
    [
        ("asr", "text", {"wer", "cer"}),
        ("pr", "phones", {"per"}),
        ("sf", "slotted", {"slot_type_f1", "slot_value_cer"}),
    ],
)
def test_sequence_tasks(call, checkpoint, task, column, metrics):
    options = ["--max_steps", "4", "--batch_size", "4", "--label_column", column]
    options += [] if task == "pr" else ["--head_units", "8"]
    (result,) = call(task, "--model", checkpoint, *options)
    assert result["metrics"].keys() == result["dev_metrics"].keys() == metrics
    assert all(0 <= value for value in result["metrics"].values())


def test_speaker_verification(call, voices, tmp_path):
    """Speakers are kept apart, and tones tell them; a list of trials that is all wrong has the rate that is left."""
    options = ["--label_column", "who", "--head_units", "16", "--max_steps", "30", "--learning_rate", "3e-3"]
    options += ["--model", "mfcc", "--batch_size", "8"]
    (result,) = call("asv", *options, train_data=str(voices))
    assert result["clips"] == {"train": 24, "dev": 12, "test": 12} and result["metrics"]["eer"] < 0.2
    assert result["scored"] == "60 trials of 12 test clips", "2 speakers with 6 clips each have 30 targets"
    (row,) = read_scores(tmp_path / "out" / "asv.json")
    assert row.metric == "eer" and row.merit == -result["metrics"]["eer"] and row.protocol.startswith("60 trials of")
    assert "test 60 trials of 12 test clips" in (tmp_path / "out" / "asv.md").read_text()
    (tmp_path / "wrong.txt").write_text("".join(f"{int(i % 8 > 0)} voices/0.wav {i}.wav\n" for i in range(1, 48)))
    options += [
        "--train_data",
        str(voices),
        "--test_data",
        str(voices),
        "--trials",
        str(tmp_path / "wrong.txt"),
        "--output_dir",
        str(tmp_path),
    ]
    main(["--task", "asv", *options, "--cache_dir", str(tmp_path / "features"), "--device", "cpu"])
    (wrong,) = map(json.loads, (tmp_path / "asv.jsonl").read_text().splitlines())
    assert wrong["metrics"]["eer"] > 0.8 and wrong["scored"] == "47 trials of 48 test clips"


def test_diarization(call, voices, tmp_path):
    """Tones tell who of two is heard; always saying that both are would be wrong in a good third."""
    options = ["--label_column", "who", "--head_units", "16", "--max_steps", "60", "--learning_rate", "1e-2"]
    (result,) = call("sd", *options, "--model", "mfcc", "--batch_size", "8", train_data=str(voices))
    assert result["clips"] == {"train": 24, "dev": 12, "test": 12} and result["scored"] == "12 mixtures"
    assert 0 < result["metrics"]["der"] < 0.6
    (row,) = read_scores(tmp_path / "out" / "sd.json")
    assert row.merit == -result["metrics"]["der"] and row.protocol.startswith("12 mixtures")


def test_query_by_example(checkpoint, tmp_path, caplog):
    """Words of three tones are found among others. Nothing is trained, so one seed and no training clips."""
    caplog.set_level("INFO")
    rng, rows = np.random.default_rng(0), []
    for i in range(40):
        tones = np.repeat([[300, 2500, 900], [2500, 900, 300], [900, 300, 2500], [300, 900, 2500]][i % 4], 2000)
        audio = 0.3 * np.sin(2 * np.pi * np.cumsum(tones) / 16000) + 0.01 * rng.standard_normal(6000)
        soundfile.write(tmp_path / f"{i}.wav", audio, 16000)
        rows.append({"audio_filepath": str(tmp_path / f"{i}.wav"), "word": f"word {i % 4}"})
    folder = str(tmp_path / "words.jsonl")
    (tmp_path / "words.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ["--label_column", "word", "--model", "mfcc", checkpoint, "--seeds", "0", "1"]
    data = ["--eval_data", folder, "--test_data", folder, "--output_dir", str(tmp_path / "out")]
    main(["--task", "qbe", *options, *data, "--cache_dir", str(tmp_path / "features"), "--device", "cpu"])
    results = [json.loads(line) for line in (tmp_path / "out" / "qbe.jsonl").read_text().splitlines()]
    assert [(result["encoder"], result["seed"]) for result in results] == [("mfcc", 0), (checkpoint, 0)]
    assert results[0]["metrics"] == results[0]["dev_metrics"] and results[0]["metrics"]["mtwv"] > 0.5
    assert sorted(results[1]["layer_weights"]) == [0, 0, 1] and results[0]["scored"] == "12 queries in 28 clips"
    row = read_scores(tmp_path / "out" / "qbe.json")[0]
    assert row.merit == row.value and "12 queries in 28 clips; nothing trained" in row.protocol
    assert "best layer" in row.task and not (tmp_path / "out" / "qbe_layer_weights.png").exists()
    text = (tmp_path / "out" / "qbe.md").read_text()
    assert "nothing is trained" in text and "dev 40 (15 seconds)" in text
    assert "test clips with the best layer (dev: mtwv" in caplog.text and "head of step" not in caplog.text
    assert results[0]["hours"].keys() == {"dev", "test"}
    assert "40 of the test clips are in the dev split too: the figures are not of unheard clips" in caplog.text


def test_all_tasks_in_one_command(folder, tmp_path, monkeypatch, capsys):
    """A second call runs nothing, and a third what is new alone."""
    (tmp_path / "tasks.yaml").write_text(
        f"sid: {{train_data: {folder}, label_column: who}}\n"
        f"ks: {{train_data: [{folder}], label_column: tone, seeds: ['0']}}\n"
    )
    options = ["--task", "all", "--tasks", str(tmp_path / "tasks.yaml"), "--max_steps", "4", "--batch_size", "8"]
    options += ["--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "features"), "--model", "mfcc"]
    main(options)
    text = (tmp_path / "out" / "all.md").read_text()
    assert text.startswith("| encoder | sid accuracy ↑ | ks accuracy ↑ |") and capsys.readouterr().out == text
    ran, score = [], evaluation.Evaluation.score
    monkeypatch.setattr(evaluation.Evaluation, "score", lambda self, *a: ran.append(self.task.name) or score(self, *a))
    main(options)
    assert ran == [] and (tmp_path / "out" / "all.md").read_text() == text
    (tmp_path / "out" / "ks.jsonl").unlink()
    main(options)
    assert ran == ["ks"]
    for content, message in {
        "ks: {max_step: 3}": r"task ks: a task of its own cannot have the option max_step \(near: max_steps",
        "ks: {max_steps: many}": "tasks.yaml, task ks: `max_steps` is many, and must be a whole number",
        'pr: {stress: "false"}': "tasks.yaml, task pr: `stress` is false, and must be true or false",
        "ks: {seeds: []}": "tasks.yaml, task ks: `seeds` is empty: name one or more",
        "ks: {train_data: \xe4}": "The file .*tasks.yaml is not UTF-8",
        "xx: {train_data: a}": "There is no task 'xx'",
        "": "does not name tasks with their options",
        "ks": "The file .*tasks.yaml holds no fields, but ks",
        "{": "The file .*tasks.yaml is not YAML",
        "ks: {folds: a}\nks: {folds: b}": "line 2: `ks` is given twice",
        "ks: {folds: a, folds: b}": "line 1: `folds` is given twice",
    }.items():
        (tmp_path / "tasks.yaml").write_text(content, encoding="latin-1")
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            main(options)


def test_the_table_of_all_tasks_is_of_the_subjects_that_are_named(monkeypatch, tmp_path):
    found = [{"encoder": name} for name in ("mfcc", "fbank")]
    opened = SimpleNamespace(task=SimpleNamespace(name="ks"))
    for name, answer in {"arguments_of_tasks": [None], "prepare": (opened, []), "evaluate": found}.items():
        monkeypatch.setattr(superb, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(superb, "write_summary", lambda results, folder: results)
    arguments = SimpleNamespace(model=["mfcc"], dry_run=False, output_dir=str(tmp_path))
    assert superb.run_all(arguments, Heartbeat("testing")) == {"ks": found[:1]}
    arguments.dry_run = True
    assert superb.run_all(arguments, Heartbeat("testing")) == "", "nothing is written of no results"
    arguments.model = ["mfcc", str(tmp_path / "nowhere")]
    for run in (superb.run, superb.run_all):
        with pytest.raises(ValueError, match="nowhere cannot be opened"):  # before any data are
            run(arguments, Heartbeat("testing"))


def test_a_folder_for_features_is_needed_where_some_are_kept(folder, tmp_path):
    options = ["--task", "sid", "--label_column", "tone", "--train_data", folder, "--model", "mfcc"]
    options += ["--output_dir", str(tmp_path / "out"), "--cache_dir", "/dev/null/a", "--cache_gb"]
    assert prepare(parse_arguments([*options, "0"]))[1] == []
    with pytest.raises(ValueError, match="`cache_dir` /dev/null/a cannot be written"):
        prepare(parse_arguments([*options, "1"]))


def test_all_data_are_checked_before_the_first_run(folder, tmp_path, monkeypatch):
    """What is wrong with the last task is said with its name, and the option that mends it."""
    monkeypatch.setattr(evaluation.Evaluation, "score", lambda *_: pytest.fail("a task was run"))
    (tmp_path / "lexicon.txt").write_text("BE B IY1\nA AH0\n")
    required = ["--task", "all", "--model", "mfcc", "--output_dir", str(tmp_path / "out"), "--tasks"]
    for last, message in {
        f"sid: {{train_data: {folder}}}": "--task sid: .* no column 'label'; .* Name another with --label_column",
        "sid: {train_data: /nowhere}": "--task sid: '/nowhere': there is no file or folder",
        f"pr: {{train_data: {folder}, lexicon: {tmp_path}/lexicon.txt}}": "--task pr: The lexicon lacks .* 'CAB'",
    }.items():
        (tmp_path / "tasks.yaml").write_text(f"ks: {{train_data: {folder}, label_column: tone}}\n{last}\n")
        with pytest.raises(SystemExit, match=f"error: {message}"):
            main([*required, str(tmp_path / "tasks.yaml")])


def test_transcripts_are_found_as_in_fine_tuning(call, folder):
    table = f"{folder}/metadata.csv"
    with open(table) as file:
        text = file.read()
    options = ["--model", "mfcc", "--max_steps", "1", "--batch_size", "4", "--head_units", "8"]
    for name, found in (("sentence", ["sentence"]), ("words", None)):
        with open(table, "w") as file:
            file.write(text.replace(",text,", f",{name},"))
        if found:
            assert call("asr", *options)[0]["hyperparameters"]["columns"] == found
        else:
            with pytest.raises(SystemExit, match="--task asr: No column of transcripts .* give `--label_column`"):
                call("asr", *options)


def test_a_lexicon_that_is_not_there_gets_a_sentence(call):
    with pytest.raises(SystemExit, match="error: --lexicon nowhere.txt: there is no such file"):
        call("pr", "--model", "mfcc", "--label_column", "text", "--lexicon", "nowhere.txt")


def test_phones_are_recognised(call, folder):
    """The tone says which phone is spoken, the pause behind it that the text ends: a linear head finds both in MFCC.
    The same answer for all gives 0.5."""
    for path in Path(folder).glob("*.wav"):
        pause = 0.003 * np.random.default_rng(0).standard_normal(3200)
        soundfile.write(path, np.concatenate([soundfile.read(path)[0], pause]), 16000)
    (result,) = call("pr", "--model", "mfcc", "--max_steps", "60", "--batch_size", "8")
    assert result["metrics"]["per"] < 0.5


def test_features_that_do_not_fit_give_the_same_figures(call, checkpoint, tmp_path):
    options = ["--model", checkpoint, "--max_steps", "20", "--learning_rate", "3e-3", "--batch_size", "8"]
    (stored,) = call("pr", *options)
    (computed,) = call("pr", *options, "--cache_gb", "0", "--cache_dir", str(tmp_path / "empty"))
    assert not (tmp_path / "empty").exists()
    assert computed["layer_weights"] == pytest.approx(stored["layer_weights"], abs=1e-3)


def test_unseen_labels_count_as_errors(tmp_path, folder, caplog, call):
    other = tmp_path / "other.jsonl"
    rows = [{"audio_filepath": f"{folder}/{i}.wav", "tone": ["low", f"new{i}"][i % 2]} for i in range(12)]
    other.write_text("\n".join(map(json.dumps, rows)))
    options = ["--max_steps", "60", "--learning_rate", "3e-3", "--batch_size", "8", "--model", "mfcc"]
    (result,) = call("ks", "--label_column", "tone", "--test_data", str(other), *options)
    assert 0.4 <= result["metrics"]["accuracy"] <= 0.5
    said = "test: 6 clips have a tone that no training clip has, so that no answer is right"
    assert f"{said}: new1, new3, new5, new7, new9, ...." in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "sf"], "no data set on the Hub for --task sf: name a source with --train_data"),
        (["--task", "pr"], "--task pr on LibriSpeech needs --lexicon"),
        (["--task", "ks", "--slot_columns", "size"], "`slot_columns` belongs to --task sf"),
        (["--task", "ks", "--lexicon", "x"], "`lexicon` belongs to --task pr"),
        (["--task", "ks", "--stress", "false"], "`stress` belongs to --task pr"),
        (["--task", "asr", "--stacked_frames", "2"], "`stacked_frames` belongs to --task pr"),
        (["--task", "pr", "--stacked_frames", "0"], "`stacked_frames` must be at least 1, got 0"),
        (["--task", "ks", "--split_by", "who"], "`split_by` needs `train_data` beside it"),
        (
            ["--task", "ks", "--split_by", "a", "--train_data", "b", "--eval_data", "c", "--test_data", "d"],
            "`split_by` splits train_data, of which nothing is held out",
        ),
        (
            ["--task", "ks", "--label_column", "tone", "--split_by", "age", "--train_data", "FOLDER"],
            "no column 'age'; it has",
        ),
        (["--task", "asr", "--folds", "who"], "`folds` belongs to the tasks ks, ic, sid and er"),
        (["--task", "er", "--folds", "who"], "`folds` needs `train_data` beside it"),
        *(
            (["--task", "er", "--folds", "a", "--train_data", "b", f"--{name}", "c"], f"leave out `{name}`")
            for name in ("test_data", "eval_data", "split_by")
        ),
        (
            ["--task", "er", "--label_column", "tone", "--folds", "age", "--train_data", "FOLDER"],
            "no column 'age'; it has",
        ),
        (
            ["--task", "er", "--label_column", "tone", "--folds", "all", "--train_data", "FOLDER"],
            "--folds all needs two values and more: the training clips have the one 'same'",
        ),
        (["--task", "ks", "--max_steps", "0"], "`max_steps` must be at least 1, got 0"),
        (["--task", "pr", "--head_units", "8"], "`head_units` belongs to the tasks asr, asv and sd"),
        (["--task", "sf", "--head_units", "8", "--slot_columns", "size"], "`head_units` belongs to the tasks asr"),
        *(
            (["--task", task, "--label_column", "a", "b"], f"of --task {task} is a single column, got a, b")
            for task in ("asr", "qbe", "sd", "asv")
        ),
        *(
            (["--task", task, "--train_data", "b", "--split_by", "a"], f"of --task {task} is the speakers' own column")
            for task in ("sd", "asv")
        ),
        (["--task", "ks", "--eval_fraction", "0.7"], "`eval_fraction` must lie between 0 and 0.5"),
        (["--task", "ks", "--test_data", "x"], "need `train_data` beside them"),
        (["--task", "ks", "--train_data", "FOLDER"], "no column 'label'; it has file_name, tone, who"),
        (["--task", "sf", "--train_data", "FOLDER"], "texts of column 'text' hold no slots"),
        (["--task", "asv"], "no data set on the Hub for --task asv"),
        (["--task", "qbe", "--test_data", "x"], "need `train_data` beside them or, for qbe, each other"),
        (
            ["--task", "qbe", "--train_data", "FOLDER", "--label_column", "tone", "--eval_fraction", "0.03"],
            "No word",
        ),
        (["--task", "all"], "`tasks` belongs to --task all, which needs it"),
        (["--task", "all", "--tasks", "nowhere.yaml"], "--tasks nowhere.yaml: there is no such file"),
        (["--task", "ks", "--trials", "x"], "`trials` belongs to --task asv"),
        (["--task", "asv", "--train_data", "FOLDER", "--trials", "x"], "`trials` names clips of `test_data`"),
        (["--task", "ks", "--config", "nowhere.yaml"], "no recipe nowhere.yaml"),
        (
            ["--task", "ks", "--train_data", "a", "--cache_dir", "/dev/null/a"],
            "`cache_dir` /dev/null/a cannot be writ",
        ),
        (["--task", "ks", "--train_data", "FOLDER", "--model", "mfcc", "./nowhere"], "nowhere cannot be opened"),
    ],
)
def test_what_cannot_work_gets_a_sentence(folder, options, message):
    options = [folder if word == "FOLDER" else word for word in options]
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        main(options if "--model" in options else ["--model", "mfcc", *options])


@pytest.mark.parametrize("split", ["eval", "test"])
@pytest.mark.parametrize(
    ("options", "empty", "what"),
    [
        (["pr"], {"phones": "sil"}, "phone"),
        (["sf", "--label_column", "slotted"], {"slotted": "one two"}, "slot"),
        (["sf", "--slot_columns", "size"], {"size": ""}, "slot"),
    ],
)
def test_a_split_without_anything_to_score_is_refused_before_training(tmp_path, folder, options, empty, what, split):
    clips = tmp_path / "empty.jsonl"
    clips.write_text("".join(json.dumps({"audio_filepath": f"{folder}/{i}.wav"} | empty) + "\n" for i in range(2)))
    data = ["--train_data", folder, f"--{split}_data", str(clips), "--model", "mfcc"]
    name = {"eval": "dev"}.get(split, split)
    with pytest.raises(ValueError, match=f"--task {options[0]}: None of the 2 {name} clips has a {what}: "):
        prepare(parse_arguments(["--task", *options, *data, "--output_dir", str(tmp_path / "out")]))


def test_real_digits(speech, tmp_path):
    """MFCC tell two digits of two speakers apart."""
    with open(speech / "digits_8khz" / "metadata.csv") as file:
        rows = [r for r in csv.DictReader(file) if r["digit"] in "16" and r["speaker_id"] in ("george", "jackson")]
    manifest = tmp_path / "digits.jsonl"
    lines = [{"audio_filepath": str(speech / "digits_8khz" / r["file_name"]), "digit": r["digit"]} for r in rows[::2]]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    options = ["--label_column", "digit", "--model", "mfcc", "--max_steps", "100", "--learning_rate", "3e-3"]
    paths = ["--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "features")]
    main(["--task", "ks", "--train_data", str(manifest), *options, *paths])
    assert json.loads((tmp_path / "out" / "ks.jsonl").read_text())["metrics"]["accuracy"] > 0.8


def test_nothing_but_real_frames_is_read(folder, checkpoint, tmp_path):
    """The means of a clip are the same whatever it shares a batch with."""
    clips = open_labelled([folder], ["who"])
    encoder = open_encoder(checkpoint)
    together = FrozenFeatures(encoder, clips, FeatureStore(tmp_path / "a", 1), pooled=True)
    alone = FrozenFeatures(encoder, clips.select([5]), FeatureStore(tmp_path / "b", 1), pooled=True)
    torch.testing.assert_close(together[[5]][0], alone[[0]][0], rtol=1e-4, atol=1e-5)


def test_a_head_that_learned_nothing_is_named(call, caplog, capsys):
    options = ["--label_column", "tone", "--max_steps", "1", "--learning_rate", "1e-9", "--batch_size", "8"]
    (result,) = call("sid", "--model", "mfcc", *options, "--eval_fraction", "0.3")
    assert result["learned"] is False and "mfcc, seed 0: THE HEAD HAS LEARNED NOTHING" in caplog.text
    assert "No better than chance: mfcc, seed 0." in capsys.readouterr().out


def test_an_output_that_cannot_be_is_told_before_anything_is_opened(tmp_path):
    (tmp_path / "file").write_text("")
    options = ["--task", "ks", "--model", "nowhere", "--train_data", "a", "--output_dir", str(tmp_path / "file")]
    with pytest.raises(SystemExit, match="error: `output_dir` .*file cannot be written to: .*Not a directory"):
        main(options)


def test_a_dry_run_says_what_it_would_do(tmp_path, folder, caplog):
    caplog.set_level("INFO")
    required = ["--task", "sid", "--train_data", folder, "--label_column", "tone", "--model", "mfcc"]
    main([*required, "--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache"), "--dry_run"])
    assert "heads of 2 outputs are trained for 200000 steps of 32 clips" in caplog.text
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()
