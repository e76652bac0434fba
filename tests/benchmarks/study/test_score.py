"""Several checkpoints beside each other: each score once, and a table in the end."""

import json
from pathlib import Path

import pytest

from benchmarks.study import score
from benchmarks.study.frozen import FROZEN
from benchmarks.study.score import identity


@pytest.fixture
def checkpoints(tmp_path) -> list[Path]:
    """Two directories with the same configuration and other weights."""
    found = []
    for name in "ab":
        found.append(tmp_path / name / "final")
        found[-1].mkdir(parents=True)
        (found[-1] / "config.json").write_text("{}")
        (found[-1] / "model.safetensors").write_text(f"weights of {name}")
    return found


class Scorer:
    """In place of the study's: scores at once, and tells what it was asked for."""

    asked: list[tuple]
    probed_in: list[Path]

    def __init__(self, speech, quick_probe, ctc, environment):
        pass

    def check(self, stages):
        pass

    def score(self, stage, checkpoint, directory, seed):
        self.asked.append((stage, str(checkpoint), seed))
        return {stage: 0.5 + 0.1 * seed}

    def layers(self, checkpoints, directory, untrained):
        self.asked.append(("probe", *map(str, checkpoints), untrained))
        self.probed_in.append(directory)
        names = ["mfcc", *(["untrained"] if untrained else []), *map(str, checkpoints)]
        return {name: {"digits": [0.1, 0.2 + 0.1 * n, 0.0], "phones": [0.3]} for n, name in enumerate(names)}

    def forget_features(self, directory):
        self.asked.append(("forget", directory.name))


@pytest.fixture
def call(tmp_path, checkpoints, monkeypatch, capsys):
    """Runs the command; returns what was asked of the scorer and the table's rows."""
    monkeypatch.setattr(score, "Scorer", Scorer)
    monkeypatch.setattr(Scorer, "probed_in", [], raising=False)

    def run(*words):
        Scorer.asked = []
        score.main([*map(str, words), "--speech", str(tmp_path), "--output", str(tmp_path / "out")])
        shown = capsys.readouterr().out
        assert (tmp_path / "out" / "scores.md").read_text().strip() == shown.strip()
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines() if line[:1] == "|"]
        return [asked for asked in Scorer.asked if asked[0] != "forget"], {row[0]: row[1:] for row in rows}

    return run


def test_baselines_stand_beside_every_checkpoint_and_nothing_is_scored_twice(call, checkpoints):
    first, second = map(str, checkpoints)
    asked, rows = call(first, "--stages", "probe", "keywords", "--seeds", "0", "1")
    fresh = f"untrained:{first}"
    assert asked == [
        ("probe", first, True),
        *(("keywords", subject, seed) for subject in ("mfcc", fresh, first) for seed in (0, 1)),
    ]
    assert rows[""] == ["digits", "phones", "keywords"]
    assert rows["MFCC"] == ["0.200", "0.300", "0.550 ± 0.071"] and rows["untrained"][0] == "0.300"
    assert rows[first][0] == "0.400"
    again, same = call(first, "--stages", "probe", "keywords", "--seeds", "0", "1")
    assert again == [] and same == rows
    more, rows = call(first, second, "--stages", "probe", "keywords", "--seeds", "1")
    assert more == [("probe", second, False), ("keywords", second, 1)], "the untrained one has the same configuration"
    assert len(set(Scorer.probed_in)) == 2, "what is there already is of other subjects"
    assert rows[first][2] == rows[second][2] == "0.600"


def test_speakers_are_of_checkpoints_alone_and_error_rates_are_called_so(call, checkpoints, capsys, tmp_path):
    asked, rows = call(checkpoints[0], "--stages", "speakers", "phones_many")
    assert [subject for stage, subject, _ in asked if stage == "speakers"] == [str(checkpoints[0])]
    assert rows["MFCC"] == ["", "0.500"]
    assert "Error rates, of which lower is better: phones_many." in (tmp_path / "out" / "scores.md").read_text()


def test_where_nothing_is_trained_seeds_are_not_asked_for(call, checkpoints):
    asked, rows = call(checkpoints[0], "--stages", "queries", "--seeds", "1", "2")
    assert [seed for *_, seed in asked] == [0, 0, 0] and "±" not in rows["MFCC"][0]


def test_new_weights_are_scored_anew(call, checkpoints):
    call(checkpoints[0], "--stages", "languages")
    before = identity(str(checkpoints[0]))
    (checkpoints[0] / "model.safetensors").write_text("other weights")
    asked, _ = call(checkpoints[0], "--stages", "languages")
    assert asked == [("languages", str(checkpoints[0]), 0)] and identity(str(checkpoints[0])) != before
    (checkpoints[1] / "config.json").write_text('{"hidden_size": 8}')
    assert len({identity(f"untrained:{checkpoint}") for checkpoint in checkpoints}) == 2, "another network"


def test_features_go_once_all_seeds_have_read_them(call, checkpoints):
    call(checkpoints[0], "--stages", "languages", "--seeds", "0", "1")
    places = [n for n, asked in enumerate(Scorer.asked) if asked[0] == "forget"]
    assert places == [2, 5, 8]


def test_what_is_no_checkpoint_is_named_first(call, checkpoints, tmp_path):
    with pytest.raises(SystemExit, match=f"error: {tmp_path} is not a checkpoint: it has no config.json"):
        call(checkpoints[0], tmp_path)
    assert Scorer.asked == []


def test_every_stage_is_there_by_default(call, checkpoints, tmp_path):
    call(checkpoints[0])
    known = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert known[identity(str(checkpoints[0]))].keys() == {"probe", *FROZEN}
