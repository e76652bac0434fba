"""For SUPERB's heads, cached on disk: hidden states of an encoder, computed once and found again by what made them.

encoder = open_encoder("demo-output/model/final")
store = FeatureStore("runs/features", max_gigabytes=20)
features = FrozenFeatures(encoder, clips, store, pooled=True)
features[[0, 1]]  # a tensor (num_layers, hidden_size) a clip; without pooling (num_layers, num_frames, hidden_size)

A tensor's key is a hash of the encoder (weights, configuration, code) and of the clip (encoded bytes, place in the
file, length), so that neither a moved file nor an edited model meets the wrong features. Shards are written aside and
renamed: an interrupted run leaves whole shards, and the next one goes on behind them.
"""

import hashlib
import logging
import os
import uuid
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from sjepa_hf.saving import files_written_aside
from training.data.batches import batches_by_length
from training.data.clips import Clip
from training.data.labelled import LabelledClips
from training.evaluation.encoders import Encoder, content_hash


logger = logging.getLogger(__name__)

BATCH_SECONDS = 60.0  # of padded audio that is encoded at once
SHARD_BYTES = 128 * 2**20


class FeatureStore:
    """
    Tensors by key, in shards of safetensors below a directory that is never filled beyond a bound.

    Args:
        directory: where shards lie, of all encoders.
        max_gigabytes: what the directory may hold altogether; what does not fit any more is not stored.
    """

    def __init__(self, directory: str | Path, max_gigabytes: float):
        self.directory = Path(directory).expanduser()
        self.max_bytes = max_gigabytes * 1e9
        self._folders: dict[str, dict[str, safe_open]] = {}

    @property
    def num_bytes(self) -> int:
        whole = self.directory.glob("*/*/*.safetensors")  # deeper lies what another run is writing, and may be gone
        return sum(file.stat().st_size for file in whole)

    def folder(self, name: str) -> dict[str, safe_open]:
        """All keys of a folder, each with the (memory-mapped) shard that holds it."""
        if name not in self._folders:
            self._folders[name] = {}
            for path in sorted((self.directory / name).glob("*.safetensors")):
                self._take_in(name, path)
        return self._folders[name]

    def add(self, folder: str, tensors: dict[str, Tensor]) -> bool:
        """Write a shard; False, and nothing written, if it does not fit."""
        if self.num_bytes + sum(tensor.nbytes for tensor in tensors.values()) > self.max_bytes:
            return False
        path = self.directory / folder / f"{content_hash(*sorted(tensors))}.safetensors"
        with files_written_aside(path.parent) as aside:
            save_file(tensors, aside / path.name)
        self._take_in(folder, path)
        return True

    def _take_in(self, folder: str, path: Path) -> None:
        try:
            shard = safe_open(path, "pt")
        except SafetensorError as error:
            logger.warning("%s is damaged (%s): its features are computed again.", path, error)
            return
        self.folder(folder).update(dict.fromkeys(shard.keys(), shard))


class FrozenFeatures:
    """
    Features of clips under a frozen encoder. What the store lacks is computed when this object is made and stored.

    Pooled features are each layer's mean over the clip's frames, in fp32, and all in memory. Frames are stored in fp16
    (in fp32 where a value does not fit), read from disk when asked for, and computed anew each time if the store was
    full; rounded alike, so that the same numbers come out either way.

    Args:
        encoder: what makes the features.
        clips: the clips.
        store: where features are kept.
        pooled: means over the frames in place of frames.
        keys: those of `clip_keys(clips)`, if they are known.
        gain: of the waveforms, in dB.
    """

    def __init__(
        self,
        encoder: Encoder,
        clips: LabelledClips,
        store: FeatureStore,
        pooled: bool,
        keys: Sequence[str | None] | None = None,
        gain: float = 0.0,
    ):
        self.encoder, self.clips, self.pooled, self.gain = encoder, clips, pooled, gain
        keys = clip_keys(clips) if keys is None else keys
        self.keys = [key or uuid.uuid4().hex for key in keys]  # by which nothing is found
        self._folder = f"{encoder.digest}/{'means' if pooled else 'frames'}{f'{gain:g}dB' if gain else ''}"
        self._stored = store.folder(self._folder)
        self._bad: set[int] = set()
        self._memory: dict[str, Tensor] = {}
        self._fill(store)
        if pooled:
            wanted = set(self.keys)
            self._memory |= {key: shard.get_tensor(key) for key, shard in self._stored.items() if key in wanted}

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, indices: Sequence[int]) -> list[Tensor | None]:
        """
        Features of the clips at `indices`, on the CPU in fp32, None for those that cannot be used: pooled
        `(num_layers, hidden_size)`, else `(num_layers, num_frames, hidden_size)`.
        """
        found = {}
        for i in indices:
            if self.keys[i] in self._memory:
                found[i] = self._memory[self.keys[i]]
            elif self.keys[i] in self._stored:
                found[i] = self._stored[self.keys[i]].get_tensor(self.keys[i]).float()
        missing = [i for i in dict.fromkeys(indices) if i not in found and i not in self._bad]
        for batch in self._batches(missing):
            found |= {i: states.float() for i, states in self._encode(batch).items()}
        return [found.get(i) for i in indices]

    def _fill(self, store: FeatureStore) -> None:
        first = {key: i for i, key in reversed(list(enumerate(self.keys)))}  # a clip that occurs twice is encoded once
        missing = [i for key, i in first.items() if key not in self._stored]
        if not missing:
            return
        shard, size, full = {}, 0, False
        with tqdm(
            total=len(missing), desc=f"{self.encoder.name}: encoding", unit="clip", leave=False, disable=None
        ) as bar:
            for batch in self._batches(missing):
                encoded = self._encode(batch)
                bar.update(len(batch))
                shard |= {self.keys[i]: states for i, states in encoded.items()}
                size += sum(states.nbytes for states in encoded.values())
                if size >= SHARD_BYTES:
                    full = not self._keep(store, shard)
                    shard, size = {}, 0
                if full and not self.pooled:
                    break
        full = bool(shard) and not self._keep(store, shard) or full
        if full:
            logger.warning(
                "The features of %s do not fit: %s may hold %g GB. What is left is computed on the fly, %s; a larger"
                " --cache_gb, or a directory emptied of other encoders' features, stores it.",
                self.encoder.name,
                store.directory,
                store.max_bytes / 1e9,
                "in every run" if self.pooled else "in every epoch",
            )

    def _keep(self, store: FeatureStore, shard: dict[str, Tensor]) -> bool:
        stored = store.add(self._folder, shard)
        if not stored and self.pooled:
            self._memory |= shard
        return stored

    def _batches(self, indices: Sequence[int]) -> list[list[int]]:
        return batches_by_length({i: self.clips.num_samples[i] for i in indices}, BATCH_SECONDS)

    def _encode(self, batch: list[int]) -> dict[int, Tensor]:
        """Features, as they are stored, of those clips of a batch that can be used."""
        examples = {i: self.clips[i] for i in batch}
        self._bad |= {i for i, example in examples.items() if example is None}
        waveforms = {i: example["input_values"] for i, example in examples.items() if example is not None}
        if not waveforms:
            return {}
        factor = np.float32(10 ** (self.gain / 20))
        encoded = self.encoder([waveform * factor for waveform in waveforms.values()])
        if self.pooled:
            features = [states.float().mean(1).cpu() for states in encoded]
        else:
            features = [_compact(states).cpu().contiguous() for states in encoded]
        for i, states in zip(waveforms, features):
            if not states.isfinite().all():
                raise ValueError(f"{self.encoder.name} gives NaN or infinite features of clip {i}: it is not scored.")
        return dict(zip(waveforms, features))


def clip_keys(clips: LabelledClips) -> list[str | None]:
    """A hash of each clip: its encoded bytes, its place in the file, its length in samples; None if it is not read."""
    return [_clip_key(clips.clip(i), clips.num_samples[i]) for i in range(len(clips))]


def _clip_key(clip: Clip, num_samples: int) -> str | None:
    audio = clip.content()
    if isinstance(audio, bytes):
        content = content_hash(audio)
    elif isinstance(audio, str) and os.path.isfile(audio):
        content = _file_hash(audio, os.stat(audio).st_mtime_ns)
    else:
        return None
    return content_hash(content, repr((clip.offset, clip.duration, num_samples)))


@lru_cache(maxsize=1024)  # manifests cut many clips out of one file
def _file_hash(path: str, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _compact(states: Tensor) -> Tensor:
    half = states.half()
    return half if half.isfinite().all() else states.float()
