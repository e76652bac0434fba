"""Files and manifests with faults in them, through every way that audio takes: each ends in samples or in `BadAudio`.

    python -m benchmarks.fuzz_audio --files 1000 --manifests 200 --output fuzz.json

Speech-like sound is written as WAV, FLAC, Ogg Vorbis, Opus, MP3 and AIFF; each file is then changed by a seeded fault:
flipped bits in the header or anywhere, a field of the header set to an extreme value, a piece cut off, cut out,
doubled or taken from another file. A process with little memory reads it whole and in crops, from its path and from
its bytes, and as the page does. Manifests with hostile paths and changed lines go through the loader of pretraining.
What raises anything but `BadAudio` (the page: ValueError), takes longer than `--seconds` or more than 1.5 GiB is a
fault, and ends the command with status 1.
"""

import io
import json
import logging
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile

from sjepa_hf.command import CommandParser, command
from training.data.arguments import DataArguments
from training.data.bad_audio import BadAudioError
from training.data.loader import build_loader
from training.data.waveforms import BadAudio, audio_length, read_audio


KINDS = {
    "pcm.wav": ("WAV", "PCM_16", 16000),
    "float.wav": ("WAV", "FLOAT", 44100),
    "a.flac": ("FLAC", "PCM_16", 16000),
    "vorbis.ogg": ("OGG", "VORBIS", 16000),
    "a.opus": ("OGG", "OPUS", 16000),
    "a.mp3": ("MP3", None, 22050),
    "a.aiff": ("AIFF", "PCM_16", 8000),
}
FAULTS = ("bits of the header", "bits", "field", "cut off", "cut out", "doubled", "of another file")
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE)
PAGE = Path(__file__).parents[1] / "model_cards" / "space"
MEMORY = 3 << 29  # bytes beyond what the process has at its start
LINES = (
    '{"wav_path": %s}',
    '{"audio_filepath": %s, "offset": 0.1, "duration": 0.3}',
    '{"wav_path": %s, "offset": 1e8}',
    '{"wav_path": %s, "duration": 999999}',
    '{"wav_path": %s, "duration": 1e-9}',
)
PATHS = (
    "/dev/zero",
    "file:///dev/zero",
    "simplecache::file:///dev/zero",
    "zip://a::file:///dev/zero",
    "memory://a",
    "",
)


def originals(seconds: float = 2.0) -> dict[str, bytes]:
    """Files of every kind, by name."""
    found = {}
    for name, (kind, subtype, rate) in KINDS.items():
        place = np.arange(round(seconds * rate)) / rate
        sound = 0.3 * np.sin(2 * np.pi * (200 * place + 10 * np.sin(5 * place))) * (1.1 + np.sin(9 * place)) / 2
        sound += 0.01 * np.random.default_rng(0).standard_normal(len(place))
        file = io.BytesIO()
        soundfile.write(file, sound, rate, format=kind, subtype=subtype)
        found[name] = file.getvalue()
    return found


def mutated(files: dict[str, bytes], number: int) -> tuple[str, bytes]:
    """File `number`: what was done to which, and its content."""
    rng = np.random.default_rng([2026, number])
    name = list(files)[number % len(files)]
    fault = FAULTS[number // len(files) % len(FAULTS)]
    content = bytearray(files[name])
    start, end = sorted(rng.integers(0, len(content), 2).tolist())
    if fault.startswith("bits"):
        reach = 100 if "header" in fault else len(content)
        for place in rng.integers(0, reach, int(rng.integers(1, 9))):
            content[place] ^= 1 << int(rng.integers(8))
    elif fault == "field":
        width, place = int(rng.choice([1, 2, 4])), int(rng.integers(0, 64))
        value = int(rng.choice(EXTREMES)) & (1 << 8 * width) - 1
        content[place : place + width] = value.to_bytes(width, str(rng.choice(["big", "little"])))
    elif fault == "cut off":
        del content[end:]
    elif fault == "cut out":
        del content[start:end]
    elif fault == "doubled":
        content[end:end] = content[start:end]
    else:
        content[start:end] = files[str(rng.choice(list(files)))][start:end]
    return f"{name}: {fault}", bytes(content)


def ways(page) -> dict:
    """Every way to read a path; each returns samples."""
    rng = np.random.default_rng(0)
    return {
        "length": lambda path: np.zeros(min(audio_length(path), 1)),
        "whole": read_audio,
        "bytes": lambda path: read_audio(Path(path).read_bytes()),
        "crop": lambda path: read_audio(path, max_seconds=0.5, rng=rng),
        "segment": lambda path: read_audio(path, offset=0.3, duration=0.4),
        "page": lambda path: page(path).samples,
    }


def read_files(numbers: range, folder: str, queue) -> None:
    """Worker: read mutated files and report of each reading: number, what, way, outcome, seconds, most bytes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the decoders' own complaints
    sys.path.insert(0, str(PAGE))
    from listening import read_clip

    files = originals()
    read_audio(files["a.mp3"])  # whatever is loaded late is
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
    for number in numbers:
        what, content = mutated(files, number)
        path = Path(folder) / f"{number}.{what.partition(':')[0].rpartition('.')[2]}"
        path.write_bytes(content)
        for way, read in ways(read_clip).items():
            queue.put((number, what, way, "started", 0.0, 0))
            start = time.monotonic()
            try:
                samples = read(str(path))
                fine = np.isfinite(samples).all() and (not len(samples) or np.abs(samples).max() < 1000)
                outcome = "samples" if fine and len(samples) < 1e7 else "ERROR: no sound"
            except BadAudio as error:
                outcome = error.reason
            except ValueError as error:
                outcome = "sentence" if way == "page" else f"ERROR: {error!r}"
            except BaseException:
                outcome = "ERROR: " + traceback.format_exc().strip().splitlines()[-1]
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
            queue.put((number, what, way, outcome, time.monotonic() - start, peak))
        path.unlink()
    queue.put(None)


def read_manifest(number: int, folder: Path, clips: list[str]) -> str:
    """What the loader of pretraining makes of manifest `number`; every fourth has bytes changed, too."""
    rng = np.random.default_rng([2027, number])
    lines = [str(rng.choice(LINES)) % json.dumps(str(rng.choice(clips))) for _ in range(12)]
    content = bytearray("\n".join(lines), "utf-8")
    if number % 4 == 0:
        for place in rng.integers(0, len(content), 1 + number % 3):
            content[place] = int(rng.integers(256))
    path = folder / f"{number}.jsonl"
    path.write_bytes(content)
    data = DataArguments(
        train_data=[str(path)], num_workers=0, max_seconds=1.0, batch_seconds=4.0, streaming=bool(number % 2)
    )
    try:
        batches = list(build_loader(data, max_epochs=1))
    except (ValueError, OSError) as error:
        return "refused" if str(error) else f"ERROR: {error!r}"
    except BadAudioError:
        return "no usable clip"
    except Exception:
        return "ERROR: " + traceback.format_exc().strip().splitlines()[-1]
    bad = any(not batch["input_values"].isfinite().all() for batch in batches)
    return "ERROR: not finite" if bad else "batches"


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--manifests", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=5.0, help="for one reading")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    outcomes, faults, longest, most, base = Counter(), [], (0.0, ""), 0, None
    with tempfile.TemporaryDirectory() as name:
        queue, at, last = multiprocessing.get_context("spawn").Queue(), 0, None
        while at < arguments.files:
            worker = multiprocessing.get_context("spawn").Process(
                target=read_files, args=(range(at, arguments.files), name, queue), daemon=True
            )
            worker.start()
            while True:
                try:
                    report = queue.get(timeout=arguments.seconds + (60 if last is None else 0))
                except Exception:  # nothing came: it hangs or is dead
                    faults.append((*last[:3], "HANGS" if worker.is_alive() else f"DIED, {worker.exitcode}"))
                    worker.kill()
                    at, last = last[0] + 1, None
                    break
                if report is None:
                    at = arguments.files
                    break
                last = report
                number, what, way, outcome, seconds, peak = report
                if outcome == "started":
                    continue
                outcomes[f"{way}: {outcome}"] += 1
                base = base or peak
                longest, most = max(longest, (seconds, f"{number} {what} {way}")), max(most, peak - base)
                if outcome.startswith("ERROR"):
                    faults.append((number, what, way, outcome))
            worker.join(5)
        files, clips = originals(), list(PATHS)
        for number in range(60):
            clips.append(f"{name}/{number}.{list(files)[number % len(files)]}")
            Path(clips[-1]).write_bytes(mutated(files, number)[1])
        for number in range(arguments.manifests):
            start = time.monotonic()
            outcome = read_manifest(number, Path(name), clips)
            outcomes[f"manifest: {outcome}"] += 1
            longest = max(longest, (time.monotonic() - start, f"manifest {number}"))
            if outcome.startswith("ERROR"):
                faults.append((number, "manifest", "loader", outcome))
    result = {
        "outcomes": dict(sorted(outcomes.items())),
        "faults": faults,
        "longest": longest,
        "most MiB beyond the first reading": most >> 20,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    sys.exit(1 if faults or longest[0] > arguments.seconds else 0)


if __name__ == "__main__":
    main()
