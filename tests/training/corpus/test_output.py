"""The folder that is written: never mixed, never half."""

import errno
import json
import os
from pathlib import Path

import pytest

from sjepa_hf.command import UserError, sentence
from training.corpus.output import OutputFolder


SETTINGS = {"what": "units", "checkpoint": "a", "weights": "1", "layers": [1]}
FACTS = {"clips": 2, "seconds": 1.5, "bad": [["x.wav", "empty"]]}


def write(output: OutputFolder, shard: int, text: str = "whole") -> None:
    with output.shard(shard, FACTS) as folder:
        (folder / f"{shard}.txt").write_text(text)


def test_shards_count_once_they_are_whole(tmp_path):
    output = OutputFolder(tmp_path / "out", SETTINGS)
    write(output, 0)
    with pytest.raises(KeyboardInterrupt), output.shard(1, FACTS) as folder:
        (folder / "half.txt").write_text("ha")
        raise KeyboardInterrupt
    assert output.is_done(0) and not output.is_done(1) and not (tmp_path / "out" / "half.txt").exists()
    assert output.finish(2) is None
    output.close()
    again = OutputFolder(tmp_path / "out", SETTINGS)
    write(again, 1)
    totals = again.finish(2)
    assert totals == {"clips": 4, "seconds": 3.0, "bad_clips": {"empty": 2}, "bad": [["x.wav", "empty"]] * 2}
    record = json.loads((tmp_path / "out" / "corpus.json").read_text())
    assert record == {"settings": SETTINGS, "complete": True, "shards": 2} | totals
    again.close()
    OutputFolder(tmp_path / "out", SETTINGS).close()
    assert json.loads((tmp_path / "out" / "corpus.json").read_text()) == record, "a whole one stays whole"
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] != ".") == [
        "0.txt",
        "1.txt",
        "corpus.json",
    ]


def test_other_contents_are_refused_and_a_moved_checkpoint_is_not(tmp_path):
    OutputFolder(tmp_path / "out", SETTINGS).close()
    with pytest.raises(ValueError, match=r"made with `layers` \[1\], now it is \[2\]: name another folder"):
        OutputFolder(tmp_path / "out", SETTINGS | {"layers": [2]})
    with pytest.raises(ValueError, match="holds units of a as it was, not of b as it is: its weights differ"):
        OutputFolder(tmp_path / "out", SETTINGS | {"checkpoint": "b", "weights": "2"})
    with pytest.raises(ValueError, match="made with `top_k` null, now it is 2"):
        OutputFolder(tmp_path / "out", SETTINGS | {"top_k": 2})
    OutputFolder(tmp_path / "out", SETTINGS | {"checkpoint": "moved", "layers": (1,)}).close()
    for text in ("{torn", "{}"):
        (tmp_path / "out" / "corpus.json").write_text(text)
        with pytest.raises(ValueError, match="corpus.json was not written by this command: name a folder"):
            OutputFolder(tmp_path / "out", SETTINGS)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        OutputFolder(tmp_path / "else", SETTINGS)
    with pytest.raises(ValueError, match="is a file"):
        OutputFolder(tmp_path / "else" / "mine.txt", SETTINGS)


def test_a_process_that_begins_at_the_same_moment_is_no_stranger(tmp_path, monkeypatch):
    """Its record appears as soon as this one has looked at anything."""
    (tmp_path / "out").mkdir()
    is_file = Path.is_file

    def look(path: Path) -> bool:
        found = is_file(path)
        (tmp_path / "out" / "corpus.json").write_text(json.dumps({"settings": SETTINGS}))
        return found

    monkeypatch.setattr(Path, "is_file", look)
    OutputFolder(tmp_path / "out", SETTINGS, process_index=1).close()


def test_a_full_disk_names_the_folder(tmp_path):
    output = OutputFolder(tmp_path / "out", SETTINGS)
    with pytest.raises(OSError) as caught, output.shard(0, FACTS):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert sentence(caught.value) == f"{tmp_path / 'out'}: No space left on device."


def test_whoever_may_read_the_folder_may_read_its_files(tmp_path):
    with OutputFolder(tmp_path / "out", SETTINGS).shard(0, FACTS) as folder:
        folder.chmod(0o755)
        (folder / "features.safetensors").touch(mode=0o600)
    assert (tmp_path / "out" / "features.safetensors").stat().st_mode & 0o777 == 0o644


def test_two_runs_do_not_write_at_once(tmp_path):
    first = OutputFolder(tmp_path / "out", SETTINGS)
    with pytest.raises(UserError, match="is being written by another run"):
        OutputFolder(tmp_path / "out", SETTINGS)
    OutputFolder(tmp_path / "out", SETTINGS, process_index=1).close()
    first.close()
    OutputFolder(tmp_path / "out", SETTINGS).close()


def test_names_that_are_not_utf_8_are_recorded(tmp_path):
    odd = os.fsdecode(b"n\xff")
    output = OutputFolder(tmp_path / "units", {"checkpoint": odd, "columns": [odd]})
    with output.shard(0, {"clips": 1, "bad": [[odd, "too short"]]}):
        pass
    assert output.finish(1)["bad"] == [[odd, "too short"]]
    output.close()
    OutputFolder(tmp_path / "units", {"checkpoint": odd, "columns": [odd]}).close()
