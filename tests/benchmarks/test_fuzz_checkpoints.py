"""The status of the command: 1 where a damage ended in anything but a sentence, or took too long."""

import logging
from collections import Counter

import pytest

from benchmarks import fuzz_checkpoints


@pytest.fixture(autouse=True)
def logs_again():
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("ends", "limit", "status"),
    [
        ({"auto: checkpoint-8": 1, "model: sentence": 1}, 60.0, 0),
        ({"auto: checkpoint-8": 1, "model: KeyError": 1}, 60.0, 1),
        ({"auto: checkpoint-8": 1}, -1.0, 1),
    ],
)
def test_faults_end_the_command_with_status_1(ends, limit, status, monkeypatch, capsys):
    monkeypatch.setattr(fuzz_checkpoints, "LIMIT", limit)
    monkeypatch.setattr(fuzz_checkpoints, "make_run", lambda folder: (folder / "out").mkdir())
    monkeypatch.setattr(fuzz_checkpoints, "trial", lambda *_: ("flip config.json", Counter(ends)))
    with pytest.raises(SystemExit) as ended:
        fuzz_checkpoints.main(["--damages", "2"])
    assert ended.value.code == status
    assert f"2 damages, {2 * ('KeyError' in str(ends))} foreign exceptions, {2 * (limit < 0)} above" in (
        capsys.readouterr().out
    )
