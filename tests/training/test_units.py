"""The command: the same files however often it is killed and on however many processes; sentences."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from accelerate import PartialState
from pretraining_runs import start
from safetensors.torch import load_file

from training import fit_units, units


@pytest.fixture
def command(corpus_folder, clustered, tmp_path):
    def call(*options: str, out: str = "out") -> Path:
        bad = ("--max_bad_fraction", "1", "--clips_per_shard", "3", "--batch_seconds", "4")
        units.main([clustered, "--data", str(corpus_folder), "--output", str(tmp_path / out), *bad, *options])
        return tmp_path / out

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


class Killed(BaseException):
    pass


def test_a_run_killed_at_any_moment_goes_on_to_the_same_files(command, monkeypatch, capsys):
    """Killed before each renaming in turn: of a shard, of what says that it is done, of the record."""
    options, replace = ("--top_k", "2", "--columns", "speaker"), os.replace
    whole = contents(command(*options))
    assert len(whole) == 6 and "11 clips" in capsys.readouterr().out
    for last in range(1, 99):
        moves = iter(range(1, 99))

        def dying(*paths, moves=moves, last=last):
            if next(moves) == last:
                raise Killed
            replace(*paths)

        monkeypatch.setattr(os, "replace", dying)
        try:
            command(*options, out=f"killed-{last}")
            break
        except Killed:
            monkeypatch.setattr(os, "replace", replace)
        assert contents(command(*options, out=f"killed-{last}")) == whole, last
    assert last == 13  # the record twice, five shards and their markers


def test_two_processes_write_what_one_does(command, corpus_folder, clustered, tmp_path):
    whole = contents(command())
    arguments = ["--data", str(corpus_folder), "--output", str(tmp_path / "two"), "--max_bad_fraction", "1"]
    arguments += ["--clips_per_shard", "3", "--batch_seconds", "4"]
    (parsed, _) = units.parse_dataclasses((units.UnitArguments,), [clustered, *arguments], "", checkpoint={})
    found = []
    for index in (1, 0):

        class State:
            process_index, num_processes, device = index, 2, PartialState().device

        found.append(units.run(clustered, parsed, State))
    assert found[0] is None and found[1]["clips"] == 11
    assert contents(tmp_path / "two") == whole
    record = json.loads(whole["corpus.json"])
    assert record["bad_clips"] == {"corrupt": 1, "empty": 1} and [Path(n).name for n, _ in record["bad"]] == [
        "04.wav",
        "09.wav",
    ]


def test_a_launch_on_cpus_is_seen(command, corpus_folder, clustered, tmp_path):
    arguments = [clustered, "--data", str(corpus_folder), "--output", str(tmp_path / "two"), "--max_bad_fraction", "1"]
    arguments += ["--clips_per_shard", "3", "--batch_seconds", "4"]
    process = start(arguments, ranks=2, script=units.__file__)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors[-2000:]
    locks = [path.name for path in (tmp_path / "two" / ".progress").glob("*.lock")]
    assert sorted(locks) == ["process-0.lock", "process-1.lock"]
    assert contents(tmp_path / "two") == contents(command())


def test_features_pooled(command):
    options = ("--features", "1", "2", "--format", "safetensors", "--dtype", "bfloat16", "--columns", "speaker")
    output = command(*options, "--pooled", "true")
    found = load_file(output / "features-00004.safetensors")["features"]
    assert (found.shape, found.dtype) == ((1, 2, 48), torch.bfloat16)
    index = pq.read_table(output / "features-00001.index.parquet").to_pydict()
    assert (index["rows"], index["speaker"]) == ([1, 1], ["s0", "s2"])


def test_clips_that_are_read_in_pieces_are_counted(command, capsys):
    output = command("--max_seconds", "1.5", "--top_k", "2")
    tables = [pq.read_table(path) for path in sorted(output.glob("*.parquet"))]
    seconds = [each for table in tables for each in table["seconds"].to_pylist()]
    count = sum(each > 1.5 for each in seconds)
    assert (
        0 < count < len(seconds) == 11 and json.loads((output / "corpus.json").read_text())["clips_in_pieces"] == count
    )
    assert f"; {count} longer than 1.5 s were read in pieces" in capsys.readouterr().out
    assert tables[0]["top_units"].to_pylist()[0][0][0] == tables[0]["units"].to_pylist()[0][0]
    command(out="whole")
    assert "in pieces" not in capsys.readouterr().out


def test_what_cannot_be_gets_a_sentence(command, clustered, corpus_folder, tmp_path):
    command()
    for options, said in (
        (("--clusters", "prediction"), 'made with `clusters` "mixture", now it is "prediction"'),
        (("--features", "1"), "made with `what`|its weights differ"),
        (("--features", "9"), "`layers` has 9, but the encoder has layers 0 to 3"),
        (("--max_seconds", "0.005"), r"`max_seconds` must be at least 0.025 \(one frame\), got 0.005"),
        (("--format", "npy"), "units are written as parquet, jsonl, text"),
        (("--features", "1", "--dtype", "bfloat16"), "parquet does not know: take --format safetensors"),
        (("--pooled", "true"), "`pooled` is of features: name layers with --features, or leave it out"),
        (("--dtype", "float32"), "`dtype` is of features"),
        (("--format", "text", "--columns", "speaker"), "`columns` is not written as text: take --format parquet"),
        (("--format", "text", "--top_k", "2"), "`top_k` is not written as text"),
        (("--features", "1", "--top_k", "2"), "`top_k` is of units, not of features: leave out --features"),
        (("--features", "1", "--clusters", "mixture"), "`clusters` is of units"),
        (("--columns", "units"), "`columns` has 'units', but number, seconds, .* are the output's own: rename"),
    ):
        with pytest.raises(SystemExit, match=said):
            command(*options)
    fit = [clustered, "--data", str(corpus_folder), "--output", str(tmp_path / "fitted")]
    with pytest.raises(SystemExit, match="Cannot fit 5000 components to .* frames: give more audio"):
        fit_units.main([*fit, "--layers", "2", "--components", "5000"])
    assert not (tmp_path / "fitted").exists()


UNITS = {"clusters": "prediction", "top_k": 3, "precision": "bf16"}
FEATURES = {"features": [1, 2], "mean": True, "precision": "fp16"}


@pytest.mark.parametrize(
    ("options", "opened"),
    [(UNITS, ("unit", "x", "prediction", 3, "cpu", "bf16")), (FEATURES, ("layer", "x", [1, 2], True, "cpu", "fp16"))],
)
def test_the_extractor_is_that_which_is_asked_for(monkeypatch, options, opened):
    for kind in ("unit", "layer"):
        monkeypatch.setattr(units, f"{kind}_extractor", lambda *asked, kind=kind: (kind, *asked))
    assert units.open_extractor("x", units.UnitArguments(["a"], output="out", **options), "cpu") == opened


def test_shards_of_features_by_frame_are_smaller():
    sizes = [
        units.UnitArguments(["a"], output="out", **options).clips_per_shard
        for options in ({}, {"features": [1]}, {"features": [1], "pooled": True}, {"clips_per_shard": 7})
    ]
    assert sizes == [1000, 200, 1000, 7]


@pytest.mark.parametrize(
    "other",
    [
        {"max_seconds": 30.0},
        {"batch_seconds": 30.0},
        {"format": "npy"},
        {"pooled": True},
        {"dtype": "float32"},
        {"features": None, "pooled": False, "dtype": None},
    ],
)
def test_an_output_is_of_one_setting_of_whatever_its_files_depend_on(other):
    extractor, corpus = SimpleNamespace(description={"layers": [1]}), SimpleNamespace(settings={"data": ["a"]})
    settings = [
        units.settings_of(units.UnitArguments(["a"], output="out", **{"features": [1]} | own), extractor, corpus)
        for own in ({}, {}, other)
    ]
    assert settings[0] == settings[1] != settings[2] and settings[0]["data"] == ["a"]


def test_the_record_has_the_seconds_of_all_clips_and_the_share_of_bad_ones_is_the_user_s(command, monkeypatch):
    output, fractions, write = command(), [], units.write_shards
    told = [pq.read_table(path).column("seconds").to_pylist() for path in sorted(output.glob("*.parquet"))]
    record = json.loads((output / "corpus.json").read_text())
    assert record["seconds"] == pytest.approx(sum(map(sum, told)), abs=1e-2)
    monkeypatch.setattr(units, "write_shards", lambda *given: fractions.append(given[3]) or write(*given))
    command("--max_bad_fraction", "0.5")
    assert fractions == [0.5]
