"""Command shell, which every command runs in: log lines, one sentence for what is wrong, and an exit status."""

import argparse
import functools
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
import transformers


logger = logging.getLogger(__name__)

TRACEBACK = "SJEPA_TRACEBACK"  # set in the environment, it shows where an error was raised too
WORKER_FRAME = re.compile(r'^  File "(.+)", line (\d+).*\n(?:    .*\n)*', re.MULTILINE)
AGAIN = 0.05  # seconds after which a signal is sent once more whose exception Python has dropped
LONGEST = 1000  # characters of a message that are shown
CHATTY = ("httpx", "httpx2", "datasets", "evaluate", "matplotlib", "fsspec")
ROOT = Path(__file__).resolve().parents[1]
OURS = (ROOT / "sjepa_hf", ROOT / "training", ROOT / "model_cards", ROOT / "benchmarks", ROOT / "examples")


class UserError(RuntimeError):
    """Something that ends a command and that its user can mend; the message is the whole sentence."""


class CommandParser(argparse.ArgumentParser):
    """
    Parser of a command's options, by the rules of all commands: no abbreviations; `--a-b` means `--a_b`. `--help`
    leaves the lines of the description as they are.
    """

    def __init__(self, description: str | None = None, **settings):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=formatter, allow_abbrev=False, **settings)

    def add_argument(self, *names: str, **settings) -> argparse.Action:
        dashed = [name.replace("_", "-") for name in names if name.startswith("--") and "_" in name]
        return super().add_argument(*names, *dashed, **settings)


def command(main: Callable[..., None]) -> Callable[..., None]:
    """
    Make a function the `main` of a command: what is wrong with settings, files, data or the machine ends it with
    `error: SENTENCE` and status 1, Ctrl-C with 130 and SIGTERM with 143, once what is half-written has been cleared
    away. Any other exception is a fault of ours and keeps its traceback.
    """

    @functools.wraps(main)
    def shell(*args, **kwargs):
        log_to_terminal()
        escape_unencodable_output()
        warn_of_file_names()
        try:
            with orderly_sigterm():
                return main(*args, **kwargs)
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception as error:
            message = sentence(error)
            if message is None or os.environ.get(TRACEBACK):
                raise
            sys.exit(f"{rank_in_brackets()}error: {message}")

    return shell


class Terminated(SystemExit):
    """What SIGTERM raises in a command."""


@contextmanager
def orderly_sigterm() -> Iterator[None]:
    """
    Have SIGTERM raise SystemExit, as Ctrl-C raises KeyboardInterrupt; not where something else is done with it. Where
    either comes while a destructor runs, Python drops what it raises, and it is sent again a moment later.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # forked meanwhile: what is half-written is not its own
            os._exit(128 + number)
        raise Terminated(128 + number)

    def dropped(unraisable) -> None:
        number = {Terminated: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}.get(unraisable.exc_type)
        if number is None or os.getpid() != process:
            return hook(unraisable)
        again = threading.Timer(AGAIN, os.kill, [process, number])
        again.daemon = True
        again.start()

    hook = sys.unraisablehook
    if ours:
        signal.signal(signal.SIGTERM, end)
        sys.unraisablehook = dropped
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            sys.unraisablehook = hook


def log_to_terminal() -> None:
    """
    Time, level and message on standard error, with the date where that is no terminal; of chatty libraries, and of
    all processes but the first, warnings alone, with the number of the process.
    """
    logging.basicConfig(
        level=logging.WARNING if rank() else logging.INFO,
        format=f"%(asctime)s %(levelname)s {rank_in_brackets()}%(message)s",
        datefmt="%H:%M:%S" if sys.stderr.isatty() else "%Y-%m-%d %H:%M:%S",
    )
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers.logging.disable_progress_bar()


def escape_unencodable_output() -> None:
    """Have standard output take names that its encoding does not have, as escapes, as standard error does."""
    # "surrogateescape": that of the locale C
    if getattr(sys.stdout, "errors", None) in ("strict", "surrogateescape") and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def warn_of_file_names() -> None:
    """Say so where the surroundings (LC_ALL=C with PYTHONUTF8=0) let no file have a name outside an old encoding."""
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        level = once(logging.WARNING)
        logger.log(level, "File names beyond %s may not be read or written here: set PYTHONUTF8=1.", encoding)


def rank() -> int:
    """Number of this process among those of the run, as a launcher has set it."""
    return int(os.environ.get("RANK", 0))


def once(level: int) -> int:
    """The level of a line that all processes of a run would log alike: `level` in the first, DEBUG in the others."""
    return level if rank() == 0 else logging.DEBUG


def rank_in_brackets() -> str:
    """`[rank 3] `; nothing in the first process."""
    return f"[rank {rank()}] " if rank() else ""


def sentence(error: BaseException) -> str | None:
    """
    What to tell the user of an error; None for one that no user can mend. A ValueError that a library raised is told
    with the place, since its words were not written for the user of this command.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
        return f"out of memory ({first_line(error)}): take smaller or fewer clips at a time."
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        return (
            f"a data loader worker has died ({first_line(error)}): does the memory, or the shared memory"
            " (--shm-size of a container), suffice? Take fewer workers or smaller batches."
        )
    if isinstance(error, UserError):
        return own_words(error)
    if isinstance(error, OSError):
        if error.filename is not None and error.strerror:
            return f"{error.filename}: {error.strerror}."
        return own_words(error)
    if isinstance(error, ValueError):
        place = traceback.extract_tb(error.__traceback__)[-1]
        file, line = frame.groups() if (frame := last_of_worker(error)) else (place.filename, place.lineno)
        if any(Path(file).resolve().is_relative_to(folder) for folder in OURS):
            return own_words(error)
        return f"{own_words(error)} (raised in {file}:{line}; {TRACEBACK}=1 shows the way there)"
    return None


def own_words(error: BaseException) -> str:
    """The message; of an error that comes from a worker process, what stands after the worker's traceback."""
    text = str(error).strip()
    if frame := last_of_worker(error):
        text = text[frame.end() :].partition(": ")[2]
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return text or type(error).__name__


def last_of_worker(error: BaseException) -> re.Match | None:
    """File and line where an error was raised in a worker process, whose message begins with the traceback there."""
    text = str(error).strip()
    return (list(WORKER_FRAME.finditer(text)) or [None])[-1] if "Original Traceback" in text else None


def first_line(error: BaseException) -> str:
    """The first line of a message, or the error's name where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
