"""The push command as a user calls it."""

from sjepa_hf import push as pushing


def push(*arguments) -> str:
    """What `python -m sjepa_hf.push ...` ends with: nothing, or its sentence."""
    try:
        pushing.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code
    return ""
