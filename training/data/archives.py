"""Archives (tar, the WebDataset format) of audio files on this machine: read from front to back, and not trusted.

An archive is a chain of blocks of 512 bytes: a header for each member, then its content. After a broken header reading
goes on at the next whole one. What cannot be read is named, and counts as the clips that it probably held.
"""

import bz2
import gzip
import lzma
import os
import statistics
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import BinaryIO, NamedTuple

from training.data.clips import Clip, Sample
from training.data.manifest import check_columns, label_text, parse_object
from training.data.waveforms import BadAudio


BLOCK = 512
LARGEST = 1 << 30  # bytes of one member
LARGEST_HEADER = 1 << 20  # bytes of a member's long name or its further attributes
SEARCHED = 1 << 30  # bytes after a broken header in which another is looked for
MOST_LOST = 100_000  # clips that the loss of one piece can count as
LOOKED_AT = 1000  # members of an archive that tell what it holds, samples that tell which labels there are
AUDIO = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64")
COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}  # by their first bytes
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)


class TarArchives:
    """
    Archives as the shards of a streamed source. Clips are the members with the suffix of an audio format, or with the
    one that is asked for; what else lies beside them (texts, folders, hidden files) is passed over, unless it holds a
    label: the files of a sample stand in a row and share the name up to its first dot.

    Args:
        files: paths of the archives.
        wanted: what follows the first dot in the names of the clips ("wav"); None takes every audio file.
        labels: what is kept of each sample beside its clip: keys of NAME.json, or texts, as `txt` of NAME.txt.

    Raises:
        ValueError: if no archive holds such a member, or samples have several and `wanted` is None.
        MissingColumn: if the first sample lacks a label.
    """

    def __init__(self, files: Sequence[str], wanted: str | None = None, labels: Sequence[str] = ()):
        self.files = list(files)
        self.wanted = wanted
        self.labels = tuple(labels)
        self._usual_size = statistics.median_high(map(os.path.getsize, self.files))
        self._clip_size = self._look()  # bytes
        if self.labels:
            self._check_labels()

    @property
    def num_shards(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Sample]:
        return (sample for shard in range(self.num_shards) for sample in self.samples(shard))

    def clips(self, shard: int) -> Iterator[Clip]:
        """The clips of one archive in their order; what cannot be read stands among them as bad clips."""
        return (clip for clip, _ in self.samples(shard))

    def samples(self, shard: int) -> Iterator[Sample]:
        """The same, each with its labels; None for one that its sample lacks."""
        for clips, texts in self._grouped(self.files[shard]):
            labels = dict.fromkeys(self.labels)
            try:
                for file, content in texts.items() if clips else ():
                    found = self._read(file, content)
                    labels |= {name: label_text(found[name], name, file) for name in self.labels if name in found}
            except ValueError as error:
                clips = [clip._replace(audio=BadAudio("bad_line", str(error))) for clip in clips]
            for clip in clips:
                yield clip, labels

    def _grouped(self, path: str) -> Iterator[tuple[list[Clip], dict[str, bytes | BadAudio]]]:
        """Clips and, by file, texts of each sample of an archive; what cannot be read is a sample of bad clips."""
        sample, clips, texts = None, [], {}
        for found in self._members(path):
            name = _sample(found.name)[0] if isinstance(found, _Member) else None
            if name is None or name != sample:
                yield clips, texts
                sample, clips, texts = name, [], {}
            if isinstance(found, Clip):
                clips.append(found)
            elif self._is_clip(found.name):
                clips.append(Clip(f"{path}/{found.name}", found.content))
            elif self._is_label(found.name):
                texts[f"{path}/{found.name}"] = found.content
        yield clips, texts

    def _read(self, file: str, content: bytes | BadAudio) -> dict[str, object]:
        """What a text of a sample says. Raises ValueError if it cannot be read."""
        if isinstance(content, BadAudio):
            raise content
        kind = _sample(file)[1]
        if kind == "json":
            return parse_object(content, file)
        try:
            return {kind: content.decode()}
        except UnicodeDecodeError:
            raise ValueError(f"{file} is not UTF-8") from None

    def _members(self, path: str) -> Iterator["_Member | Clip"]:
        """The members of an archive, and bad clips in the place of what cannot be read."""
        given, size = 0, os.path.getsize(path) if os.path.exists(path) else 0
        try:
            with open(path, "rb") as raw:
                for found in _walk(raw, lambda name: self._is_clip(name) or self._is_label(name)):
                    if isinstance(found, _Member):
                        given += self._is_clip(found.name)
                        yield found
                    elif found.end is not None:
                        lost, clip_size = found.end - found.start, found.start / given if given else self._clip_size
                        yield from self._lost(path, f"{lost:,} bytes", lost / clip_size)
                    else:  # of an archive that was cut off, the size is taken to have been that of the others
                        lost = max(size, self._usual_size) - found.reached
                        clip_size = found.reached / given if given else self._clip_size
                        what = f"the rest after {min(found.reached, size):,} of {size:,} bytes ({found.why})"
                        yield from self._lost(path, what, lost / clip_size)
        except OSError as error:
            yield from self._lost(path, f"all of it ({error.strerror})", max(size, self._usual_size) / self._clip_size)

    def _lost(self, path: str, what: str, clips: float) -> Iterator[Clip]:
        bad = Clip(f"{path}: {what}", BadAudio("corrupt", "cannot be read"))
        for _ in range(min(max(1, round(clips)), MOST_LOST)):
            yield bad

    def _is_clip(self, name: str) -> bool:
        file = name.rpartition("/")[2].lower()
        if file.startswith("."):
            return False
        return file.endswith(AUDIO) if self.wanted is None else file.partition(".")[2] == self.wanted.lower()

    def _is_label(self, name: str) -> bool:
        return bool(self.labels) and _sample(name)[1] in ("json", *self.labels)

    def _check_labels(self) -> None:
        """Refuse labels that the first sample with a text that can be read lacks; `LOOKED_AT` samples are asked."""
        found: set[str] = set()
        samples = (texts for path in self.files for clips, texts in self._grouped(path) if clips)
        for texts in islice(samples, LOOKED_AT):
            try:
                for file, content in texts.items():
                    found |= self._read(file, content).keys()
            except ValueError:
                continue
            if found:
                break
        check_columns(self.files[0], self.labels, found)

    def _look(self) -> float:
        """Bytes that a clip takes in the first archive that holds any, with what lies beside it."""
        others: set[str] = set()
        for path in self.files:
            names, reached = [], 0
            try:
                with open(path, "rb") as raw:
                    for found in _walk(raw, lambda name: False):
                        if isinstance(found, _Member):
                            names.append(found.name)
                            reached = raw.tell()
                        if len(names) == LOOKED_AT:
                            break
            except OSError:
                continue
            clips = [name for name in names if self._is_clip(name)]
            if clips:
                self._check_single(clips)
                return reached / len(clips)
            others.update(name.rpartition("/")[2].partition(".")[2] for name in names)
        kinds = ", ".join(sorted(filter(None, others))[:10]) or "nothing that can be read"
        what = "audio" if self.wanted is None else f"'{self.wanted}' (audio_column)"
        raise ValueError(f"the tar archives hold no {what}; there is {kinds}")

    def _check_single(self, clips: list[str]) -> None:
        """Refuse samples, members of the same name up to its first dot, that have several audio files."""
        suffixes: dict[str, set[str]] = {}
        for sample, kind in map(_sample, clips):
            suffixes.setdefault(sample, set()).add(kind)
        several = next((found for found in suffixes.values() if len(found) > 1), None)
        if several:
            raise ValueError(
                f"the samples of the tar archives have several audio files ({', '.join(sorted(several)[:10])}): name"
                " one with audio_column"
            )


def _sample(name: str) -> tuple[str, str]:
    """The sample that a file belongs to, with its folder, and what follows the first dot of its name."""
    folder, _, file = name.rpartition("/")
    stem, _, kind = file.partition(".")
    return f"{folder}/{stem}", kind


class _Member(NamedTuple):
    """A file of an archive; `content` is None where it was not wanted."""

    name: str
    content: bytes | BadAudio | None


class _Gap(NamedTuple):
    """What cannot be read: from byte `start` to `end`, or to the archive's end (None), after `reached` bytes of it."""

    start: int
    end: int | None
    reached: int
    why: str


class _Header(NamedTuple):
    name: str
    kind: bytes  # one letter
    size: int


class _Torn(Exception):
    """An archive does not go on as it should."""


class _Blocks:
    """An archive's bytes, unpacked, from front to back; `place` is where it stands."""

    def __init__(self, raw: BinaryIO):
        unpack = COMPRESSED.get(raw.read(2))
        raw.seek(0)
        self.is_packed = unpack is not None
        self.place = 0
        self._raw, self._held = raw, b""
        self._file = unpack(raw) if unpack else raw
        self._end = float("inf") if unpack else os.fstat(raw.fileno()).st_size

    @property
    def reached(self) -> int:
        """How much of the file that is, in bytes on the disk."""
        return self._raw.tell() if self.is_packed else self.place

    def read(self, size: int) -> bytes:
        """Exactly that much. Raises _Torn if there is less, and then, unless it has to be unpacked, takes nothing."""
        if self.place + size > self._end:
            raise _Torn("cut off there")
        content, self._held = self._held, b""
        try:
            content += self._file.read(size - len(content))
        except UNREADABLE as error:
            raise _Torn(str(error) or type(error).__name__) from None
        if len(content) < size:
            raise _Torn("cut off there")
        self.place += size
        return content

    def skip(self, size: int) -> None:
        if self.is_packed:  # has to be unpacked
            for _ in range(0, size, 1 << 20):
                self.read(min(size, 1 << 20))
                size -= 1 << 20
        elif self.place + size > self._end:
            raise _Torn("cut off there")
        else:
            self._file.seek(size, os.SEEK_CUR)
            self.place += size

    def search(self) -> bool:
        """Go on to the next whole header, if there is one."""
        try:
            for _ in range(SEARCHED // BLOCK):
                block = self.read(BLOCK)
                if block[257:262] == b"ustar" and _parse(block):
                    self._held = block
                    self.place -= BLOCK
                    return True
        except _Torn:
            pass
        return False


def _walk(raw: BinaryIO, is_wanted: Callable[[str], bool]) -> Iterator[_Member | _Gap]:
    """The files of an archive, links among them, and the gaps between them."""
    blocks = _Blocks(raw)
    while True:
        start, reached = blocks.place, blocks.reached
        try:
            header = _next_header(blocks)
            member = header and _next_member(blocks, header, is_wanted(header.name))
        except _Torn as torn:
            found = blocks.search()
            yield _Gap(start, blocks.place if found else None, reached, str(torn))
            if not found:
                return
            continue
        if member:
            yield member
        elif header is None and not blocks.search():  # archives put together have an end in the middle
            return


def _next_header(blocks: _Blocks) -> _Header | None:
    """The header of the next member, or None for the zeros that end an archive. Raises _Torn."""
    more: dict[str, str] = {}
    while True:
        block = blocks.read(BLOCK)
        if not any(block):
            return None
        header = _parse(block)
        if header is None:
            raise _Torn("a broken header")
        if header.kind not in b"xgLK":
            break
        if header.size > LARGEST_HEADER:
            raise _Torn(f"a header of {header.size:,} bytes")
        content = blocks.read(-(-header.size // BLOCK) * BLOCK)[: header.size]
        if header.kind == b"L":
            more["path"] = content.rstrip(b"\0").decode(errors="replace")
        elif header.kind == b"x":
            more |= _attributes(content)
    size = more.get("size", "")
    kind = b"S" if "GNU.sparse" in more else header.kind
    is_size = size.isdecimal() and len(size) < 20  # of 4,300 digits `int` makes an error
    return _Header(more.get("path", header.name), kind, int(size) if is_size else header.size)


def _next_member(blocks: _Blocks, header: _Header, is_wanted: bool) -> _Member | None:
    """The member that follows its header; None for folders and devices. Raises _Torn."""
    if header.kind in b"3456":
        return None
    if header.kind in b"12":  # no content follows
        return _Member(header.name, BadAudio("missing", "a link within the archive"))
    padded = -(-header.size // BLOCK) * BLOCK
    if header.size > LARGEST and blocks.is_packed:
        raise _Torn(f"{header.name} of {header.size:,} bytes")
    if header.size > LARGEST or header.kind == b"S" or not is_wanted:
        blocks.skip(padded)
        wrong = ("too_long", f"{header.size:,} bytes") if header.size > LARGEST else ("corrupt", "stored with holes")
        return _Member(header.name, BadAudio(*wrong) if is_wanted else None)
    return _Member(header.name, blocks.read(padded)[: header.size])


def _parse(block: bytes) -> _Header | None:
    """A header of 512 bytes; None if it is not whole."""
    try:
        total, size = _number(block[148:156]), _number(block[124:136])
    except ValueError:
        return None
    if sum(block) - sum(block[148:156]) + 8 * ord(" ") != total:
        return None
    name, folder = (part.partition(b"\0")[0].decode(errors="replace") for part in (block[:100], block[345:500]))
    is_posix = block[257:263] == b"ustar\0"
    return _Header(f"{folder}/{name}" if is_posix and folder else name, block[156:157], size)


def _number(field: bytes) -> int:
    """A number of a header: bytes, or octal digits among spaces and zeros. Raises ValueError for anything else."""
    if field[0] & 128:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):  # `int` would take signs, underscores and prefixes too
        raise ValueError("no octal number")
    return int(digits or b"0", 8)


def _attributes(content: bytes) -> dict[str, str]:
    """What counts here of the lines "LENGTH KEY=VALUE" of a POSIX extended header: path, size, GNU.sparse."""
    found = {}
    while content:
        length = content.partition(b" ")[0]
        if not length.isdigit() or not len(length) < 8 or not 0 < int(length) <= len(content):
            break
        line, content = content[len(length) + 1 : int(length)], content[int(length) :]
        key, _, value = line.rstrip(b"\n").partition(b"=")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse."):
            found[key[:10].decode()] = value.decode(errors="replace")
    return found
