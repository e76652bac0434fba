"""Clients of the Hub in processes of their own."""

import os
import subprocess
import sys


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """A Python process that may be a client of the Hub."""
    return subprocess.run(
        [sys.executable, *arguments], env=os.environ | environment, capture_output=True, text=True, timeout=300
    )


def without_the_package(code: str) -> str:
    """What `code` prints in a process that cannot import sjepa_hf."""
    blocked = "import sys; sys.modules['sjepa_hf'] = None; sys.modules['training'] = None\n"
    done = python("-c", blocked + code)
    assert done.returncode == 0, done.stderr
    return done.stdout
