"""The pretraining loader against bare decoding of the same files, and crops against decoding a whole hour.

    python -m benchmarks.loader --speech ../shared/speech/librispeech_train_clean_5/validation

Speech is written as FLAC, Opus and WAV (16 kHz, mono) into a temporary folder. First table: hours of audio per second
of one core (CPU time of this process), `soundfile.read` and the loader with no workers taking turns over one epoch;
the source is the folder, whose headers are read, or a manifest that gives the durations. Second table: 10 s read out
of one file of an hour, at a given offset and at a random place, against decoding that hour.
"""

import argparse
import cProfile
import itertools
import json
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch

from sjepa_hf.command import command
from sjepa_hf.frames import SAMPLING_RATE
from training.common.memory import keep_freed_memory
from training.data.loader import DataArguments, build_loader
from training.data.sources import AUDIO_SUFFIXES
from training.data.waveforms import read_audio


FORMATS = {  # suffix: what soundfile calls it
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "mp3": {"format": "MP3"},
}
LONGEST = 60.0  # seconds; no clip is cropped


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


def core_seconds(function: Callable, *values, **options) -> float:
    start = time.process_time()
    function(*values, **options)
    return time.process_time() - start


def decode(paths: list[Path]) -> None:
    for path in paths:
        soundfile.read(path, dtype="float32")


def load(source: Path) -> None:
    args = DataArguments([str(source)], max_seconds=LONGEST, num_workers=0)
    for batch in build_loader(args, max_epochs=1):
        if batch["skipped"]:
            raise ValueError(f"Not every clip was used: {batch['skipped']}")


def compare_loader(folder: Path, repeats: int, profile: bool) -> None:
    print(f"{'hours per core-second':22s} {'bare':>8s} {'folder':>8s} {'ratio':>6s} {'manifest':>8s} {'ratio':>6s}")
    for suffix in ("flac", "opus", "wav"):
        paths = sorted((folder / suffix).iterdir())
        hours = sum(soundfile.info(path).duration for path in paths) / 3600
        manifest = write_manifest(folder / suffix)
        ways = {"bare": (decode, paths), "folder": (load, folder / suffix), "manifest": (load, manifest)}
        seconds = {way: [] for way in ways}
        for turn in range(repeats + 1):
            for way, call in ways.items():
                spent = core_seconds(*call)
                if turn:  # the first is to warm up
                    seconds[way].append(spent)
        rate = {way: hours / statistics.median(values) for way, values in seconds.items()}
        line = f"{suffix:22s} {rate['bare']:8.3f}"
        for way in ("folder", "manifest"):
            line += f" {rate[way]:8.3f} {rate[way] / rate['bare']:6.2f}"
        print(line, flush=True)
        if profile:
            profiler = cProfile.Profile()
            profiler.runcall(load, manifest)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        for suffix in ("flac", "opus", "wav"):
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
