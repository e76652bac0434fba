"""The pretraining loader against bare decoding of the same files, and crops against decoding a whole hour.

    python -m benchmarks.loader --speech ../shared/speech/librispeech_train_clean_5/validation

Speech is written as FLAC, Opus, WAV and MP3 (16 kHz, mono), and of these FLAC and WAV files Parquet and tar archives,
all in a temporary folder. First table: the time of one core for an hour of audio, `soundfile.read` and the loader
taking turns, the loader's as a share of the other. It reads a folder (headers and all), a manifest that gives the
durations, or shards as a stream. It does so in this process, and manifest or shards also in a worker, whose time is
told apart from that of this process, which takes the batches. Last column: hours of audio a second that 16 such
workers would feed if nothing held them up, an estimate. Second table: 10 s read out of one file of an hour, at a given
offset and at a random place, against decoding that hour.
"""

import cProfile
import io
import itertools
import json
import pstats
import resource
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import numpy as np
import soundfile
import torch
from torch.utils.data import DataLoader

from sjepa_hf.command import CommandParser, command
from sjepa_hf.frames import SAMPLING_RATE
from training.common.memory import keep_freed_memory
from training.data.arguments import DataArguments
from training.data.loader import build_loader
from training.data.waveforms import AUDIO_SUFFIXES, read_audio


FORMATS = {  # suffix: what soundfile calls it
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "mp3": {"format": "MP3"},
}
LONGEST = 60.0  # seconds; no clip is cropped
CORES = 16  # that are estimated
TURN = 4.0  # seconds of bare decoding for which a worker passes over the data, having been started once
SHARDS = 4


def write_audio(path: Path, samples: np.ndarray) -> None:
    with soundfile.SoundFile(path, "w", SAMPLING_RATE, 1, **FORMATS[path.suffix[1:]]) as file:
        for piece in np.split(samples, range(SAMPLING_RATE, len(samples), SAMPLING_RATE)):  # Opus takes no long ones
            file.write(piece)


def write_manifest(folder: Path) -> Path:
    paths = sorted(folder.iterdir())
    lines = [{"audio_filepath": str(path), "duration": soundfile.info(path).duration} for path in paths]
    manifest = folder.with_suffix(".jsonl")
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return manifest


def write_shards(folder: Path) -> dict[str, str]:
    """Parquet of the FLAC files and archives of the WAV files, by the names of their rows in the table."""
    flac, wav = (sorted((folder / suffix).iterdir()) for suffix in ("flac", "wav"))
    for number in range(SHARDS):
        cells = [{"path": path.name, "bytes": path.read_bytes()} for path in flac[number::SHARDS]]
        datasets.Dataset.from_dict({"audio": cells}).to_parquet(folder / f"{number}.parquet")
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for path in wav[number::SHARDS]:
                archive.add(path, path.name)
    return {"flac in parquet": f"{folder}/*.parquet", "wav in tar": f"{folder}/*.tar"}


def core_seconds(function: Callable, *values, **options) -> float:
    start = time.process_time()
    function(*values, **options)
    return time.process_time() - start


def decode(files: Sequence[Path | bytes]) -> None:
    for file in files:
        soundfile.read(io.BytesIO(file) if isinstance(file, bytes) else file, dtype="float32")


def loader_of(source: str, num_workers: int = 0, max_epochs: int = 1) -> DataLoader:
    streaming = source.endswith((".tar", ".parquet"))
    args = DataArguments([source], max_seconds=LONGEST, num_workers=num_workers, streaming=streaming)
    return build_loader(args, max_epochs=max_epochs)


def load(loader: DataLoader) -> None:
    for batch in loader:
        if batch["skipped"]:
            raise ValueError(f"Not every clip was used: {batch['skipped']}")


def worker_seconds(source: str, passes: int) -> tuple[float, float]:
    """Seconds of a worker's core and of this one, for a pass over the data."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    here = core_seconds(load, loader_of(source, num_workers=1, max_epochs=passes))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # the worker has ended
    there = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return there / passes, here / passes


def ways_here(source: str, folder: Path | None = None) -> dict[str, Callable[[], None]]:
    """Passes over the data in this process, by column of the table; those of a folder and its list, or of a stream."""
    ways = {"listed": lambda: load(loader_of(source))}
    if folder is not None:
        ways["folder"] = lambda: load(loader_of(str(folder)))
    return ways


def compare_loader(folder: Path, repeats: int, profile: bool) -> None:
    print(f"{'':16s} {'bare,':>8s} here, as a share of bare   {'by a worker, and':>16s} {'16 cores,':>9s}")
    columns = ("folder", "listed", "worker", "here")
    print(f"{'':16s} {'ms/hour':>8s} {' '.join(f'{column:>8s}' for column in columns)} {'hours/s':>9s}")
    shards = write_shards(folder)
    for name in (*FORMATS, *shards):
        files = sorted((folder / name.partition(" ")[0]).iterdir())
        hours = sum(soundfile.info(file).duration for file in files) / 3600
        if name in FORMATS:
            source, bare = str(write_manifest(folder / name)), files
            ways = ways_here(source, folder / name)
        else:
            source, bare = shards[name], [file.read_bytes() for file in files]
            ways = ways_here(source)
        passes = max(1, round(TURN / core_seconds(decode, bare)))
        seconds = {column: [] for column in ("bare", *columns)}
        for turn in range(repeats + 1):
            spent = {"bare": core_seconds(decode, bare)} | {way: core_seconds(call) for way, call in ways.items()}
            spent["worker"], spent["here"] = worker_seconds(source, passes)
            for column in spent if turn else ():  # the first is to warm up
                seconds[column].append(spent[column])
        median = {column: statistics.median(values) for column, values in seconds.items() if values}
        shares = (f"{median[way] / median['bare']:8.2f}" if way in median else " " * 8 for way in columns)
        line = f"{name:16s} {1000 * median['bare'] / hours:8.0f} {' '.join(shares)}"
        print(f"{line} {CORES * hours / median['worker']:9.1f}", flush=True)
        if profile:
            profiler = cProfile.Profile()
            profiler.runcall(load, loader_of(source))
            pstats.Stats(profiler).sort_stats("tottime").print_stats(20)


def compare_crops(folder: Path, samples: np.ndarray, repeats: int) -> None:
    print(f"{'ms of one core':22s} {'an hour':>8s} {'at offset':>9s} {'ratio':>7s} {'at random':>9s} {'ratio':>7s}")
    for suffix in FORMATS:
        path = folder / f"hour.{suffix}"
        write_audio(path, samples)
        rng = np.random.default_rng(0)
        seconds = {"an hour": [], "at offset": [], "at random": []}
        for _ in range(repeats):
            seconds["an hour"].append(core_seconds(decode, [path]))
            for offset in rng.uniform(0.0, len(samples) / SAMPLING_RATE - 10.0, size=5):
                seconds["at offset"].append(core_seconds(read_audio, path, offset=offset, duration=10.0))
                seconds["at random"].append(core_seconds(read_audio, path, max_seconds=10.0, rng=rng))
        whole, *crops = (statistics.median(values) * 1000 for values in seconds.values())
        print(f"{suffix:22s} {whole:8.0f} " + " ".join(f"{ms:9.2f} {ms / whole:7.4f}" for ms in crops), flush=True)


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("--speech", type=Path, required=True, help="folder of audio files")
    parser.add_argument("--clips", type=int, default=200, help="files of it to use")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="print where the loader's time goes")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()  # as training on a CPU does, for all that is compared
    paths = sorted(path for path in arguments.speech.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    clips = [read_audio(path) for path in paths[: arguments.clips]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        datasets.config.HF_DATASETS_CACHE = folder / "cache"
        for suffix in FORMATS:
            (folder / suffix).mkdir()
            for number, clip in enumerate(clips):
                write_audio(folder / suffix / f"{number:05d}.{suffix}", clip)
        compare_loader(folder, arguments.repeats, arguments.profile)
        hour, total = [], 0
        for clip in itertools.cycle(clips):
            if total >= 3600 * SAMPLING_RATE:
                break
            hour.append(clip)
            total += len(clip)
        compare_crops(folder, np.concatenate(hour)[: 3600 * SAMPLING_RATE], max(1, arguments.repeats // 2))


if __name__ == "__main__":
    main()
