"""Hidden states of a frozen encoder: computed once, kept on disk, and found again by what they are computed from.

encoder = open_encoder("demo-output/model/final")
store = FeatureStore("runs/features", max_gigabytes=20)
features = FrozenFeatures(encoder, clips, store, pooled=True)
features[[0, 1]]  # a tensor (num_layers, hidden_size) a clip; without pooling (num_layers, num_frames, hidden_size)

A tensor's key is a hash of the encoder (weights, configuration, code) and of the clip (encoded bytes, place in the
file, length), so that neither a moved file nor an edited model meets the wrong features. Shards are written aside and
renamed: an interrupted run leaves whole shards, and the next one goes on behind them.
"""

import hashlib
import inspect
import json
import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import AutoFeatureExtractor, AutoModel

import sjepa_hf  # noqa: F401  (registers its classes with AutoModel)
from sjepa_hf.frames import SAMPLING_RATE
from sjepa_hf.opening import build_model, open_config, open_model, open_pretrained
from training.data.clips import Clip
from training.data.labelled import LabelledClips, pad_waveforms
from training.targets.frame_features import MfccFeatures


logger = logging.getLogger(__name__)

BATCH_SECONDS = 60.0  # of padded audio that is encoded at once
SHARD_BYTES = 128 * 2**20
NOT_IN_DIGEST = ("_name_or_path", "architectures", "auto_map", "dtype", "transformers_version")


class TransformersEncoder:
    """
    A frozen audio encoder of Transformers, in fp32; its feature extractor norms the waveforms if the model wants that.

    Batches are padded, with an attention mask, for S-JEPA alone: there the padding changes nothing. Other encoders get
    one clip at a time, since a padded batch changes the group norm of HuBERT and wav2vec 2.0 base.

    Attributes:
        name (`str`): what the user called it.
        digest (`str`): hash of weights, configuration, feature extractor and code.
    """

    def __init__(self, name: str, model: torch.nn.Module, extractor, device: torch.device | str = "cpu"):
        self.name = name
        self.model = model.eval().requires_grad_(False).float().to(device)
        self.extractor = extractor
        self.pads = model.config.model_type == "sjepa"
        self.digest = self._digest()

    @torch.no_grad()
    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[Tensor]:
        """Waveforms `(num_samples,)` at 16 kHz -> all hidden states `(num_layers, num_frames, hidden_size)` of each,
        on the encoder's device; only real frames. Layer 0 is what enters the first Transformer layer."""
        if not self.pads and len(waveforms) > 1:
            return [self([waveform])[0] for waveform in waveforms]
        inputs = pad_waveforms(self.extractor, waveforms).to(self.model.device)
        mask = inputs["attention_mask"]
        masked = {"attention_mask": mask} if self.pads else {}
        layers = torch.stack(
            self.model(inputs["input_values"], output_hidden_states=True, **masked).hidden_states, dim=1
        )
        if not self.pads:
            return list(layers)
        lengths = self.model._get_feat_extract_output_lengths(mask.sum(-1)).tolist()
        return [states[:, :length] for states, length in zip(layers, lengths)]

    def _digest(self) -> str:
        config = {key: value for key, value in self.model.config.to_dict().items() if key not in NOT_IN_DIGEST}
        source = Path(inspect.getsourcefile(type(self.model))).parent
        parts = [json.dumps(config, sort_keys=True, default=str), str(self.extractor.to_dict())]
        parts += [transformers.__version__, *(file.read_text() for file in sorted(source.glob("*.py")))]
        for key, value in sorted(self.model.state_dict().items()):
            parts += [key, str(tuple(value.shape)), value.detach().cpu().contiguous().numpy()]
        return _hash(*parts)


class MfccEncoder:
    """13 MFCC with deltas and delta-deltas over an encoder's own frames, as one "layer" of 39 values: a baseline."""

    name = "mfcc"

    def __init__(self, device: torch.device | str = "cpu"):
        self.features = MfccFeatures().to(device)
        self.device = device
        self.digest = _hash("mfcc", Path(inspect.getsourcefile(MfccFeatures)).read_text())

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[Tensor]:
        """Waveforms `(num_samples,)` at 16 kHz -> `(1, num_frames, 39)` of each."""
        return [self.features(torch.from_numpy(waveform)[None].to(self.device)) for waveform in waveforms]


Encoder = TransformersEncoder | MfccEncoder


def open_encoder(name: str, device: torch.device | str = "cpu", untrained_seed: int = 0) -> Encoder:
    """
    The encoder that `name` stands for.

    Args:
        name: a checkpoint (directory or Hub name) that AutoModel opens; `untrained:CHECKPOINT`, the same configuration
            with fresh weights; or `mfcc`.
        untrained_seed: seed of those fresh weights.

    Raises:
        ValueError: there is no such checkpoint, it is damaged or incomplete, or its encoder does not read waveforms.
    """
    if name == "mfcc":
        return MfccEncoder(device)
    checkpoint = name.removeprefix("untrained:")
    extractor = open_pretrained(AutoFeatureExtractor, checkpoint)
    if name != checkpoint:
        config = open_config(checkpoint)
        with torch.random.fork_rng():
            torch.manual_seed(untrained_seed)
            model = build_model(AutoModel, config, checkpoint)
    else:
        model = open_model(AutoModel, checkpoint)
    if extractor.model_input_names[0] != "input_values" or model.main_input_name != "input_values":
        raise ValueError(f"{name} reads {model.main_input_name}: only encoders of waveforms can be evaluated.")
    return TransformersEncoder(name, model, extractor, device)


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
        return sum(file.stat().st_size for file in self.directory.rglob("*.safetensors"))

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
        path = self.directory / folder / f"{_hash(*sorted(tensors))}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{os.getpid()}.incomplete")
        try:
            save_file(tensors, aside)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        self._take_in(folder, path)
        return True

    def _take_in(self, folder: str, path: Path) -> None:
        shard = safe_open(path, "pt")
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
    """

    def __init__(
        self,
        encoder: Encoder,
        clips: LabelledClips,
        store: FeatureStore,
        pooled: bool,
        keys: Sequence[str] | None = None,
    ):
        self.encoder, self.clips, self.pooled = encoder, clips, pooled
        self.keys = clip_keys(clips) if keys is None else keys
        self._folder = f"{encoder.digest}/{'means' if pooled else 'frames'}"
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
        Features of the clips at `indices`, on the CPU in fp32, None for those that cannot be decoded: pooled
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
        """The clips sorted by length, cut into batches of at most `BATCH_SECONDS` with their padding."""
        batches: list[list[int]] = []
        for i in sorted(indices, key=lambda i: self.clips.num_samples[i], reverse=True):
            longest = self.clips.num_samples[batches[-1][0]] if batches else 0
            if not batches or (len(batches[-1]) + 1) * longest > BATCH_SECONDS * SAMPLING_RATE:
                batches.append([])
            batches[-1].append(i)
        return batches

    def _encode(self, batch: list[int]) -> dict[int, Tensor]:
        """Features, as they are stored, of those clips of a batch that can be decoded."""
        examples = {i: self.clips[i] for i in batch}
        self._bad |= {i for i, example in examples.items() if example is None}
        waveforms = {i: example["input_values"] for i, example in examples.items() if example is not None}
        if not waveforms:
            return {}
        encoded = self.encoder(list(waveforms.values()))
        if self.pooled:
            features = [states.float().mean(1).cpu() for states in encoded]
        else:
            features = [_compact(states).cpu().contiguous() for states in encoded]
        return dict(zip(waveforms, features))


def clip_keys(clips: LabelledClips) -> list[str]:
    """A hash of each clip: its encoded bytes, its place in the file, its length in samples."""
    return [_clip_key(clips.clip(i), clips.num_samples[i]) for i in range(len(clips))]


def _clip_key(clip: Clip, num_samples: int) -> str:
    content = _hash(clip.audio) if isinstance(clip.audio, bytes) else _file_hash(clip.audio)
    return _hash(content, repr((clip.offset, clip.duration, num_samples)))


@lru_cache(maxsize=1024)  # manifests cut many clips out of one file
def _file_hash(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(*parts: str | bytes | np.ndarray) -> str:
    digest = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        digest.update(str(len(part) if isinstance(part, bytes) else part.shape).encode())
        digest.update(part)
    return digest.hexdigest()[:32]


def _compact(states: Tensor) -> Tensor:
    half = states.half()
    return half if half.isfinite().all() else states.float()
