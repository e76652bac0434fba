import errno
import fcntl
import os

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from sjepa_hf.command import sentence
from sjepa_hf.saving import feature_extractor, files_written_aside, written_aside


def test_a_directory_appears_whole_and_replaces_its_predecessor(tmp_path):
    target = tmp_path / "model"
    for content in ("one", "two"):
        with written_aside(target) as aside:
            (aside / "a.txt").write_text(content)
            assert not target.exists() or (target / "a.txt").read_text() == "one"
        assert (target / "a.txt").read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    target = tmp_path / "model"
    with written_aside(target) as aside:
        (aside / "a.txt").write_text("one")
    with pytest.raises(OSError, match="disk"), written_aside(target) as aside:
        (aside / "a.txt").write_text("tw")
        raise OSError("disk full")
    assert (target / "a.txt").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_name_that_cannot_be_given_leaves_what_was_there(tmp_path, monkeypatch):
    target, replace = tmp_path / "model", os.replace
    with written_aside(target) as aside:
        (aside / "a.txt").write_text("one")

    def fail(source, destination):
        if str(source).endswith(".incomplete"):
            raise PermissionError(errno.EACCES, "Permission denied", str(destination))
        replace(source, destination)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(PermissionError), written_aside(target) as aside:
        (aside / "a.txt").write_text("two")
    assert (target / "a.txt").read_text() == "one" and not (tmp_path / "model.previous").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device."),
        (OSError("9 requested and 4 written"), "cannot be written (9 requested and 4 written)."),  # NumPy's
        (SafetensorError("No space left on device"), "cannot be written (No space left on device)."),
    ],
)
def test_an_error_that_names_no_file_names_what_was_being_written(tmp_path, error, said):
    for write, name in ((written_aside, "model"), (files_written_aside, ".")):
        with pytest.raises(OSError) as caught, write(tmp_path / name):
            raise error
        assert sentence(caught.value) == f"{tmp_path / name}: {said}"
    with pytest.raises(FileNotFoundError, match="other"), written_aside(tmp_path / "model"):
        (tmp_path / "other").read_text()


def test_files_appear_together_or_not_at_all(tmp_path):
    (tmp_path / "mine").write_text("stays")
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError), files_written_aside(tmp_path) as aside:
        (aside / "a").write_text("half")
        raise RuntimeError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "mine"] and (tmp_path / "a").read_text() == "old"
    with files_written_aside(tmp_path) as aside:
        (aside / "a").write_text("new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "mine"] and (tmp_path / "a").read_text() == "new"


def test_feature_extractor_gives_padding_a_mask_and_leaves_the_level_alone():
    inputs = feature_extractor()([[0.5] * 400, [0.25] * 800], sampling_rate=16000, padding=True, return_tensors="pt")
    assert inputs["attention_mask"].sum(-1).tolist() == [400, 800]
    assert inputs["input_values"].max() == 0.5


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_who_may_read_what_is_written_is_as_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        for write, name in ((written_aside, "model"), (files_written_aside, "more")):
            with write(tmp_path / name) as aside:
                (aside / "adapter").mkdir()
                for place in (aside, aside / "adapter"):
                    save_file({"weight": torch.ones(2)}, place / "model.safetensors")
                    (place / "config.json").write_text("{}")
            found = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
            assert len(found) == 4 and {path.stat().st_mode & 0o777 for path in found} == {mode}
            assert (tmp_path / name / "adapter").stat().st_mode & 0o777 == 0o777 & ~umask
    finally:
        os.umask(before)


def test_what_is_written_is_flushed_as_windows_wants_it(tmp_path, monkeypatch):
    flushed = []

    def fsync(descriptor: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flushed.append(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    for write in (written_aside, files_written_aside):
        with write(tmp_path / "model") as aside:
            (aside / "a.txt").write_text("one")
            (aside / "link").symlink_to(aside / "a.txt")
    assert len(flushed) == 2 and (tmp_path / "model" / "a.txt").read_text() == "one"
