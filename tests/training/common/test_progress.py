"""What a long piece of work says while it lasts."""

import logging
import time

import pytest
import torch

from sjepa_hf import DiagonalGaussianMixture
from training.common import progress
from training.common.progress import Heartbeat, Progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test moves on by itself."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


def test_something_is_said_at_least_every_ten_seconds_and_not_all_the_time(clock, said):
    tell, spoken = Progress("Fitting"), []
    for second in range(1, 61):
        clock[0] += 1
        before = len(said())
        tell(f"pass {second}")
        spoken += [second] * (len(said()) - before)
    assert said()[0] == "Fitting: pass 5." and 6 <= len(spoken) <= 12
    assert max(after - before for before, after in zip([0, *spoken], spoken, strict=False)) <= 10


def test_one_process_speaks(clock, said):
    tell = Progress("Fitting", speaks=False)
    clock[0] += 60
    tell("pass 1")
    assert said() == []


def test_audio_is_told_in_hours_of_all_ranks(clock, said):
    batches = Progress("Reading").count_hours([{"seconds": 1800.0}, {"seconds": 900.0}], processes=2)
    assert next(batches)["seconds"] == 1800 and said() == []
    clock[0] += 7
    assert len(list(batches)) == 1 and said() == ["Reading: 1.5 hours of audio read."]


def test_a_fit_tells_every_pass_and_iteration():
    told = []
    mixture = DiagonalGaussianMixture(3, 2)
    mixture.fit(torch.randn(100, 2), num_passes=2, num_iterations=3, chunk_size=60, progress=told.append)
    assert told[:4] == ["k-means pass 1 of 2"] * 2 + ["k-means pass 2 of 2"] * 2
    assert told[4:6] == ["nearest clusters of all frames"] * 2
    assert told[6] == "EM iteration 1 of 3" and told[-1] == "EM iteration 3 of 3" and len(told) == 4 + 2 + 2 * 4


def test_silence_is_broken_and_speech_is_not(caplog):
    caplog.set_level("INFO")
    with Heartbeat("counting", silence=0.05) as heartbeat:
        heartbeat.doing = "counting: 3 of 9"
        deadline = time.monotonic() + 20
        while "counting: 3 of 9" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "... counting: 3 of 9" in caplog.text
    assert heartbeat not in logging.getLogger().handlers


def test_a_heart_beats_only_once_nothing_was_said_for_so_long(clock, said):
    heartbeat = Heartbeat("reading", silence=10.0)
    waited = iter([4.0, 5.0, 1.0, 3.0, 7.0])

    def wait(timeout: float) -> bool:
        assert timeout <= 1.0, "a tenth of the silence: no line comes much later"
        clock[0] += (seconds := next(waited, 0.0))
        return not seconds

    heartbeat._done.wait = wait
    logging.getLogger().addHandler(heartbeat)
    try:
        heartbeat._watch()
    finally:
        logging.getLogger().removeHandler(heartbeat)
    assert said() == ["... reading (10 s since the start)", "... reading (20 s since the start)"]


def test_a_line_in_the_log_counts_as_a_sign(caplog):
    caplog.set_level("INFO")
    heartbeat = Heartbeat("waiting", silence=1e9)
    with heartbeat:
        before = heartbeat._last
        logging.getLogger("anything").info("a line")
        assert heartbeat._last > before
    assert "waiting" not in caplog.text
