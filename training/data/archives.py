"""Archives (tar, the WebDataset format) of audio files on this machine: read from front to back, and not trusted.

To `tarfile` an archive that is cut off is one that ends, and broken headers are passed over in silence. Here what
cannot be read is named, and counts as the clips that it probably held: the piece from a broken header to the next
whole one or, after a size that lies or where unpacking fails, the rest of the archive.
"""

import bz2
import gzip
import lzma
import math
import os
import statistics
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import BinaryIO, NamedTuple

from training.common.naming import printable, several
from training.data.clips import Clip, Sample
from training.data.manifest import MissingColumn, check_columns, label_text, parse_object
from training.data.waveforms import AUDIO_SUFFIXES, BadAudio


LARGEST = 1 << 30  # bytes of one member
EXTENDED = b"xgXLK"  # types of headers: a member's long name, or its further attributes
LARGEST_HEADER = 1 << 14  # bytes of one of those
LONGEST_END = 1 << 22  # bytes of zeros that may end an archive; more are room for what never came
MOST_LOST = 100_000  # clips that the loss of one piece can count as
LOOKED_AT = 1000  # members of an archive that tell what it holds, samples that tell which labels there are
IN_A_ROW = "those of a sample (NAME.wav, NAME.txt, NAME.json) must follow one another, as `tar --sort=name` puts them"
COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}  # by their first bytes


class TarArchives:
    """
    Archives as the shards of a streamed source. Clips are the members with the suffix of an audio format, or with the
    one that is asked for; what else lies beside them (texts, folders, hidden files) is passed over, unless it holds a
    label: the files of a sample stand in a row and share the name up to its first dot. The same kind of file once more
    begins another sample of that name.

    Args:
        files: paths of the archives.
        wanted: what follows the first dot in the names of the clips ("wav"); None takes every audio file.
        labels: what is kept of each sample beside its clip: keys of NAME.json, or texts, as `txt` of NAME.txt.

    Raises:
        ValueError: if no archive holds such a member, or samples have several and `wanted` is None.
            Or if a label stands apart from its clip.
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
        """
        The same, each with its labels; None for one that its sample lacks.

        Raises:
            ValueError: (while read) where a label of a sample stands apart from its clip.
        """
        for clips, known in self._samples(self.files[shard]):
            labels = dict.fromkeys(self.labels)
            try:
                if isinstance(known, ValueError):
                    raise known
                labels |= {
                    name: label_text(value, name, file) for name, (value, file) in known.items() if name in labels
                }
            except ValueError as error:
                clips = [clip._replace(audio=BadAudio("bad_line", str(error))) for clip in clips]
            for clip in clips:
                yield clip, labels

    def _samples(self, path: str) -> Iterator[tuple[list[Clip], dict[str, tuple[object, str]] | ValueError]]:
        """
        For each sample: its clips, and its labels as `{name: (value, file)}`, or the ValueError of a text that cannot
        be read. Raises ValueError where a sample's name comes again with files of other kinds.
        """
        kinds_of: dict[str, set[str]] = {}  # by name of the sample
        for files in self._grouped(path):
            if self.labels and files.name is not None and files.kinds:
                if kinds_of.setdefault(files.name, files.kinds) != files.kinds:
                    sample = printable(files.name.lstrip("/"))
                    raise ValueError(
                        f"{printable(path)}: the files of the sample {sample} do not stand in a row, or several"
                        f" samples have this name: {IN_A_ROW}"
                    )
            yield files.clips, self._labels_in(files.texts)

    def _labels_in(self, texts: dict[str, bytes | BadAudio]) -> dict[str, tuple[object, str]] | ValueError:
        try:
            return {
                name: (value, file)
                for file, content in texts.items()
                for name, value in self._read(file, content).items()
            }
        except ValueError as error:
            return error

    def _grouped(self, path: str) -> Iterator["_Files"]:
        """The files of each sample of an archive, and bad clips in the place of what cannot be read."""
        sample, files, is_torn = None, _Files(None), False
        for member in self._members(path):
            if isinstance(member, Clip):
                files.name = None
                yield files
                yield _Files(None, [member])
                sample, files, is_torn = None, _Files(None), True
                continue
            if member.name.rpartition("/")[2].startswith("."):  # as those that a Mac puts before each file
                continue
            name, kind = _sample(member.name)
            is_clip, is_label = self._is_clip(member.name), self._is_label(member.name)
            if name != sample or ((is_clip or is_label) and kind in files.kinds):
                yield files
                sample, files, is_torn = name, _Files(None if is_torn else name), False
            if is_clip:
                files.clips.append(Clip(printable(f"{path}/{member.name}"), member.content))
            elif is_label:
                files.texts[f"{path}/{member.name}"] = member.content
            if is_clip or is_label:
                files.kinds.add(kind)
        yield files

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
                for part in _walk(raw, lambda name: self._is_clip(name) or self._is_label(name)):
                    if isinstance(part, _Member):
                        given += self._is_clip(part.name)
                        yield part
                    elif part.end is not None:
                        lost, clip_size = part.end - part.start, part.start / given if given else self._clip_size
                        yield from self._lost(path, f"{lost:,} bytes", lost / clip_size)
                    else:  # of an archive that was cut off, the size is taken to have been that of the others
                        lost = max(size, self._usual_size) - part.reached
                        clip_size = part.reached / given if given else self._clip_size
                        what = f"the rest after {min(part.reached, size):,} of {size:,} bytes ({part.why})"
                        yield from self._lost(path, what, lost / clip_size)
        except OSError as error:
            yield from self._lost(path, f"all of it ({error.strerror})", max(size, self._usual_size) / self._clip_size)

    def _lost(self, path: str, what: str, clips: float) -> Iterator[Clip]:
        bad = Clip(printable(f"{path}: {what}"), BadAudio("corrupt", "cannot be read"))
        for _ in range(min(max(1, round(clips)), MOST_LOST)):
            yield bad

    def _is_clip(self, name: str) -> bool:
        file = name.rpartition("/")[2].lower()
        if file.startswith("."):
            return False
        return file.endswith(AUDIO_SUFFIXES) if self.wanted is None else file.partition(".")[2] == self.wanted.lower()

    def _is_label(self, name: str) -> bool:
        return bool(self.labels) and _sample(name)[1] in ("json", *self.labels)

    def _check_labels(self) -> None:
        """Refuse labels that the first sample with a text that can be read lacks; `LOOKED_AT` samples are asked."""
        samples = (labels for path in self.files for clips, labels in self._samples(path) if clips)
        readable = (each for each in islice(samples, LOOKED_AT) if each and not isinstance(each, ValueError))
        labels = next(readable, {})
        try:
            check_columns(self.files[0], self.labels, labels)
        except MissingColumn as error:
            if labels:
                raise
            none = f"{str(error).removesuffix('.')} beside the first clips: {IN_A_ROW}."
            raise MissingColumn(none, error.column, error.columns) from None

    def _look(self) -> float:
        """Bytes that a clip takes in the first archive that holds any, with what lies beside it."""
        others: set[str] = set()
        for path in self.files:
            try:
                with open(path, "rb") as raw:
                    members = (found for found in _walk(raw, lambda name: False) if isinstance(found, _Member))
                    names = [member.name for member in islice(members, LOOKED_AT)]
                    reached = raw.tell() if len(names) == LOOKED_AT else os.fstat(raw.fileno()).st_size
            except OSError:
                continue
            clips = [name for name in names if self._is_clip(name)]
            if clips:
                self._check_single(clips)
                return reached / len(clips)
            others.update(name.rpartition("/")[2].partition(".")[2] for name in names)
        kinds = several(sorted(filter(None, others)), 10) or "nothing that can be read"
        what = "audio" if self.wanted is None else f"'{self.wanted}' (audio_column)"
        raise ValueError(f"the tar archives hold no {what}; there is {kinds}")

    def _check_single(self, clips: list[str]) -> None:
        """Refuse samples, members of the same name up to its first dot, that have several audio files."""
        suffixes: dict[str, set[str]] = {}
        for sample, kind in map(_sample, clips):
            suffixes.setdefault(sample, set()).add(kind)
        kinds = next((found for found in suffixes.values() if len(found) > 1), None)
        if kinds:
            raise ValueError(
                f"the samples of the tar archives have several audio files ({several(sorted(kinds), 10)}): name one"
                " with audio_column"
            )


def _sample(name: str) -> tuple[str, str]:
    """The sample that a file belongs to, with its folder, and what follows the first dot of its name."""
    folder, _, file = name.rpartition("/")
    stem, _, kind = file.partition(".")
    return f"{folder}/{stem}", kind


@dataclass
class _Files:
    """
    The clips of a sample, its texts by file, and what follows the first dot in the names of both. `name` is None
    beside what cannot be read, where some of the files may have been.
    """

    name: str | None
    clips: list[Clip] = field(default_factory=list)
    texts: dict[str, bytes | BadAudio] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)


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


class _Header(tarfile.TarInfo):
    """
    A header. One that claims a huge size raises; the first broken one since the last member is noted in
    `archive.passed_over`, since `tarfile` skips it in silence.
    """

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in EXTENDED and header.size > LARGEST_HEADER):
            raise tarfile.HeaderError(f"a header of {header.size:,} bytes")
        return header

    @classmethod
    def fromtarfile(cls, archive: "_Archive") -> "_Header":
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            archive.passed_over = archive.passed_over or error
            raise


class _Archive(tarfile.TarFile):
    tarinfo = _Header
    passed_over: tarfile.HeaderError | None = None  # the first since the last member


def _walk(raw: BinaryIO, is_wanted: Callable[[str], bool]) -> Iterator[_Member | _Gap]:
    """The files of an archive, links among them, and the gaps between them."""
    unpack = COMPRESSED.get(raw.read(2))
    raw.seek(0)
    file, size = (unpack(raw), math.inf) if unpack else (raw, os.fstat(raw.fileno()).st_size)
    archive, end = None, 0
    while True:
        reached = raw.tell() if unpack else end  # bytes on the disk
        try:
            if archive is None:
                archive = _Archive(fileobj=file, encoding="utf-8", errors="replace", ignore_zeros=True)
            header = archive.next()
            archive.members.clear()
            if header and (not header.offset < archive.offset <= size or (unpack and header.size > LARGEST)):
                raise tarfile.ReadError(f"{header.name} of {header.size:,} bytes, or cut off there")
            member = header and _read_member(file, header, is_wanted(header.name))
        except Exception as error:  # of whatever kind damage is to `tarfile` or to what unpacks
            yield _Gap(end, None, reached, str(error) or type(error).__name__)
            return
        passed_over, archive.passed_over = archive.passed_over, None
        if passed_over and not isinstance(passed_over, tarfile.EOFHeaderError):  # not the zeros of an archive's end
            is_broken = isinstance(passed_over, tarfile.InvalidHeaderError)
            yield _Gap(end, header and header.offset, reached, "a broken header" if is_broken else "cut off there")
        elif header is None and archive.offset - end > LONGEST_END:
            yield _Gap(end, None, reached, "nothing but zeros")
        if header is None:
            return
        end = archive.offset
        if member:
            yield member


def _read_member(file: BinaryIO, header: tarfile.TarInfo, is_wanted: bool) -> _Member | None:
    """The member after its header; None for folders and devices. Raises `tarfile.ReadError` if it is not whole."""
    if header.isdir() or header.isdev():
        return None
    if header.issym() or header.islnk():
        return _Member(header.name, BadAudio("missing", "a link within the archive"))
    if not is_wanted:
        return _Member(header.name, None)
    if header.size > LARGEST:
        return _Member(header.name, BadAudio("too_long", f"{header.size:,} bytes"))
    if header.issparse():
        return _Member(header.name, BadAudio("corrupt", "stored with holes"))
    content = file.read(header.size)
    if len(content) < header.size:
        raise tarfile.ReadError("cut off there")
    return _Member(header.name, content)
