"""Labelled clips for fine-tuning and evaluation: any source of `sources.py`, with columns beside the audio.

clips = open_labelled(["train/"], ["transcript"])
clips[0]["input_values"], clips[0]["transcript"]
"""

import logging
import os
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm.auto import tqdm

from sjepa_hf.frames import SAMPLING_RATE
from training.common.naming import several
from training.data.bad_audio import BadAudioError, BadAudioMonitor, counted
from training.data.clips import Clip
from training.data.hold_out import held_out
from training.data.manifest import MissingColumn
from training.data.sources import Source, open_source
from training.data.waveforms import REASONS, BadAudio


logger = logging.getLogger(__name__)

TEXT_COLUMNS = ("transcription", "text", "sentence", "transcript")
LABEL_COLUMNS = ("label", "keyword", "class", "category", "intent", "command", "emotion", "language")
UNSEEN = string.whitespace + "\u00a0\u200b\u200c\u200d\u2060\ufeff"


class Place(NamedTuple):
    """
    Where a clip stands: number of its source, of its row, its length in samples at 16 kHz, a number that it shares
    with the other pieces of its file, and its first sample if it is a piece of what the row holds.
    """

    source: int
    row: int
    num_samples: int
    recording: int
    start: int | None = None


class LabelledClips(torch.utils.data.Dataset):
    """
    Clips with their labels; audio is decoded when an item is asked for, and nothing is copied to disk.

    `clips[i]` is a dict of `input_values` `(num_samples,)` float32 at 16 kHz, and of the labels by name; or None for a
    clip whose audio turns out to be unusable, which is logged and counted, once however often it is asked for.

    Attributes:
        labels (`dict[str, list[str]]`): every label of every clip, without decoding anything.
        num_samples (`list[int]`): length of every clip, from the file headers.
        silence (`bool`): whether a clip in which nothing sounds is usable.
    """

    def __init__(
        self,
        sources: list[Source],
        recordings: Sequence[str | tuple],
        places: list[Place],
        labels: dict[str, list[str]],
        max_bad_fraction: float,
        silence: bool = False,
    ):
        self.sources = sources
        self._recordings = recordings  # by number: the file, or the row that holds it
        self.places = places
        self.labels = labels
        self.num_samples = [place.num_samples for place in places]
        self.silence = silence
        self._monitor = BadAudioMonitor(max_bad_fraction)
        # For each clip: 0 before it is asked for, 1 once it was usable, 2 + the place in `REASONS` once it was not. A
        # tensor, which workers can share.
        self._met = torch.zeros(len(places), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.places)

    def clip(self, index: int) -> Clip:
        """The clip without its audio being decoded: its name, and where it lies."""
        place = self.places[index]
        source = self.sources[place.source]
        clip = source.clip(source.dataset[place.row], place.row)
        if place.start is None:
            return clip
        offset = clip.offset + place.start / SAMPLING_RATE
        return clip._replace(offset=offset, duration=place.num_samples / SAMPLING_RATE)

    def __getitem__(self, index: int) -> dict | None:
        example = self._read(index)
        if example is None:
            self._judge()
        return example

    def _judge(self) -> None:
        """Raise BadAudioError if too many are bad of all that were met, by all who share `_met`."""
        self._monitor.by_reason = self.bad
        self._monitor.seen = met = int(self._met.count_nonzero())
        self._monitor.check(whole=met == len(self))

    def _read(self, index: int) -> dict | None:
        """What `clips[index]` is, however many of the clips are unusable."""
        clip = self.clip(index)
        try:
            waveform = clip.read(silence=self.silence)
        except BadAudio as error:
            self._count(index, clip.name, error.reason)
            return None
        self._count(index, clip.name)
        return {"input_values": waveform} | {name: values[index] for name, values in self.labels.items()}

    def _count(self, index: int, name: str, reason: str | None = None) -> None:
        """Note once whether a clip was usable."""
        if self._met[index] >= (2 if reason else 1):
            return
        self._met[index] = 2 + REASONS.index(reason) if reason else 1
        self._monitor.update(0 if reason else 1, [(name, reason)] if reason else [])

    def _none_usable(self) -> BadAudioError:
        return BadAudioError(f"None of {len(self)} clips can be used ({counted(self.bad)}); the log names them.")

    @property
    def bad(self) -> Counter[str]:
        """Clips that turned out to be unusable when they were asked for, by reason."""
        counts = torch.bincount(self._met, minlength=2 + len(REASONS)).tolist()[2:]
        return Counter({reason: count for reason, count in zip(REASONS, counts, strict=True) if count})

    def filled(self) -> "FilledClips":
        """The same clips for a `DataLoader`, whose batches must be full."""
        return self._with(self.places, range(len(self)), FilledClips)

    def readable(self) -> tuple["LabelledClips", list[int]]:
        """
        The clips that can be used, and the samples that each really has; all are decoded.

        Raises:
            BadAudioError: if too many of them, or all, cannot be used.
        """
        kept, lengths = [], []
        for index in tqdm(range(len(self)), desc="reading", leave=False, disable=None):
            example = self._read(index)
            if example is not None:
                kept.append(index)
                lengths.append(len(example["input_values"]))
        if not kept:
            raise self._none_usable()
        self._judge()  # of all clips, in whatever order the bad ones stand
        if len(kept) < len(self):
            bad = self.bad
            logger.warning("%d of %d clips are left out: %s.", bad.total(), len(self), counted(bad))
        return self.select(kept), lengths

    def select(self, indices: Sequence[int]) -> "LabelledClips":
        """The clips at `indices`, in their order."""
        return self._with([self.places[i] for i in indices], indices)

    def cut(self, chosen: Sequence[bool], seconds: float, every: float) -> "LabelledClips":
        """The clips, each chosen one that is longer being replaced by its whole pieces of `seconds`, one beginning
        every `every` seconds."""
        length, step = round(seconds * SAMPLING_RATE), round(every * SAMPLING_RATE)
        places, numbers = [], []
        for number, place in enumerate(self.places):
            starts = range(0, place.num_samples - length + 1, step) if chosen[number] else ()
            pieces = [place._replace(num_samples=length, start=(place.start or 0) + start) for start in starts]
            places += pieces or [place]
            numbers += [number] * max(1, len(pieces))
        return self._with(places, numbers)

    def _with(
        self, places: list[Place], numbers: Sequence[int], kind: type["LabelledClips"] | None = None
    ) -> "LabelledClips":
        """Clips at `places` of the same sources, with the labels of the clips `numbers`, of this class or `kind`."""
        labels = {name: [values[number] for number in numbers] for name, values in self.labels.items()}
        max_bad, kind = self._monitor.max_bad_fraction, kind or LabelledClips
        return kind(self.sources, self._recordings, places, labels, max_bad, self.silence)

    def also_in(self, other: "LabelledClips") -> int:
        """How many of the clips are of recordings that `other` has clips of, too."""
        theirs = {other._recordings[place.recording] for place in other.places}
        return sum(self._recordings[place.recording] in theirs for place in self.places)

    def groups(self, apart: str | None = None) -> np.ndarray:
        """
        Numbers `(num_clips,)` that clips share where a hold-out must not part them: pieces of one recording and, given
        the label `apart`, all clips with the same value of it. Where all are pieces of a single recording, every clip
        stands by itself, with a warning.
        """
        recordings = np.array([place.recording for place in self.places])
        if apart is None:
            if self.one_recording:
                logger.warning(
                    "All clips are pieces of one recording: what is held out of it is like what is trained on."
                )
                return np.arange(len(self))
            return recordings
        values = np.unique(self.labels[apart], return_inverse=True)[1]
        nodes = recordings.max() + 1 + values.max() + 1
        heard_in = coo_array((np.ones(len(self)), (recordings, recordings.max() + 1 + values)), (nodes, nodes))
        return connected_components(heard_in.tocsr(), directed=False)[1][recordings]

    def hold_out(
        self, share: float, seed: int | Sequence[int] = 0, *, apart: str | None = None, evenly: Sequence[str] = ()
    ) -> tuple["LabelledClips", "LabelledClips"]:
        """
        `(rest, held out)`, both in the order of the clips: as near to `share` of the clips as whole recordings come,
        drawn as in [`held_out`].

        Args:
            apart: label whose values, such as speakers, are kept on one side each.
            evenly: labels of which each value, or each combination of several, has that share held out.

        Raises:
            ValueError: if the clips cannot be parted.
        """
        labels = list(zip(*(self.labels[name] for name in evenly))) if evenly else None
        drawn = held_out(self.groups(apart), share, seed, labels)
        return self.select(np.flatnonzero(~drawn)), self.select(np.flatnonzero(drawn))

    @property
    def one_recording(self) -> bool:
        """Whether there are several clips, all of them pieces of a single recording."""
        return len(self) > 1 and len({place.recording for place in self.places}) == 1

    @property
    def hours(self) -> float:
        return sum(self.num_samples) / SAMPLING_RATE / 3600


class FilledClips(LabelledClips):
    """
    Clips that all have an item: an unusable clip gives that of the next usable one. Unusable clips are counted, and
    their share judged, over all workers of a loader.

    Raises:
        IndexError: (when asked for an item) past the last clip, where `for` ends.
        BadAudioError: (likewise) if no clip is usable, or too many are not.
    """

    def __init__(self, *args):
        super().__init__(*args)
        self._met.share_memory_()

    def __getitem__(self, index: int) -> dict:
        if index >= len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        for number in range(index, index + len(self)):
            example = super().__getitem__(number % len(self))
            if example is not None:
                return example
        raise self._none_usable()


def choose_column(
    specs: Sequence[str],
    column: str | None,
    candidates: Sequence[str],
    argument: str,
    what: str,
    audio_column: str | None = None,
    classes: bool = False,
) -> str:
    """
    `column`, or the first of the candidates that the first source has.

    Args:
        argument, what: how to call the setting and its content in the error.
        audio_column, classes: as in `open_source`.

    Raises:
        ValueError: if the source cannot be opened or has none of them.
    """
    if column is not None:
        return column
    try:
        open_source(specs[0], audio_column=audio_column, labels=candidates[:1], classes=classes)
        return candidates[0]
    except MissingColumn as error:
        if there := [name for name in candidates if name in error.columns]:
            return there[0]
        raise ValueError(
            f"No column of {what} was found ({', '.join(candidates)}): {error} If it has another name, give"
            f" `{argument}`."
        ) from None


def open_labelled(
    specs: Sequence[str],
    labels: Sequence[str],
    *,
    optional: Sequence[str] = (),
    audio_column: str | None = None,
    min_seconds: float = 0.1,
    max_seconds: float = float("inf"),
    max_bad_fraction: float = 0.05,
    classes: bool = False,
    silence: bool | None = None,
) -> LabelledClips:
    """
    Open sources with labels. All headers are read; clips that are missing, corrupt, empty, too short, too long
    or without a label are left out, counted by reason and named in the log.

    Args:
        specs: sources, as in `open_source`.
        labels: columns that every clip needs.
        optional: columns that may be empty, then "".
        audio_column: as in `open_source`.
        min_seconds, max_seconds: shorter and longer clips are left out.
        max_bad_fraction: share of clips that may be bad audio or lack a label; too long ones do not count.
        classes: as in `open_source`.
        silence: as in `read_audio`. None: where the labels are `classes`.

    Raises:
        ValueError: if a source cannot be opened or lacks a column, the same clip has different labels, or no clip is
            left.
        BadAudioError: if more than `max_bad_fraction` of the clips is bad.
    """
    if "input_values" in (*labels, *optional):
        raise ValueError("A label cannot be called input_values, which is the audio: rename the column.")
    options = {"audio_column": audio_column, "labels": (*labels, *optional), "classes": classes}
    sources = [open_source(spec, **options) for spec in specs]
    recordings: dict[str | tuple, int] = {}
    folders: dict[str, str] = {}  # and where they lie
    labelled: dict[tuple, tuple[str, ...]] = {}  # clips by their place on the disk
    places, kept = [], {label: [] for label in (*labels, *optional)}
    monitor, too_long = BadAudioMonitor(max_bad_fraction), 0
    for number, source in enumerate(sources):
        for row_number, ((clip, texts), packed) in enumerate(zip(source.samples(), source.packed_names())):
            values = {label: _clean(texts[label]) for label in kept}
            try:
                length = _usable_length(clip, values, labels, min_seconds)
            except BadAudio as error:
                monitor.update(0, [(clip.name, error.reason)])
                continue
            monitor.update(1, [])
            if length > max_seconds * SAMPLING_RATE:
                too_long += 1
                logger.info("Left out %s: %.1f s.", clip.name, length / SAMPLING_RATE)
                continue
            if isinstance(clip.audio, str):
                recording = _on_disk(clip.audio, folders)
                _check_repeated(labelled, (recording, clip.offset, clip.duration), clip.name, values)
            else:
                recording = packed or (source.spec, row_number)
            places.append(Place(number, row_number, length, recordings.setdefault(recording, len(recordings))))
            for label, value in values.items():
                kept[label].append(value)
    monitor.check(whole=True)
    name = ", ".join(specs)
    if too_long:
        logger.warning("%s: %d clips longer than %g s (max_seconds) were left out.", name, too_long, max_seconds)
    if monitor.skipped:
        logger.warning("%s: %d clips were left out: %s.", name, monitor.skipped, counted(monitor.by_reason))
    if not places:
        raise ValueError(
            f"{name} holds no usable clip of {min_seconds:g} (min_seconds) to {max_seconds:g} s (max_seconds):"
            f" {monitor.skipped} are bad or lack a label ({counted(monitor.by_reason)}), {too_long} are too long."
        )
    silence = classes if silence is None else silence
    return LabelledClips(sources, list(recordings), places, kept, max_bad_fraction, silence)


def _usable_length(clip: Clip, values: dict[str, str], labels: Sequence[str], min_seconds: float) -> int:
    """Samples of a clip as its file says. Raises BadAudio if it lacks one of the `labels`, or cannot be used."""
    unlabelled = [label for label in labels if not values[label]]
    if unlabelled and not isinstance(clip.audio, BadAudio):
        raise BadAudio(f"no {unlabelled[0]}")
    length = clip.length()
    if length < min_seconds * SAMPLING_RATE:
        raise BadAudio("too_short")
    return length


def _on_disk(path: str, folders: dict[str, str]) -> str:
    """The one path of a file, by whatever links and spellings it is reached; `folders` keeps those of its folders."""
    if "://" in path:
        return path
    folder, name = os.path.split(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    file = os.path.join(folders[folder], name)
    return os.path.realpath(file) if os.path.islink(file) else file


def _clean(label: str | None) -> str:
    """A label without what nobody sees: spaces and marks at its ends, and letters that are composed otherwise."""
    return unicodedata.normalize("NFC", (label or "").strip(UNSEEN))


def _check_repeated(labelled: dict[tuple, tuple[str, ...]], place: tuple, name: str, values: dict[str, str]) -> None:
    """Note the labels of a clip. Raises ValueError if it had others before."""
    before = labelled.setdefault(place, tuple(values.values()))
    for label, old, new in zip(values, before, values.values()):
        if old != new:
            raise ValueError(f"{name} is listed twice, with {label} {several([old])} and {several([new])}.")
