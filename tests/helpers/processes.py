"""Python processes that tests start."""

import subprocess
import sys


def without_the_package(code: str) -> str:
    """What `code` prints in a process that cannot import sjepa_hf."""
    blocked = "import sys; sys.modules['sjepa_hf'] = None; sys.modules['training'] = None\n"
    done = subprocess.run([sys.executable, "-c", blocked + code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
