"""Folders of audio: every format, names of any kind, a list in metadata.csv."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import datasets
import pytest
from source_files import found, write_clip, write_parquet

from training.data.sources import open_source


def test_folder_is_searched_for_every_format(tmp_path):
    for number, name in enumerate(["a.wav", "b/c.flac", "b/c/d.WAV", "e.ogg", "f.mp3", "g.AIFF", "h.caf"], start=10):
        write_clip(tmp_path / "in" / name, number)
    (tmp_path / "in" / "notes.txt").write_text("no audio")
    write_clip(tmp_path / "in" / "._a.wav", 30)  # what macOS leaves behind
    os.symlink(tmp_path / "in", tmp_path / "in" / "b" / "circle")
    names = [Path(clip.audio).name for clip, _ in open_source(str(tmp_path / "in")).samples()]
    assert names == ["a.wav", "c.flac", "d.WAV", "e.ogg", "f.mp3", "g.AIFF", "h.caf"]
    assert len(found(str(tmp_path / "in"))) == 7


def test_other_audio_is_left_out_with_a_word(tmp_path, caplog):
    write_clip(tmp_path / "in" / "a.wav", 1)
    for name in ("b.m4a", "c.M4A", "d.wma", "e.txt"):
        (tmp_path / "in" / name).write_bytes(b"")
    assert len(open_source(str(tmp_path / "in")).dataset) == 1
    assert "2 files in .m4a, 1 files in .wma are left out, since only .wav, " in caplog.text


def test_brackets_in_names_are_no_patterns(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "my [old] clips? *"
    write_clip(folder / "audio" / "1.wav", 1)
    assert found(str(folder / "audio")) == [1]
    (folder / "list[1].jsonl").write_text(json.dumps({"wav_path": "audio/1.wav"}))
    assert found(str(folder / "list[1].jsonl")) == [1]
    write_parquet(folder / "data" / "a[0].parquet", range(2, 4))
    write_parquet(folder / "data" / "b.parquet", range(4, 5))
    shutil.rmtree(folder / "data" / "clips", ignore_errors=True)
    for streaming in (False, True):
        assert found(str(folder / "data" / "a[0].parquet"), streaming=streaming) == [2, 3]
        assert found(str(folder / "data" / "*.parquet"), streaming=streaming) == [2, 3, 4]
        assert found(str(folder / "data"), streaming=streaming) == [2, 3, 4]
    with tarfile.open(folder / "x[1].tar", "w") as archive:
        archive.add(folder / "audio" / "1.wav", "1.wav")
    assert found(str(folder / "x[1].tar"), streaming=True) == found(str(folder / "x*.tar"), streaming=True) == [1]
    with pytest.raises(ValueError, match="matches 0 files"):
        open_source(str(folder / "c*.parquet"))


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_another_list_in_a_subfolder_does_not_hide_parquet_or_archives(tmp_path, name):
    write_parquet(tmp_path / "in" / "train.parquet", range(1, 3))
    write_clip(tmp_path / "3.wav", 3)
    (tmp_path / "tar").mkdir()
    with tarfile.open(tmp_path / "tar" / "x.tar", "w") as archive:
        archive.add(tmp_path / "3.wav", "3.wav")
    for folder in ("in", "tar"):
        (tmp_path / folder / "docs").mkdir()
        (tmp_path / folder / "docs" / name).write_text('{"speaker": 1}\n')
    assert found(str(tmp_path / "in")) == [1, 2]
    assert found(str(tmp_path / "tar"), streaming=True) == [3]
    labels = [labels for _, labels in open_source(str(tmp_path / "in"), labels=["speaker"]).samples()]
    assert labels == [{"speaker": "a"}] * 2


def test_file_names_that_are_not_utf8_are_read(tmp_path, caplog):
    for number, name in enumerate([b"caf\xe9.wav", b"day\nlight.wav", b"\xff\xfe.wav"], start=1):
        path = write_clip(tmp_path / "plain.wav", number)
        (tmp_path / "in").mkdir(exist_ok=True)
        os.rename(path, os.path.join(os.fsencode(tmp_path / "in"), name))
    (tmp_path / "in" / "bad.wav").touch()
    os.rename(tmp_path / "in" / "bad.wav", os.path.join(os.fsencode(tmp_path / "in"), b"bad\xe9.wav"))
    names = [Path(clip.name).name for clip, _ in open_source(str(tmp_path / "in")).samples()]
    assert sorted(names) == ["\\udcff\\udcfe.wav", "bad\\udce9.wav", "caf\\udce9.wav", "day\\nlight.wav"]
    assert found(str(tmp_path / "in")) == [1, 2, 3]
    with pytest.raises(ValueError, match="is a table: name the folder"):
        (tmp_path / "list.csv").write_text("file_name\n")
        open_source(str(tmp_path / "list.csv"))


def test_metadata_csv_is_the_list(tmp_path):
    for number in range(1, 5):
        write_clip(tmp_path / "sub" / f"{number}.wav", number)
    rows = "transcription,file_name\none,sub/1.wav\n,sub/3.wav\n"
    (tmp_path / "metadata.csv").write_text(rows)
    assert found(str(tmp_path)) == [1, 3]
    (tmp_path / "metadata.csv").write_text("LJ001|some text, and more\n")  # another project's metadata
    assert found(str(tmp_path)) == [1, 2, 3, 4]
