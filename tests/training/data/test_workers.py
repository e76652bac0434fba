"""Workers: shared memory is compared with what their batches need before they start."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from training.data import workers
from training.data.arguments import DataArguments
from training.data.loader import build_loader
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


def test_workers_are_forks_where_python_would_start_a_server_for_them(monkeypatch, tmp_path):
    """Which would outlive a run that is killed."""
    monkeypatch.setattr(workers.sys, "platform", "linux")
    assert workers.start_method() == "fork"
    soundfile.write(tmp_path / "clip.wav", 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)
    data = {"train_data": [str(tmp_path)], "batch_seconds": 2.0, "max_seconds": 1.0}
    for num_workers, expected in ((1, "fork"), (0, None)):
        start = build_loader(DataArguments(**data, num_workers=num_workers)).multiprocessing_context
        assert (start and start.get_start_method()) == expected
    monkeypatch.setattr(workers.sys, "platform", "darwin")
    assert workers.start_method() is None
