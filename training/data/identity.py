"""Identity of data, to see cheaply whether they have changed: names and sizes of files, samples of their content.

What a copy to another disk changes (folders, times) does not count. Rows of manifests and shards that are reordered or
replaced are noticed, and in a folder of audio labels that are read; a file there that is replaced by one of the same
name and size is not.
"""

import glob
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, IterableDataset

from training.data.archives import TarArchives
from training.data.clips import Sample
from training.data.folders import Files
from training.data.manifest import JsonLines


BLOCK = 1 << 20  # bytes
WHOLE = 256 * BLOCK  # bytes of a manifest that are all looked at; of a longer one as many, evenly spread
FILES_LOOKED_AT = 1000
SHARD_BLOCKS, SHARD_BLOCK = 16, 4096  # of each shard: their number, and bytes
COMMIT = re.compile(r"\b[0-9a-f]{40}\b")


def identify(spec: str, dataset: Dataset | IterableDataset | TarArchives | Sequence[Sample]) -> str:
    """A checksum of what has been opened, `spec` being by what; of data on the Hub, their revision."""
    if isinstance(dataset, JsonLines):
        return _of_file(Path(dataset.path), WHOLE // BLOCK, BLOCK)
    path = Path(spec.split("::")[0]).expanduser()
    if isinstance(dataset, Files):  # a folder of audio
        return _of_folder(dataset, os.path.abspath(path))
    files = [str(path)] if path.exists() else matches(path)
    shards = [p for f in files for p in (Path(f).rglob("*") if Path(f).is_dir() else [Path(f)]) if p.is_file()]
    shards = [str(p) for p in shards if p.suffix in (".parquet", ".tar")]
    if not shards:
        return " ".join(sorted(_revisions(dataset)))
    return _of_files(sorted(shards), os.path.commonpath(list(map(os.path.dirname, shards))), blocks=SHARD_BLOCKS)


def _of_folder(files: Files, root: str) -> str:
    """The same of a folder of audio, with its labels if they are read."""
    paths, labelled = [], 0
    for clip, labels in files:
        paths.append(clip.audio if isinstance(clip.audio, str) else clip.name)
        if labels:
            labelled = zlib.crc32(ascii(labels).encode(), labelled)
    return _of_files(paths, root, blocks=0) + (f":{labelled:08x}" if labelled else "")


def _revisions(dataset: Dataset | IterableDataset) -> set[str]:
    """The commits of data on the Hub, which the paths of their Arrow copy, or of what a stream reads, contain."""
    if isinstance(dataset, Dataset):
        return set(COMMIT.findall(str(dataset.cache_files)))
    layers = [dataset._ex_iterable]
    for layer in layers:  # which grow
        layers += getattr(layer, "ex_iterables", [])
        layers += [layer.ex_iterable] if hasattr(layer, "ex_iterable") else []
    return set(COMMIT.findall(str([getattr(layer, "kwargs", "") for layer in layers])))


def _of_files(paths: Sequence[str], root: str, blocks: int) -> str:
    """Checksum of the names below `root`, and of size and some blocks of at most a thousand of the files."""
    total = 0
    for path in paths:
        total = zlib.crc32(os.path.relpath(path, root).encode("utf-8", "surrogateescape"), total)
    for number in np.unique(np.linspace(0, len(paths) - 1, FILES_LOOKED_AT).round().astype(int)) if paths else []:
        total = zlib.crc32(_of_file(Path(paths[number]), blocks, SHARD_BLOCK).encode(), total)
    return f"{len(paths)}:{total:08x}"


def _of_file(path: Path, blocks: int, block: int) -> str:
    """Size of a file, and checksum of so many blocks of it, its first and last among them."""
    try:
        size, total = path.stat().st_size, 0
        if blocks:
            with path.open("rb") as file:
                for start in _starts(size, blocks, block):
                    file.seek(start)
                    total = zlib.crc32(file.read(block), total)
    except OSError:  # a bad clip, which whoever reads it reports
        return "absent"
    return f"{size}:{total:08x}"


def _starts(size: int, blocks: int, block: int) -> Iterable[int]:
    """Where the blocks of a file of that size begin: all there are, or `blocks` of them evenly spread."""
    if size <= blocks * block:
        return range(0, size, block)
    return np.linspace(0, size - block, blocks).astype(int).tolist()


def matches(pattern: Path) -> list[str]:
    """The files that a pattern matches, sorted; brackets in folders that exist are part of their names."""
    folder = next(parent for parent in pattern.parents if parent.exists())
    rest = str(pattern.relative_to(folder))
    return sorted(glob.glob(os.path.join(glob.escape(str(folder)), rest), recursive=True))
