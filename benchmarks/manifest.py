"""What it costs to open and to read a JSONL manifest of ten million rows, beside one of a thousand.

    python -m benchmarks.manifest --speech ../shared/speech/keywords [--rows 10000000] [--reads 100000]

Writes both manifests, which name the audio files of the folder again and again, into a temporary folder. Opens and
reads each in a process of its own, the file being in the page cache. Memory is the peak of the whole process.
"""

import argparse
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sjepa_hf.command import command
from training.data.sources import AUDIO_SUFFIXES, open_source


def write_manifest(path: Path, files: list[Path], num_rows: int) -> None:
    """`num_rows` rows, about 130 bytes each."""
    with path.open("w") as manifest:
        for row in range(num_rows):
            file = str(files[row % len(files)])
            entry = {"audio_filepath": file, "offset": row % 7 / 4, "duration": 2.0, "speaker": row % 1000}
            manifest.write(json.dumps(entry) + "\n")


def measure(path: str, reads: int) -> dict[str, float]:
    """Open a manifest and read rows at random places, in this process."""
    started = time.perf_counter()
    source = open_source(path)
    opened = time.perf_counter()
    after_opening = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    order = np.random.default_rng(0).integers(len(source.dataset), size=reads)
    reading = time.perf_counter()
    for number in order:
        source.clip(source.dataset[number], number)
    read = time.perf_counter()
    return {
        "seconds to open": opened - started,
        "peak MiB after opening": after_opening,
        "peak MiB after reading": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "pickled KiB": len(pickle.dumps(source)) / 1024,
        "random rows a second": reads / (read - reading),
    }


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, help="folder with audio files to name")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--reads", type=int, default=100_000, help="rows read at random places")
    parser.add_argument("--scratch", type=Path, help="where to write; 130 bytes a row are needed")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # the manifest that a process of its own measures
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.reads)))
        return
    if not arguments.speech:
        parser.error("--speech is needed")
    files = sorted(p.resolve() for p in arguments.speech.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
    found = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        for rows in (1000, arguments.rows):
            path = Path(folder) / f"{rows}.jsonl"
            write_manifest(path, files, rows)
            command = [sys.executable, "-m", "benchmarks.manifest", "--measure", str(path)]
            answer = subprocess.run([*command, "--reads", str(arguments.reads)], check=True, stdout=subprocess.PIPE)
            found.append(json.loads(answer.stdout))
            print(f"{rows} rows, {os.path.getsize(path) / 2**20:.1f} MiB")
    print(f"{'':24s} {1000:>12d} {arguments.rows:>12d} {'difference':>12s}")
    for name, few in found[0].items():
        many = found[1][name]
        print(f"{name:24s} {few:12.2f} {many:12.2f} {many - few:12.2f}")


if __name__ == "__main__":
    main()
