"""Workers: shared memory is compared with what their batches need before they start."""

import shutil
from types import SimpleNamespace

import pytest

from training.data import workers
from training.data.workers import check_shared_memory


def test_shared_memory_is_compared_with_what_batches_need(monkeypatch, tmp_path):
    monkeypatch.setattr(workers, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=64 * 2**20))
    with pytest.raises(ValueError, match=r"64 MiB free, but 8 workers hand .* may need 88\d MiB: .*--shm-size=2g"):
        check_shared_memory(360.0, 8, 1)
    with pytest.raises(ValueError, match="2 workers of 8 processes each"):
        check_shared_memory(60.0, 2, 8)
    check_shared_memory(60.0, 2, 1)
    check_shared_memory(360.0, 0, 1)
    monkeypatch.setattr(workers, "SHARED_MEMORY", tmp_path / "absent")  # not Linux
    check_shared_memory(360.0, 8, 1)
