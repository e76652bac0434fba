import errno
import shutil

import pytest

from training.common.output_directory import (
    checkpoints,
    claim,
    clear_left_overs,
    lock_of,
    prune_checkpoints,
    released_if_refused,
    set_aside,
)


def test_a_checkpoint_that_cannot_be_deleted_stays_for_the_next_save(tmp_path, monkeypatch, caplog):
    for step in (1, 2, 3, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoint-2").rmdir()
    (tmp_path / "checkpoint-2").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "checkpoint-5").write_text("a file")
    with monkeypatch.context() as patch:
        patch.setattr(
            shutil, "rmtree", lambda path, **_: (_ for _ in ()).throw(OSError(errno.EBUSY, "Busy", str(path)))
        )
        prune_checkpoints(tmp_path, keep=2)
    assert "checkpoint-1 cannot be deleted" in caplog.text and "the next save tries again" in caplog.text
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-3", "checkpoint-4"]
    assert (tmp_path / "elsewhere").is_dir(), "a link goes, not what it leads to"
    prune_checkpoints(tmp_path, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-4"]


def test_the_best_checkpoint_stays_beside_the_newest_whatever_lies_around_them(tmp_path):
    for name in ("2", "4", "6", "10", "9.abandoned", "x"):
        (tmp_path / f"checkpoint-{name}").mkdir()
    prune_checkpoints(tmp_path, keep=3, best=tmp_path / "checkpoint-2")
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-6", "checkpoint-10"]
    prune_checkpoints(tmp_path, keep=4)
    assert len(checkpoints(tmp_path)) == 3, "fewer than may be kept"
    prune_checkpoints(tmp_path, keep=1, best=tmp_path / "checkpoint-2")
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-10"]
    prune_checkpoints(tmp_path, keep=0)
    assert (tmp_path / "checkpoint-9.abandoned").is_dir() and (tmp_path / "checkpoint-x").is_dir()
    assert len(checkpoints(tmp_path)) == 2


def test_what_a_killed_run_left_half_written_is_cleared_away(tmp_path):
    names = [".incomplete-node7-4", ".incomplete-checkpoint-6", "checkpoint-8.previous", "final.previous", "final"]
    for name in (*names, "my.incomplete"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    clear_left_overs(tmp_path)
    assert (tmp_path / "final" / "final").exists() and (tmp_path / "checkpoint-8" / "checkpoint-8.previous").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-8", "final", "my.incomplete"]


def test_a_directory_is_claimed_by_one_run_until_it_ends(tmp_path):
    first, second = lock_of(tmp_path / "out"), lock_of(tmp_path / "out")
    claim(tmp_path / "out", first, dry_run=True)
    assert not (tmp_path / "out").exists(), "a dry run writes nothing"
    claim(tmp_path / "out", first)
    (tmp_path / "out" / ".incomplete-node7-4").mkdir()
    with pytest.raises(ValueError, match="out is in use by a run that is still active"):
        claim(tmp_path / "out", second)
    assert (tmp_path / "out" / ".incomplete-node7-4").is_dir(), "the other run may be writing it"
    with pytest.raises(OSError), released_if_refused(first):
        raise OSError
    claim(tmp_path / "out", second)
    assert not (tmp_path / "out" / ".incomplete-node7-4").exists()
    second.release()


def test_what_lies_beyond_and_cannot_be_set_aside_is_named(tmp_path, monkeypatch):
    (tmp_path / "checkpoint-9").mkdir()

    def busy(self, target):
        raise OSError(errno.EBUSY, "Busy", str(self))

    monkeypatch.setattr("pathlib.Path.rename", busy)
    with pytest.raises(ValueError, match="checkpoint-9 lies beyond step 4, .* cannot be renamed .*: move it away"):
        set_aside([tmp_path / "checkpoint-9"], 4)
