"""Identity of data, to see cheaply whether they have changed: names and sizes of files, samples of their content.

What a copy to another disk changes (folders, times) does not count. Rows of manifests and shards that are reordered or
replaced are noticed; in a folder of audio a file that is replaced by one of the same name and size is not.
"""

import os
import zlib
from collections.abc import Iterable, Sequence
from glob import glob
from pathlib import Path

import numpy as np

from training.data.clips import Clip, Source
from training.data.folders import Files
from training.data.manifest import JsonLines


BLOCK = 1 << 20  # bytes
WHOLE = 256 * BLOCK  # bytes of a manifest that are all looked at; of a longer one as many, evenly spread
FILES_LOOKED_AT = 1000
SHARD_BLOCKS, SHARD_BLOCK = 16, 4096  # of each shard: their number, and bytes


def identity(spec: str, source: Source) -> str:
    """
    A checksum of an opened source, `spec` being what it was opened by. Of data on the Hub it knows the columns alone.
    """
    if isinstance(source.dataset, JsonLines):
        return of_file(Path(source.dataset.path), WHOLE // BLOCK, BLOCK)
    path = Path(spec.split("::")[0]).expanduser()
    if isinstance(source.dataset, Files):  # a folder of audio
        return of_files([_path(clip) for clip, _ in source.samples()], os.path.abspath(path), blocks=0)
    files = [str(path)] if path.exists() else glob(str(path), recursive=True)
    shards = [p for f in files for p in (Path(f).rglob("*") if Path(f).is_dir() else [Path(f)]) if p.is_file()]
    shards = [str(p) for p in shards if p.suffix in (".parquet", ".tar")]
    root = os.path.commonpath([os.path.dirname(shard) for shard in shards]) if shards else ""
    return of_files(sorted(shards), root, blocks=SHARD_BLOCKS)


def _path(clip: Clip) -> str:
    """The file of a clip; of a bad row the place where it stands."""
    return clip.audio if isinstance(clip.audio, str) else clip.name


def of_files(paths: Sequence[str], root: str, blocks: int) -> str:
    """Checksum of the names below `root`, and of size and some blocks of at most a thousand of the files."""
    total = 0
    for path in paths:
        total = zlib.crc32(os.path.relpath(path, root).encode("utf-8", "surrogateescape"), total)
    for number in np.unique(np.linspace(0, len(paths) - 1, FILES_LOOKED_AT).round().astype(int)) if paths else []:
        total = zlib.crc32(of_file(Path(paths[number]), blocks, SHARD_BLOCK).encode(), total)
    return f"{len(paths)}:{total:08x}"


def of_file(path: Path, blocks: int, block: int) -> str:
    """Size of a file, and checksum of so many blocks of it, its first and last among them."""
    try:
        size, total = path.stat().st_size, 0
        if blocks:
            with path.open("rb") as file:
                for start in starts(size, blocks, block):
                    file.seek(start)
                    total = zlib.crc32(file.read(block), total)
    except OSError:  # a bad clip, which whoever reads it reports
        return "absent"
    return f"{size}:{total:08x}"


def starts(size: int, blocks: int, block: int) -> Iterable[int]:
    """Where the blocks of a file of that size begin: all there are, or `blocks` of them evenly spread."""
    if size <= blocks * block:
        return range(0, size, block)
    return np.linspace(0, size - block, blocks).astype(int).tolist()
