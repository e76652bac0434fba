"""Clips of two voices that differ in pitch, with labels and phones."""

import csv
from pathlib import Path

import numpy as np
import soundfile


def tone(pitch: float, seconds: float, rng) -> np.ndarray:
    samples = 0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * 16000)) / 16000)
    return samples + 0.01 * rng.normal(size=len(samples))


def write_voices(path: Path) -> Path:
    """
    Sixteen clips of two voices (two pitches); each clip is a low phone, a high one and a low one. `mood` is noise, one
    clip has no voice written on it and one a voice of its own.
    """
    rng, rows = np.random.default_rng(0), []
    path.mkdir()
    for i in range(16):
        base = 200 if i % 2 else 500
        ends = np.cumsum(rng.uniform(0.1, 0.2, 3))
        pieces = [tone(base * k, end, rng) for k, end in zip((1, 4, 1), np.diff(ends, prepend=0))]
        soundfile.write(path / f"{i}.wav", np.concatenate(pieces), 16000)
        row = {"file_name": f"{i}.wav", "voice": "ab"[i % 2], "mood": "xy"[int(rng.integers(2))]}
        rows.append(row | {"phones": "LO HI LO", "phone_ends": " ".join(f"{end:.3f}" for end in ends)})
    rows[3]["voice"], rows[4]["voice"] = "", "alone"
    write_metadata(path, rows)
    return path


def write_metadata(folder: Path, rows: list[dict]) -> None:
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def edit(folder: Path, **columns: str) -> None:
    """Give every clip these labels."""
    with open(folder / "metadata.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    write_metadata(folder, [row | columns for row in rows])
