"""What a command says when it cannot go on, and what it leaves as a traceback."""

import io
import json
import os
import re
import signal
import sys
import time
from functools import partial

import pytest
import torch
from processes import run_python
from transformers import AutoConfig

from sjepa_hf.command import TRACEBACK, CommandParser, UserError, command, own_words, sentence
from sjepa_hf.frames import check_frames


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
    ],
)
def test_what_a_user_can_mend_is_one_sentence(error, said):
    caught = ends(error)
    assert caught.type is SystemExit
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


class Worker:
    """A data set whose clips cannot be had."""

    def __init__(self, function):
        self.function = function

    def __len__(self):
        return 1

    def __getitem__(self, number):
        return self.function()


def two_lines():
    raise UserError("no: clips.\nName a folder.")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (two_lines, r"error: no: clips\.\nName a folder\.$"),
        (
            partial(check_frames, AutoConfig.for_model("hubert", conv_stride=(1,) * 7), "It"),
            r"error: It makes frames of.*320: [\w ]*\.$",
        ),
        (partial(int, "x"), r"error: invalid literal .* \(raised in .*test_command\.py:\d+; SJEPA_TRACEBACK=1"),
    ],
)
def test_an_error_in_a_worker_process_is_told_as_if_it_were_here(function, said):
    @command
    def main():
        next(iter(torch.utils.data.DataLoader(Worker(function), num_workers=1)))

    with pytest.raises(SystemExit, match=said):
        main()


def test_a_fault_of_ours_keeps_its_traceback():
    assert ends(KeyError("x")).type is KeyError
    assert sentence(TypeError("x")) is None


def test_traceback_on_request(monkeypatch):
    monkeypatch.setenv(TRACEBACK, "1")
    assert ends(UserError("x")).type is UserError


def test_ctrl_c_is_no_error():
    assert ends(KeyboardInterrupt()).value.code == 130


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_that_comes_while_a_destructor_runs_is_not_lost(number, status):
    class Ends:
        def __del__(self):
            signal.raise_signal(number)

    @command
    def main():
        ends = Ends()
        del ends
        time.sleep(10)

    hook, handler = sys.unraisablehook, signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        main()
    signal.signal(signal.SIGINT, handler)
    assert ended.value.code == status and time.monotonic() - began < 5 and sys.unraisablehook is hook


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


LINES = """
import logging
from sjepa_hf.command import UserError, command, once
logger = logging.getLogger("here")
@command
def main():
    logger.info("Opened.")
    logger.log(once(logging.WARNING), "Changed.")
    logger.warning("Slow.")
    raise UserError("no clips.")
main()
"""


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, ["INFO Opened.", "WARNING Changed.", "WARNING Slow.", "error: no clips."]),
        ({"RANK": "1", "WORLD_SIZE": "2"}, ["WARNING [rank 1] Slow.", "[rank 1] error: no clips."]),
    ],
)
def test_of_several_processes_the_first_speaks_and_all_warn(variables, said):
    """With the date, as in the log file of a job of days."""
    lines = run_python(LINES, environment=os.environ | variables, status=1).errors.splitlines()
    assert [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", line) for line in lines] == said
    assert re.match(r"\d{4}-", lines[0])


def test_exit_status_and_stderr_of_a_process():
    done = run_python(
        "from sjepa_hf.command import UserError, command\n"
        "@command\ndef main():\n    raise UserError('no clips: name a folder.')\nmain()\n",
        status=1,
    )
    assert (done.errors, done.output) == ("error: no clips: name a folder.\n", "")


def test_an_option_is_written_out_with_dashes_or_underscores(capsys):
    parser = CommandParser("One line,\n    and another.")
    parser.add_argument("place")
    parser.add_argument("--batch_size", type=int)
    parser.add_subparsers().add_parser("decode").add_argument("--beam_width", type=int)
    for dash in "_-":
        asked = parser.parse_args([f"--batch{dash}size", "3", "here", "decode", f"--beam{dash}width=5"])
        assert (asked.batch_size, asked.place, asked.beam_width) == (3, "here", 5)
    for short, argv in (("--batch=3", ["--batch=3", "here", "decode"]), ("--beam=5", ["here", "decode", "--beam=5"])):
        with pytest.raises(SystemExit):
            parser.parse_args(argv)
        assert f"unrecognized arguments: {short}" in capsys.readouterr().err
    assert "One line,\n    and another." in parser.format_help()


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_any_name_can_be_printed(monkeypatch, errors):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=errors)
    monkeypatch.setattr(sys, "stdout", stream)
    command(lambda: print(os.fsdecode(b"n\xff"), "\u00e9"))()
    stream.flush()
    assert stream.buffer.getvalue() == b"n\\udcff \\xe9\n"


def test_an_old_encoding_of_file_names_is_told(monkeypatch, caplog):
    command(lambda: None)()
    assert not caplog.text
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    command(lambda: None)()
    assert "File names beyond ascii may not be read or written here: set PYTHONUTF8=1." in caplog.text
