import logging
import time

from training.common.heartbeat import Heartbeat


def test_silence_is_broken_and_speech_is_not(caplog):
    caplog.set_level("INFO")
    with Heartbeat("counting", silence=0.05) as heartbeat:
        heartbeat.doing = "counting: 3 of 9"
        deadline = time.monotonic() + 20
        while "counting: 3 of 9" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "... counting: 3 of 9" in caplog.text
    assert heartbeat not in logging.getLogger().handlers


def test_a_line_in_the_log_counts_as_a_sign(caplog):
    caplog.set_level("INFO")
    heartbeat = Heartbeat("waiting", silence=1e9)
    with heartbeat:
        before = heartbeat._last
        logging.getLogger("anything").info("a line")
        assert heartbeat._last > before
    assert "waiting" not in caplog.text
