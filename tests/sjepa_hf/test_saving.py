import errno
import fcntl
import multiprocessing
import os
import re
import stat
import threading
import time

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from sjepa_hf import saving
from sjepa_hf.command import command, sentence
from sjepa_hf.saving import (
    ASIDE,
    clear_asides,
    files_written_aside,
    visible_in,
    write_text_aside,
    written_aside,
)


FORK = multiprocessing.get_context("fork")


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
        if ASIDE in str(source):
            raise PermissionError(errno.EACCES, "Permission denied", str(destination))
        replace(source, destination)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(PermissionError), written_aside(target) as aside:
        (aside / "a.txt").write_text("two")
    assert (target / "a.txt").read_text() == "one" and not (tmp_path / "model.previous").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"No space left on device."),
        (OSError("9 requested and 4 written"), r"cannot be written \(9 requested and 4 written\)."),  # NumPy's
        (SafetensorError("No space left on device"), r"cannot be written \(No space left on device\)."),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
            r"cannot be written \(torch.save broke off: is the disk full\?\).",
        ),
    ],
)
def test_an_error_that_names_no_file_names_what_was_being_written(tmp_path, error, said):
    for write, name in ((written_aside, "model"), (files_written_aside, ".")):
        with pytest.raises(OSError) as caught, write(tmp_path / name):
            raise error
        assert re.fullmatch(f"{re.escape(str(tmp_path / name))}: {said}", sentence(caught.value))
        assert caught.value.errno
    with pytest.raises(FileNotFoundError, match="other"), written_aside(tmp_path / "model"):
        (tmp_path / "other").read_text()


def test_what_a_killed_process_has_left_of_the_predecessor_is_in_nobodys_way(tmp_path):
    for name in ("model", "model.previous"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
    with written_aside(tmp_path / "model") as aside:
        (aside / "weights").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "new"


def test_a_folder_that_another_process_clears_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    lock, cleared = saving._lock, []

    def too_late(directory, wait=True):
        if wait and not cleared:
            directory.rmdir()
            cleared.append(directory)
        return lock(directory, wait)

    monkeypatch.setattr(saving, "_lock", too_late)
    with files_written_aside(tmp_path) as aside:
        assert cleared and cleared[0] not in aside.parents
        (aside / "a").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


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


@pytest.mark.parametrize("write", ["written_aside", "files_written_aside"])
def test_what_killed_processes_left_goes_and_what_others_write_stays(write, tmp_path, monkeypatch):
    target = tmp_path if write == "files_written_aside" else tmp_path / "model"

    def hold(begun, end) -> None:
        with getattr(saving, write)(target) as aside:
            (aside / "a.txt").write_text("theirs")
            begun.set()
            end.wait(60)

    def other() -> tuple:
        end, begun = FORK.Event(), FORK.Event()
        process = FORK.Process(target=hold, args=(begun, end))
        process.start()
        assert begun.wait(60)
        return process, end

    (killed, _), (living, end) = other(), other()
    killed.kill()
    killed.join()
    (tmp_path / f"{ASIDE}elsewhere-1").mkdir()  # of a machine whose locks are not seen here
    assert len(list(tmp_path.glob(f"{ASIDE}*"))) == 3
    saving._clear_once.cache_clear()
    with getattr(saving, write)(target) as aside:
        (aside / "a.txt").write_text("ours")
    assert len(list(tmp_path.glob(f"{ASIDE}*"))) == 2
    end.set()
    living.join()
    assert living.exitcode == 0
    written = tmp_path / "a.txt" if write == "files_written_aside" else target / "a.txt"
    assert written.read_text() == "theirs" and [path.name for path in tmp_path.glob(f"{ASIDE}*")] == [
        f"{ASIDE}elsewhere-1"
    ]
    clear_asides(tmp_path, of_all=True)
    assert not list(tmp_path.glob(f"{ASIDE}*"))


def test_two_that_write_one_directory_never_mix(tmp_path):
    target = tmp_path / "model"
    with written_aside(target) as first:
        (first / "weights").write_text("1")
        with written_aside(target) as second:
            (second / "weights").write_text("2")
            (second / "config").write_text("2")
        assert {path.read_text() for path in target.iterdir()} == {"2"}
        (first / "config").write_text("1")
    assert {path.read_text() for path in target.iterdir()} == {"1"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_system_without_locks_is_written_to(tmp_path, monkeypatch):
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(saving, "flock", flock)
    (tmp_path / f"{ASIDE}{saving.socket.gethostname()}-1").mkdir()
    saving._clear_once.cache_clear()
    with written_aside(tmp_path / "model") as aside:
        (aside / "a.txt").write_text("one")
    monkeypatch.setattr(saving, "flock", None)
    with written_aside(tmp_path / "model") as aside:
        (aside / "a.txt").write_text("two")
    assert sorted(path.name[:12] for path in tmp_path.iterdir()) == [ASIDE, "model"]


def test_sigterm_clears_away_what_a_command_was_writing(tmp_path):
    begun = FORK.Event()

    @command
    def main() -> None:
        with files_written_aside(tmp_path) as aside:
            (aside / "a.txt").write_text("half")
            begun.set()
            time.sleep(60)

    process = FORK.Process(target=main)
    process.start()
    assert begun.wait(60)
    process.terminate()
    process.join(30)
    assert process.exitcode == 143 and not list(tmp_path.iterdir())


def test_two_at_once_that_write_one_directory_both_succeed(tmp_path):
    target, failed = tmp_path / "model", []

    def write(name: str) -> None:
        for _ in range(60):
            try:
                with written_aside(target) as aside:
                    for part in ("weights", "config"):
                        (aside / part).write_text(name)
            except OSError as error:
                failed.append(error)

    threads = [threading.Thread(target=write, args=name) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len({path.read_text() for path in target.iterdir()}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_link_to_a_directory_stays_one(tmp_path):
    (tmp_path / "large disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "large disk")
    for text in ("one", "two"):
        with written_aside(tmp_path / "model") as aside:
            (aside / "a.txt").write_text(text)
        assert (tmp_path / "model").is_symlink() and (tmp_path / "large disk" / "a.txt").read_text() == text


def test_pipes_are_written_into(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text_aside(tmp_path / "pipe", "text")
    assert os.read(reader, 10) == b"text" and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    os.close(reader)


def test_a_directory_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "table.md").mkdir()
    with pytest.raises(OSError) as caught:
        write_text_aside(tmp_path / "table.md", "text")
    assert sentence(caught.value) == f"{tmp_path / 'table.md'}: Is a directory."


def test_a_directory_made_for_files_that_failed_is_gone(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("there", "new"):
        with pytest.raises(RuntimeError), files_written_aside(tmp_path / name):
            raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_what_a_living_process_writes_is_never_cleared_away(tmp_path):
    with files_written_aside(tmp_path) as aside:
        assert not list(visible_in(tmp_path))
        for of_all in (False, True):
            clear_asides(tmp_path, of_all)
        (aside / "a").write_text("whole")
    assert [path.name for path in visible_in(tmp_path)] == ["a"]
