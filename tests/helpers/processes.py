"""Python processes that tests start, forked where a fresh one would take longer to import than to work."""

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path


class Forker:
    """A process that has done `imports`, and forks others (see forking.py); it ends with this process."""

    def __init__(self, imports: str):
        command = [sys.executable, str(Path(__file__).with_name("forking.py")), imports]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)

    def ask(self, **question):
        print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, "the process that forks has ended: its errors say why"
        return json.loads(answer)


forker = cache(Forker)


class Forked:
    """
    The script `argv[0]` in a process that [`Forker`] forks, or as so many `ranks`, children of that process.

    It has the methods of `subprocess.Popen` that tests use, and what it said so far as `output` and `errors`.
    """

    def __init__(self, imports: str, argv, environment: dict | None = None, folder=None, ranks: int | None = None):
        self._forker, self.returncode = forker(imports), None
        self._output, self._errors = (tempfile.NamedTemporaryFile() for _ in range(2))
        self.pid = self._forker.ask(
            argv=[str(argument) for argument in argv],
            environment=dict(os.environ if environment is None else environment),
            folder=str(folder or Path.cwd()),
            output=self._output.name,
            errors=self._errors.name,
            ranks=ranks,
        )

    @property
    def output(self) -> str:
        return Path(self._output.name).read_text()

    @property
    def errors(self) -> str:
        return Path(self._errors.name).read_text()

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._forker.ask(status_of=self.pid)
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout, self.output, self.errors)
            time.sleep(0.02)
        return self.output, self.errors


# Without the Hugging Face libraries, which read the environment as they are imported.
IMPORTS = """
import sys, torch, torch._dynamo, scipy.stats, sklearn.metrics
assert "huggingface_hub" not in sys.modules
"""


def run_python(code: str, *arguments, environment: dict | None = None, folder=None, status: int = 0) -> Forked:
    """A process that has run `code`, and ended with `status`."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(code)
        script.flush()
        done = Forked(IMPORTS, [script.name, *arguments], environment, folder)
        done.communicate(timeout=300)
    assert done.returncode == status, done.errors
    return done


def without_the_package(code: str, *arguments) -> str:
    """What `code` prints in a process that cannot import sjepa_hf."""
    blocked = "import sys; sys.modules['sjepa_hf'] = None; sys.modules['training'] = None\n"
    return run_python(blocked + code, *arguments).output
