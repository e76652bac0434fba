import os
import signal

import pytest

from training.common.signals import Interruption


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
