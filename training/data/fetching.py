"""Fetching audio behind a URL: which addresses are asked, for how many bytes, and for how long.

Paths come out of manifests, Parquet files and archives that others wrote. Only remote storage is asked, never what
this machine holds (`file://`, `memory://`, chains of file systems that end there), and an answer without end is cut.
Hosts are not judged: users keep audio on machines of their own network, and whoever writes a list learns nothing from
a GET whose answer is decoded as audio here or dropped.
"""

import itertools
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec

from training.data.waveforms import BadAudio


logger = logging.getLogger(__name__)

SCHEMES = ("http", "https", "hf", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss")
LARGEST = 1 << 30  # bytes of one file
LONGEST = 300.0  # seconds for one file
PIECE = 1 << 20  # bytes read at a time
NAMED = 20  # failures that a process tells the cause of


def fetch(audio: str | bytes | BadAudio) -> str | bytes | BadAudio:
    """
    Local paths, bytes and bad audio as they are, else the bytes behind a URL, or why there are none. A file in a ZIP
    archive at one is `zip://NAME::URL`.
    """
    if not isinstance(audio, str) or "://" not in audio:
        return audio
    try:
        return _fetch_in_time(audio)
    except BadAudio as error:
        if next(_failures) <= NAMED:
            logger.info("Could not fetch %s: %s.", _without_query(audio), error.detail)
        return error


_failures = itertools.count(1)


def _without_query(text: str) -> str:
    """A URL, or a message with some in it, without what may be a signature."""
    return re.sub(r"(\w://[^\s?'\"]*)\?[^\s'\")]*", r"\1", text)


def _fetch_in_time(url: str) -> bytes:
    """The bytes behind a URL. A thread reads them, since file systems may wait for ever: it is left behind then."""
    _check_scheme(url)
    content, failures, late = bytearray(), [], threading.Event()

    def read() -> None:
        try:
            with _open(url) as file:
                while not late.is_set() and len(content) <= LARGEST and (piece := file.read(PIECE)):
                    content.extend(piece)
        except Exception as error:  # one of any file system's
            failures.append(error)

    reader = threading.Thread(target=read, daemon=True, name="fetch")
    reader.start()
    reader.join(LONGEST)
    if reader.is_alive():
        late.set()
        raise BadAudio("missing", f"not all of it came within {LONGEST:g} s")
    if len(content) > LARGEST:
        raise BadAudio("missing", f"more than {LARGEST:,} bytes")
    if failures:
        raise BadAudio("missing", _without_query(str(failures[0])) or type(failures[0]).__name__)
    return bytes(content)


def _scheme(url: str) -> str:
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", url)
    return found[1].lower() if found else ""


def _archive(url: str) -> tuple[str, str]:
    """Name within a ZIP archive and the archive's URL of `zip://NAME::URL`; of other URLs an empty name."""
    if _scheme(url) == "zip" and "::" in url:
        name, _, url = url[len("zip://") :].partition("::")
        return name, url
    return "", url


def _check_scheme(url: str) -> None:
    name, address = _archive(url)
    if _scheme(address) not in SCHEMES or (name and "::" in address):
        kinds = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise BadAudio(
            "missing", f"what lies there is not asked for: of URLs, {kinds} are; local files go by their path"
        )


@contextmanager
def _open(url: str) -> Iterator:
    """A file to read from front to back. Asks the file system of the scheme itself, which sees no chains in a URL."""
    name, address = _archive(url)
    scheme = _scheme(address)
    system = fsspec.filesystem("zip", fo=address, target_protocol=scheme) if name else fsspec.filesystem(scheme)
    in_one_request = {"block_size": 0, "size": 1} if scheme in ("http", "https") and not name else {}
    # Not returned: `system` has to outlive the file, as a ZIP archive is closed with its file system.
    with system.open(name or address, "rb", **in_one_request) as file:
        yield file
