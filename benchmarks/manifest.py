"""What it costs to open and to read a JSONL manifest of ten million rows, beside one of a thousand.

    python -m benchmarks.manifest --speech ../shared/speech/keywords [--rows 10000000] [--reads 100000]

Writes both manifests, which name the audio files of the folder again and again and give durations, into a temporary
folder. Opens each in a process of its own, the file being in the page cache, reads rows at random places, and has two
workers of the pretraining loader decode clips. Memory is what the process, or a worker, holds for itself.
"""

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from sjepa_hf.command import CommandParser, command
from training.data.arguments import DataArguments
from training.data.loader import build_loader
from training.data.sources import open_source
from training.data.waveforms import AUDIO_SUFFIXES


WORKERS = 2


def write_manifest(path: Path, files: list[Path], num_rows: int) -> None:
    """`num_rows` rows, about 130 bytes each."""
    with path.open("w") as manifest:
        for row in range(num_rows):
            file = str(files[row % len(files)])
            entry = {"audio_filepath": file, "offset": row % 7 / 8, "duration": 0.5, "speaker": row % 1000}
            manifest.write(json.dumps(entry) + "\n")


def measure(path: str, reads: int, clips: int) -> dict[str, float]:
    """Open a manifest, read rows at random places, and clips by workers; from this process."""
    started = time.perf_counter()
    source = open_source(path)
    opened = time.perf_counter()
    after_opening = own_memory()
    order = np.random.default_rng(0).integers(len(source.dataset), size=reads)
    reading = time.perf_counter()
    for number in order:
        source.clip(source.dataset[number], number)
    read = time.perf_counter()
    return {
        "seconds to open": opened - started,
        "MiB after opening": after_opening,
        "MiB after reading": own_memory(),
        "pickled KiB": len(pickle.dumps(source)) / 1024,
        "random rows a second": reads / (read - reading),
        "MiB of a worker": worker_memory(path, clips),
    }


def worker_memory(path: str, clips: int) -> float:
    """What each worker holds for itself, in MiB, when all have given so many clips."""
    data = DataArguments([path], batch_seconds=30.0, num_workers=WORKERS)
    batches, seen = iter(build_loader(data)), 0
    while seen < clips:
        seen += len(next(batches)["lengths"])
    return sum(own_memory(worker.pid) for worker in batches._workers) / WORKERS


def own_memory(process: int | None = None) -> float:
    """What a process holds for itself, in MiB."""
    return psutil.Process(process).memory_full_info().uss / 2**20


def in_a_process(path: Path, arguments: argparse.Namespace) -> dict[str, float]:
    measured = ["--measure", str(path)]
    counts = ["--reads", str(arguments.reads), "--clips", str(arguments.clips)]
    answer = subprocess.run(
        [sys.executable, "-m", "benchmarks.manifest", *measured, *counts], check=True, stdout=subprocess.PIPE
    )
    return json.loads(answer.stdout)


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("--speech", type=Path, help="folder with audio files to name")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--reads", type=int, default=100_000, help="rows read at random places")
    parser.add_argument("--clips", type=int, default=10_000, help="clips decoded by workers")
    parser.add_argument("--scratch", type=Path, help="where to write; 130 bytes a row are needed")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # the manifest that a process of its own measures
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.reads, arguments.clips)))
        return
    if not arguments.speech:
        parser.error("--speech is needed")
    files = sorted(p.resolve() for p in arguments.speech.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
    found = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        for rows in (1000, arguments.rows):
            path = Path(folder) / f"{rows}.jsonl"
            write_manifest(path, files, rows)
            print(f"{rows} rows, {os.path.getsize(path) / 2**20:.1f} MiB")
            found.append(in_a_process(path, arguments))
    print(f"{'':24s} {1000:>12d} {arguments.rows:>12d} {'difference':>12s} {'ratio':>8s}")
    for name, few in found[0].items():
        many = found[1][name]
        print(f"{name:24s} {few:12.2f} {many:12.2f} {many - few:12.2f} {many / few:8.2f}")


if __name__ == "__main__":
    main()
