"""What a command says when it cannot go on, and what it leaves as a traceback."""

import json
import subprocess
import sys

import pytest
import torch

from sjepa_hf.command import TRACEBACK, UserError, command, own_words, sentence


def ends(error: BaseException) -> pytest.ExceptionInfo:
    @command
    def main():
        raise error

    with pytest.raises((SystemExit, type(error))) as caught:
        main()
    return caught


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("the data are gone: mount the disk."), "error: the data are gone: mount the disk."),
        (FileNotFoundError(2, "No such file or directory", "runs/x"), "error: runs/x: No such file or directory."),
        (OSError("There is no space left."), "error: There is no space left."),
        (MemoryError(), "error: out of memory (MemoryError): take smaller or fewer clips at a time."),
        (torch.OutOfMemoryError("CUDA out of memory.\nmore"), "error: out of memory (CUDA out of"),
        (
            RuntimeError("DataLoader worker (pid(s) 5) exited unexpectedly"),
            "error: a data loader worker has died (DataLoader worker (pid(s) 5) exited unexpectedly): does the",
        ),
        (
            UserError("Caught UserError in worker process 0.\nOriginal Traceback:\n  File x\nUserError: no: clips."),
            "error: no: clips.",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(error, said):
    caught = ends(error)
    assert caught.type is SystemExit
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_a_fault_of_ours_keeps_its_traceback():
    assert ends(KeyError("x")).type is KeyError
    assert sentence(TypeError("x")) is None


def test_traceback_on_request(monkeypatch):
    monkeypatch.setenv(TRACEBACK, "1")
    assert ends(UserError("x")).type is UserError


def test_ctrl_c_is_no_error():
    assert ends(KeyboardInterrupt()).value.code == 130


def test_place_of_a_library_error_is_told():
    @command
    def main():
        json.loads("{")  # a ValueError whose words were written for nobody

    with pytest.raises(SystemExit, match=r"error: Expecting .* \(raised in .*json.*:\d+; SJEPA_TRACEBACK=1"):
        main()


def test_own_words_are_neither_none_nor_endless():
    assert own_words(ValueError()) == "ValueError"
    assert len(own_words(ValueError("x" * 10_000))) < 1100


def test_memory_of_a_cpu_ends_too():
    try:
        torch.empty(10**15)
    except RuntimeError as error:
        assert sentence(error).startswith("out of memory")


def test_exit_status_and_stderr_of_a_process(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        "from sjepa_hf.command import UserError, command\n"
        "@command\ndef main():\n    raise UserError('no clips: name a folder.')\nmain()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout) == (1, "error: no clips: name a folder.\n", "")
