"""Scores of a checkpoint, by the programs that make them."""

import csv
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from benchmarks.study import scores
from benchmarks.study.frozen import FROZEN, FrozenScore
from benchmarks.study.grid import as_flags
from benchmarks.study.scores import Scorer, crops
from benchmarks.study.speech_manifest import DIGITS, KEYWORDS, LIBRISPEECH, PHONES
from sjepa_hf.command import UserError
from sjepa_hf.scores import read_scores, write_scores
from training import probe, superb
from training.finetuning.arguments import FineTuningArguments
from training.finetuning.data import HELD_OUT
from training.finetuning.result import FineTuningResult, score_rows


def write_folder(folder: Path, rows: list[dict], seconds: float) -> None:
    """Clips of noise, each with its row in metadata.csv."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for row in rows:
        soundfile.write(folder / row["file_name"], 0.1 * noise.standard_normal(round(16000 * seconds)), 16000)
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "duration"])
        writer.writeheader()
        writer.writerows(row | {"duration": seconds} for row in rows)


@pytest.fixture
def collection(tmp_path) -> Path:
    """Two digits of four speakers, of which every fifth recording is scored, and eight sentences of two phones."""
    names = [(digit, who, n) for digit in "01" for who in "abcd" for n in (0, 1, 5, 10)]
    digits = [{"file_name": f"{d}_{who}_{n}.flac", "digit": d, "speaker_id": who} for d, who, n in names]
    write_folder(tmp_path / "speech" / DIGITS, digits, seconds=0.2)
    phones = [{"file_name": f"{n}.flac", "phones": "AA1 T", "phone_ends": "0.15 0.3"} for n in range(8)]
    write_folder(tmp_path / "speech" / PHONES, phones, seconds=0.3)
    return tmp_path / "speech"


@pytest.fixture
def started(monkeypatch) -> list[list[str]]:
    """The commands, which run in this process."""
    commands = []

    def run_here(command, log, environment):
        commands.append(command)
        assert command[1:3] == ["-m", "training.probe"]
        probe.main([*command[3:], "--utterance_splits", "1", "--phone_splits", "1"])

    monkeypatch.setattr(scores, "run_logged", run_here)
    return commands


def test_digits_and_phones_need_nothing_but_training_probe(collection, checkpoint, started, tmp_path):
    scorer = Scorer(collection, None, {}, {})
    scorer.check(["probe"])
    found = scorer.score("probe", checkpoint, tmp_path / "scored", seed=0)
    assert (
        found.keys() >= {"digits", "phones", "mfcc_digits", "mfcc_phones"} and found["probed_by"] == "training.probe"
    )
    for task in ("digits", "phones"):
        assert len(found[f"{task}_by_layer"]) == 4 and found[task] == max(found[f"{task}_by_layer"])
    rows = [json.loads(row) for row in (tmp_path / "scored" / "digits.jsonl").read_text().splitlines()]
    assert len(rows) == 24 and not any("_1.flac" in row["audio_filepath"] for row in rows), "scored ones alone"
    for task in ("digits", "phones"):
        probed = read_scores(tmp_path / "scored" / task / "probes.json")
        assert {score.subject for score in probed} == {"mfcc", str(checkpoint)}, "nothing that no score is made of"
    assert scorer.score("probe", checkpoint, tmp_path / "scored", seed=0) == found
    assert len(started) == 2, "what was read off is not read off again"


def test_several_checkpoints_are_told_apart(collection, checkpoint, started, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    found = Scorer(collection, None, {}, {}).layers([checkpoint, other], tmp_path / "scored", untrained=True)
    assert found.keys() == {"mfcc", "untrained", str(checkpoint), str(other)}
    assert found[str(checkpoint)] == found[str(other)] and len(found["mfcc"]["phones"]) == 1


def test_a_frozen_score_is_that_of_the_test_part(collection, checkpoint, monkeypatch, tmp_path):
    commands = []

    def run_here(command, log, environment):
        commands.append(command)
        assert command[1:3] == ["-m", "training.superb"]
        superb.main(command[3:])

    rows = [
        {"file_name": f"{part}{n}.flac", "keyword": "ab"[n % 2], "split": part}
        for part, count in (("train", 6), ("validation", 4), ("test", 3))
        for n in range(count)
    ]
    write_folder(collection / KEYWORDS, rows, seconds=0.3)
    settings = {"label_column": "keyword", "max_steps": 4, "batch_size": 2, "device": "cpu"}
    monkeypatch.setattr(scores, "run_logged", run_here)
    monkeypatch.setitem(FROZEN, "keywords", FrozenScore(KEYWORDS, "ks", settings))
    scorer, directory = Scorer(collection, None, {}, {}), tmp_path / "scored"
    scorer.check(["keywords"])
    for subject in ("mfcc", checkpoint):
        here = directory / Path(subject).name
        found = scorer.score("keywords", subject, here, seed=3)
        (result,) = map(json.loads, (here / "keywords-s3" / "ks.jsonl").read_text().splitlines())
        assert result["clips"] == {"train": 6, "dev": 4, "test": 3} and result["seed"] == 3
        assert found == {"keywords": result["metrics"]["accuracy"]}
        assert scorer.score("keywords", subject, here, seed=3) == found
        assert (here / "features").is_dir()
        scorer.forget_features(here)
        assert not (here / "features").exists()
    assert len(commands) == 2, "what was scored is not scored again"


def test_error_rates_are_the_greedy_ones_of_the_validation_speakers(monkeypatch, tmp_path):
    def fine_tuned(command, log, environment):
        test_data = command[command.index("--test_data") + 1]
        arguments = FineTuningArguments(model_name_or_path="a", train_data=["b"], test_data=[test_data])
        rates = {"clips": 2, "greedy": {"wer": 0.5, "cer": 0.2}, "lm": {"wer": 0.4, "cer": 0.1}}
        other = {"clips": 1, "greedy": {"wer": 0.9, "cer": 0.8}}
        assert as_flags({"learning_rate": 0.1, "seed": 7}) == command[-4:]
        outcome = FineTuningResult(4, None, True, "", {test_data: rates, HELD_OUT: other})
        final = Path(command[command.index("--output_dir") + 1]) / "final"
        final.mkdir(parents=True)
        write_scores(final / "results.json", score_rows(outcome, arguments))

    monkeypatch.setattr(scores, "run_logged", fine_tuned)
    scorer = Scorer(tmp_path / "speech", None, {"learning_rate": 0.1}, {})
    found = scorer.score("ctc", tmp_path / "final", tmp_path / "scored", seed=7)
    assert found == {"cer": 0.2, "wer": 0.5}


def test_a_score_is_that_of_the_best_layer(monkeypatch, tmp_path):
    """Of speakers, on pieces of the validation speakers' clips."""
    own, mfcc = {"digits": [0.2, 0.9, 0.4], "phones": [0.7, 0.6, 0.5]}, {"digits": [0.3], "phones": [0.1]}
    monkeypatch.setattr(Scorer, "layers", lambda *_: {"a": own, "mfcc": mfcc})
    scorer = Scorer(tmp_path, Path("quick_probe.py"), {}, {})
    best = {"digits": 0.9, "phones": 0.7, "mfcc_digits": 0.3, "mfcc_phones": 0.1, "probed_by": "quick_probe.py"}
    by_layer = {f"{task}_by_layer": values for task, values in own.items()}
    assert scorer.score("probe", "a", tmp_path, seed=0) == best | by_layer
    layers, asked = [SimpleNamespace(value=value) for value in own["digits"]], []
    monkeypatch.setattr(scores, "crops", asked.append)
    monkeypatch.setattr(Scorer, "_run_probe", lambda *_: {"a": layers})
    found = scorer.score("speakers", "a", tmp_path, seed=0)
    assert found == {"speakers": 0.9, "speakers_by_layer": own["digits"]}
    assert asked == [tmp_path / LIBRISPEECH / "validation"]


def test_a_process_that_fails_is_an_error_with_its_last_lines(tmp_path):
    command = [sys.executable, "-c", "print('begun'); raise SystemExit('error: no speech')"]
    with pytest.raises(UserError, match="ended with status 1; .*log says: .*error: no speech"):
        scores.run_logged(command, tmp_path / "log", {})


def test_a_folder_that_is_not_there_is_named_before_anything_is_trained(collection):
    with pytest.raises(ValueError, match=f"has no {LIBRISPEECH}/validation/metadata.csv: the study scores"):
        Scorer(collection, None, {}, {}).check(["probe", "speakers"])
    with pytest.raises(ValueError, match="has no speechocean762/metadata.csv"):
        Scorer(collection, None, {}, {}).check(["probe", "phones_many"])


def test_speakers_are_told_by_pieces_that_lie_within_their_clips(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,speaker_id,duration\na.wav,7,3.0\nb.wav,8,1.2\nc.wav,8,1.5\n")
    rows = crops(tmp_path)
    assert [(Path(r["audio_filepath"]).name, r["offset"], r["speaker_id"]) for r in rows] == [
        ("a.wav", 0.25, "7"), ("a.wav", 1.25, "7"), ("a.wav", 2.25, "7"),
        ("c.wav", 0.0, "8"), ("c.wav", 0.5, "8"), ("c.wav", 1.0, "8"),
    ], "b is too short for three"  # fmt: skip
    assert all(r["duration"] == 0.5 for r in rows)
