import os
from pathlib import Path

import pytest

from sjepa_hf import writable
from sjepa_hf.writable import check_output_directory, check_output_file, check_writable


def test_what_can_be_written_passes_and_is_not_made(tmp_path, monkeypatch):
    (tmp_path / "old.json").write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "old.json")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    for name in (
        "pipe",
        "/dev/null",
        "new.json",
        "old.json",
        "link.json",
        "deep/er/new.json",
        tmp_path / "deep" / "new.json",
    ):
        check_output_file(name, "output")
    for name in ("", ".", "deep/er", tmp_path):
        check_output_directory(name, "output")
    assert sorted(os.listdir(tmp_path)) == ["link.json", "old.json", "pipe"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("folder", "^`output` .*folder is a directory: name a file.$"),
        ("file/new.json", "^`output` .*file/new.json cannot be written: .*Not a directory: '.*file'.$"),
        ("file/deep/new.json", "^`output` .*file/deep/new.json cannot be written: .*Not a directory: '.*file'.$"),
        ("n" * 300, "^`output` .*nnn cannot be written: .*File name too long"),
    ],
)
def test_a_file_that_cannot_be_is_named(tmp_path, name, sentence):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=sentence):
        check_output_file(tmp_path / name, "output")


def test_a_name_that_is_too_long_is_refused_in_any_python(tmp_path, monkeypatch):
    """From 3.14 on `Path.exists` and `is_dir` answer False to it, where they raised an error."""
    monkeypatch.setattr(Path, "exists", lambda path: os.path.exists(path))
    monkeypatch.setattr(Path, "is_dir", lambda path: os.path.isdir(path))
    for name in ("n" * 300, f"{'n' * 300}/deep"):
        for check in (check_output_directory, check_output_file):
            with pytest.raises(ValueError, match="cannot be written.*File name too long"):
                check(tmp_path / name, "output")


def test_a_directory_that_cannot_be_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    for name in ("file", "file/below", "lost"):
        with pytest.raises(ValueError, match=f"^`output_dir` .*{name} cannot be written to: .*Not a directory"):
            check_output_directory(tmp_path / name, "output_dir")
    monkeypatch.setattr(writable.os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="Permission denied"):
        check_writable(tmp_path / "new")


def test_a_folder_has_to_be_entered_too(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.W_OK)
    with pytest.raises(PermissionError):
        check_writable(tmp_path)


def test_a_file_that_is_there_is_replaced_in_its_folder_and_a_device_is_not(tmp_path, monkeypatch):
    (tmp_path / "out.json").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for name in ("out.json", "new.json"):
        with pytest.raises(ValueError, match=f"`output` .*{name} cannot be written: .*Permission denied"):
            check_output_file(tmp_path / name, "output")
    check_output_file(os.devnull, "output")
