import pytest

from training.common.resuming import named_checkpoint


def test_a_checkpoint_is_named_by_its_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint-3").mkdir()
    assert named_checkpoint("checkpoint-3").is_dir()
    (tmp_path / "file").touch()
    for asked in ("checkpoint-4", "true", "", "file"):
        with pytest.raises(
            ValueError, match=f"'{asked}' is not a directory: name a checkpoint, or give latest .* auto"
        ):
            named_checkpoint(asked)
