import logging
from contextlib import nullcontext

import numpy as np
import pytest

from training.data.bad_audio import BadAudioError, BadAudioMonitor


def test_monitor_counts_by_reason_and_names_the_first_twenty(caplog):
    monitor = BadAudioMonitor(max_bad_fraction=0.5)
    with caplog.at_level(logging.WARNING):
        for i in range(30):
            monitor.update(8, [(f"clip{i}.wav", "silent" if i % 3 else "missing")])
        monitor.update(8, [("clip0.wav", "missing")])
    assert monitor.seen == 31 * 9 and monitor.by_reason == {"silent": 20, "missing": 11}
    named = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Skipped")]
    assert len(named) == 20 and named[0] == "Skipped clip0.wav: missing."
    assert "only counted" in caplog.records[-1].getMessage()
    monitor.check()


def test_monitor_stops_a_run_with_too_many_bad_clips():
    monitor = BadAudioMonitor(max_bad_fraction=0.05)
    monitor.update(2, [("a.wav", "corrupt")] * 2)
    monitor.check()  # too few clips to judge
    monitor.update(56, [])
    monitor.check()  # 2 of 60
    monitor.update(0, [("b.wav", "silent")] * 18)
    with pytest.raises(RuntimeError, match=r"20 of 78 clips were skipped \(18 silent, 2 corrupt\).*max_bad_fraction"):
        monitor.check()


def stops_after(share: float, seed: int, clips: int = 5000) -> int | None:
    """Clips until data of which `share` is bad stop a run that allows 5 %."""
    monitor = BadAudioMonitor(max_bad_fraction=0.05)
    for bad in np.random.default_rng(seed).binomial(10, share, clips // 10).tolist():
        monitor.update(10 - bad, [("a.wav", "corrupt")] * bad)
        try:
            monitor.check()
        except BadAudioError:
            return monitor.seen
    return None


@pytest.mark.parametrize("share", [0.014, 0.03, 0.05])
def test_chance_does_not_stop_a_run(share):
    assert [seed for seed in range(100) if stops_after(share, seed)] == []


@pytest.mark.parametrize(("share", "within"), [(0.1, 1500), (0.2, 400), (1.0, 50)])
def test_data_that_are_too_bad_stop_a_run_soon(share, within):
    assert max(stops_after(share, seed) or np.inf for seed in range(100)) <= within


@pytest.mark.parametrize(("max_bad_fraction", "bad", "stops"), [(0.0, 0, False), (0.0, 1, True), (1.0, 80, False)])
def test_the_ends_of_the_share_are_none_and_all(max_bad_fraction, bad, stops):
    monitor = BadAudioMonitor(max_bad_fraction)
    monitor.update(80 - bad, [("a.wav", "corrupt")] * bad)
    with pytest.raises(BadAudioError, match="1 of 80") if stops else nullcontext():
        monitor.check()


def test_the_share_of_all_clips_is_no_matter_of_chance():
    monitor = BadAudioMonitor(max_bad_fraction=0.05)
    monitor.update(94, [("a.wav", "corrupt")] * 6)
    monitor.check()
    with pytest.raises(BadAudioError, match="6 of 100"):
        monitor.check(whole=True)


def test_bad_noise_is_told_and_counted_but_is_no_bad_clip(caplog):
    monitor = BadAudioMonitor(max_bad_fraction=0.05)
    monitor.restore(10, {"noise: silent": 3})
    monitor.update(100, [("hiss.wav", "noise: corrupt")] * 50)
    monitor.check()
    assert (monitor.seen, monitor.skipped) == (110, 0)
    assert monitor.by_reason == {"noise: silent": 3, "noise: corrupt": 50}
    assert "Skipped hiss.wav: noise: corrupt." in caplog.text


def test_monitor_judges_a_resumed_run_by_what_it_reads_itself():
    monitor = BadAudioMonitor(max_bad_fraction=0.05)
    monitor.restore(100, {"corrupt": 40})
    monitor.update(58, [("a.wav", "corrupt")] * 2)
    monitor.check()
    assert (monitor.seen, monitor.skipped) == (160, 42), "the counts are those of the whole run"
    monitor.update(0, [("b.wav", "silent")] * 18)
    with pytest.raises(RuntimeError, match=r"20 of 78 clips were skipped \(18 silent, 2 corrupt\)"):
        monitor.check()


@pytest.mark.parametrize("skipped", [[], [("a.wav", "missing")]])
def test_monitor_tells_when_nothing_was_usable(skipped):
    monitor = BadAudioMonitor(max_bad_fraction=1.0)
    monitor.update(0, skipped)
    monitor.check()
    with pytest.raises(RuntimeError, match="no usable clip"):
        monitor.check(end_of_data=True)
