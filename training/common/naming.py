"""Naming in messages what a user wrote, files and values: on one line, and in characters that any terminal takes."""

import difflib
import os
import re
from collections.abc import Iterable


LONGEST = 120  # characters of one value in a message


def printable(name: object) -> str:
    """A file name, or another value, with line breaks, control characters and undecodable bytes as escapes."""
    if isinstance(name, list | dict):  # as deep as whoever wrote it liked
        return f"a {type(name).__name__}"
    text = os.fspath(name) if isinstance(name, os.PathLike) else str(name)
    text = text.encode("utf-8", "backslashreplace").decode()
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: ascii(found[0])[1:-1], text)


def several(values: Iterable[object], most: int = 20) -> str:
    """The first values of some, separated by commas, long ones cut off."""
    found = list(map(printable, values))
    shown = [text if len(text) <= LONGEST else text[:LONGEST] + "..." for text in found[:most]]
    return ", ".join(shown + ["..."] * (len(found) > most))


def unknown(name: object, known: Iterable[str]) -> str:
    """A name that is none of those known, and behind it the nearest of them: "maxsteps (near: max_steps)"."""
    near = difflib.get_close_matches(str(name), list(known))
    return several([name]) + (f" (near: {', '.join(near)})" if near else "")
