"""Packing: clips as FLAC or Opus, 16 kHz mono, in shards of Parquet or tar, each read back after it was encoded."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from sjepa_hf.frames import SAMPLING_RATE
from training.corpus.reading import Row
from training.data.sources import PACKED_NAMES
from training.data.waveforms import SILENCE, BadAudio, read_audio


PACKED_COLUMNS = ("audio", *PACKED_NAMES, "seconds")
WHISPER = 2 * SILENCE  # peak to peak; of a clip below it 16 bits could leave what counts as silent: it has 24
OPUS_RATES = (6, 256)  # kbit/s that libsndfile's compression level runs over
ROWS_A_GROUP = 100


class Packed(NamedTuple):
    """
    An encoded clip: its bytes and seconds, whether it is the source sample for sample, whether it was clipped at full
    scale, and the energies of the source and of what the packed one differs by.
    """

    content: bytes
    seconds: float
    exact: bool
    clipped: bool
    energy: float
    error: float


def pack_clip(samples: np.ndarray, codec: str, kbits: float) -> Packed:
    """
    Encode samples `(num_samples,)` in float32, and read them back. FLAC holds 16 bits a sample, 24 of the softest
    clips, to which they are rounded; what passes full scale is clipped there.

    Raises:
        BadAudio: if the encoded clip does not come back as it must: FLAC bit for bit, Opus at its length.
    """
    file = io.BytesIO()
    if codec == "flac":
        bits = 24 if np.ptp(samples) < WHISPER else 16
        scale = 2 ** (bits - 1)
        rounded = np.clip(np.rint(samples * scale), -scale, scale - 1).astype(np.int32)
        soundfile.write(file, rounded << 32 - bits, SAMPLING_RATE, format="FLAC", subtype=f"PCM_{bits}")
    else:
        low, high = OPUS_RATES
        level = 1 - (kbits - low) / (high - low)
        soundfile.write(file, samples, SAMPLING_RATE, format="OGG", subtype="OPUS", compression_level=level)
    content = file.getvalue()
    again = read_audio(content, silence=True)
    if codec == "flac" and not np.array_equal(again, rounded.astype(np.float32) / scale):
        raise BadAudio("corrupt", "FLAC does not come back as it was written")
    if len(again) != len(samples):
        raise BadAudio("corrupt", f"{len(samples)} samples have become {len(again)}")
    wrong = float(np.square(again - samples, dtype=np.float64).sum())
    energy = float(np.square(samples, dtype=np.float64).sum())
    clipped = codec == "flac" and float(np.abs(samples).max()) > 1
    return Packed(content, len(samples) / SAMPLING_RATE, wrong == 0, clipped, energy, wrong)


def pack_row(row: Row, codec: str, kbits: float) -> Packed | BadAudio:
    """A clip of a corpus, encoded, or what is wrong with it. Silence that has a label is data: it may be a class."""
    try:
        return pack_clip(row.clip.read(silence=any(row.labels.values())), codec, kbits)
    except BadAudio as error:
        return error


def write_packed(
    folder: Path,
    name: str,
    kind: str,
    codec: str,
    rows: Sequence[Row],
    packed: Sequence[Packed],
    columns: Sequence[str],
) -> None:
    """
    A shard as NAME.parquet, with a column `audio` as `datasets` writes it, or as NAME.tar in the WebDataset format:
    for each clip NUMBER.flac or .opus, and NUMBER.json with its name, source, seconds and labels. No file without a
    clip: `datasets` does not stream Parquet that has no row.
    """
    if not packed:
        return
    described = [
        {
            "name": row.clip.name,
            "source": row.source,
            "seconds": each.seconds,
            **{c: row.labels.get(c) for c in columns},
        }
        for row, each in zip(rows, packed)
    ]
    paths = [f"{row.number:09d}.{codec}" for row in rows]
    if kind == "tar":
        with tarfile.open(folder / f"{name}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for path, each, facts in zip(paths, packed, described):
                _add(tar, path, each.content)
                record = json.dumps(facts, ensure_ascii=False).encode(errors="backslashreplace")
                _add(tar, path.replace(codec, "json"), record)
        return
    features = {"audio": datasets.Audio(sampling_rate=SAMPLING_RATE)}
    features |= {key: datasets.Value("string") for key in (*PACKED_NAMES, *columns)}
    features["seconds"] = datasets.Value("float64")
    audio = [{"bytes": each.content, "path": path} for path, each in zip(paths, packed)]
    schema = datasets.Features(features).arrow_schema
    arrays = {key: [facts[key] for facts in described] for key in features if key != "audio"}
    table = pa.table({"audio": pa.array(audio, schema.field("audio").type), **arrays}, schema=schema)
    pq.write_table(table, folder / f"{name}.parquet", row_group_size=ROWS_A_GROUP, compression="none")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """A file without time or owner, so that the same clips make the same archive."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    tar.addfile(info, io.BytesIO(content))
