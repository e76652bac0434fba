import os
import pickle
import signal
import sys
import time

import pytest

from training import finetune_classification, finetune_ctc, pretrain
from training.common.signals import Interrupted, Interruption, Stop


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 0)])
def test_forked_processes_end_or_go_on(number, status):
    """As the workers of a loader do, to which a terminal sends Ctrl-C too."""
    with Interruption() as interruption:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), number)
            os._exit(0 if interruption.stop is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status
        assert interruption.stop is None


def test_a_second_interrupt_ends_the_run_at_once():
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.stop.status == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_reason_to_stop_travels_between_processes_without_its_error():
    stop = Stop(1, "no clip", ValueError(lambda: None))  # which cannot travel
    assert pickle.loads(pickle.dumps(stop)) == stop


class Signalling:
    """Sends SIGTERM from its destructor, where Python drops what the handler raises; as it does around a fork."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_stop_that_python_drops_ends_the_wait_all_the_same():
    hook = sys.unraisablehook
    with Interruption() as interruption:
        with pytest.raises(Interrupted), interruption.waiting(), interruption.waiting():
            Signalling()
            time.sleep(20)
            pytest.fail("waited on")
        assert interruption.stop.status == 143
        os.kill(os.getpid(), signal.SIGTERM)  # what is raised now would disturb the last save
    assert sys.unraisablehook is hook and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_a_stop_that_is_dropped_at_the_end_of_a_wait_is_told_once():
    with Interruption() as interruption:
        with pytest.raises(Interrupted), interruption.waiting():
            Signalling()
        time.sleep(0.2)  # the second try finds no wait


def test_the_first_reason_stays_and_no_other_wait_begins():
    interruption = Interruption()
    interruption.ask(143, "SIGTERM came")
    interruption.ask(1, "the disk is full")
    assert interruption.stop == Stop(143, "SIGTERM came")
    with pytest.raises(Interrupted), interruption.waiting():
        pytest.fail("waited")


def test_a_fault_in_a_wait_within_another_leaves_the_save_undisturbed():
    with Interruption() as interruption:
        with pytest.raises(Interrupted), interruption.waiting():
            with pytest.raises(Interrupted), interruption.waiting():
                raise OSError("the disk is full")
            os.kill(os.getpid(), signal.SIGTERM)
            saved = True
        assert saved and interruption.stop.reason == "the disk is full"


def test_no_alarm_is_left_behind():
    with Interruption() as interruption:
        with pytest.raises(Interrupted), interruption.waiting():
            Signalling()
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_other_exceptions_that_python_drops_are_told_as_ever(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    class Broken:
        def __del__(self):
            raise KeyError

    with Interruption():
        Broken()
    assert [unraisable.exc_type for unraisable in told] == [KeyError]


@pytest.mark.parametrize("script", [pretrain, finetune_ctc, finetune_classification])
def test_windows_is_refused_in_one_sentence(script, monkeypatch, tmp_path):
    monkeypatch.delattr(signal, "SIGALRM")
    with pytest.raises(SystemExit, match=r"^error: training needs Linux or macOS; on Windows use WSL\.$"):
        script.main(["--train_data", str(tmp_path), "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
