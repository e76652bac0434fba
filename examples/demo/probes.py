"""Linear probes: what can be read off a frozen encoder, layer by layer, beside MFCC and the same encoder untrained?

    python -m examples.demo.probes demo-output/model/final --data demo-output/speech/test

phones    the phone at the centre of each 20 ms frame; silence is left out. Fitted on half of the voices, scored on
          the other half (on half of the recordings where only one voice, or no `speaker_id`, is given).
speakers  who speaks, from the mean over a recording's frames. Fitted on half of each voice's recordings, scored on
          the other half.

Both are multinomial logistic regressions on standardised features and report accuracy. The folder needs a
`metadata.csv` with `file_name` and `speaker_id`, or `phones` with `phone_ends` (seconds), or all of them; what is
missing costs the probe that needs it, and is said. Written beside the checkpoint: `probes.md` and `probes.json`.
"""

import argparse
import csv
import json
import re
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from transformers import AutoModel

import sjepa_hf  # noqa: F401  (registers its classes with AutoModel)
from sjepa_hf.command import command
from sjepa_hf.frames import SAMPLING_RATE, frame_centres, frame_lengths
from sjepa_hf.opening import build_model, open_config, open_model
from training.common.device import default_device
from training.data.waveforms import BadAudio, read_audio
from training.targets.frame_features import MfccFeatures


MAX_SECONDS = 20.0  # of one recording
MAX_MINUTES = 15.0  # of all recordings of one probe
MAX_FRAMES = 8000  # of either half of the phone probe
MAX_SPEAKERS, MAX_CLIPS_PER_SPEAKER, MIN_CLIPS_PER_SPEAKER = 60, 24, 4
SILENCES = {"", "sil", "sp", "spn"}

FeatureExtractor = Callable[[np.ndarray], list[np.ndarray]]
"""Samples `[S]` at 16 kHz -> one array `[T, features]` per layer."""


@dataclass(frozen=True)
class Clip:
    """One row of `metadata.csv`."""

    path: Path
    duration: float
    speaker: str | None
    phones: tuple[str, ...]
    phone_ends: tuple[float, ...]


@dataclass
class Probe:
    """One question: `labels[n]` belongs to frame `frames[n]` of `clips[n]`, or to the clip's mean where that is -1."""

    name: str
    description: str
    clips: list[Path]
    frames: np.ndarray
    labels: np.ndarray
    fit: np.ndarray  # True: used to fit, False: used to score

    @property
    def chance(self) -> float:
        """Accuracy of always answering with the commonest label."""
        commonest = Counter(self.labels[self.fit].tolist()).most_common(1)[0][0]
        return float(np.mean(self.labels[~self.fit] == commonest))


def read_clips(folder: str | Path) -> list[Clip]:
    """Reads `metadata.csv`; unlabelled columns stay empty.

    Raises:
        ValueError: there is no `metadata.csv`, or it has no `file_name` column.
    """
    table = Path(folder) / "metadata.csv"
    if not table.is_file():
        raise ValueError(f"{folder} holds no metadata.csv, so there are no labels to probe for.")
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or "file_name" not in rows[0]:
        raise ValueError(f"{table} needs a header with file_name and at least one row.")
    clips = []
    for row in rows:
        phones = tuple((row.get("phones") or "").split())
        ends = tuple(float(end) for end in (row.get("phone_ends") or "").split())
        if len(phones) != len(ends):
            raise ValueError(f"{table}: {row['file_name']} has {len(phones)} phones but {len(ends)} phone_ends.")
        speaker = row.get("speaker_id") or None
        duration = float(row.get("duration") or MAX_SECONDS)
        clips.append(Clip(Path(folder) / row["file_name"], duration, speaker, phones, ends))
    return clips


def spread(items: list, count: int) -> list:
    """At most `count` of the items, evenly spaced."""
    if len(items) <= count:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def frame_phones(clip: Clip, num_frames: int) -> np.ndarray:
    """The phone at the centre of each frame `[num_frames]`; stress digits of ARPAbet vowels are dropped."""
    inside = np.searchsorted(clip.phone_ends, frame_centres(num_frames), side="right")
    phones = [re.sub(r"^([A-Z]{2})[012]$", r"\1", phone) for phone in clip.phones] + ["sil"]
    return np.array(phones, dtype=object)[np.minimum(inside, len(clip.phones))]


def phone_probe(clips: list[Clip], max_frames: int = MAX_FRAMES, seed: int = 0) -> Probe | str:
    """The phone probe over these clips, or the reason why there is none."""
    labelled = [clip for clip in clips if clip.phones]
    if not labelled:
        return "metadata.csv has no phones and phone_ends columns"
    mean_seconds = np.mean([min(clip.duration, MAX_SECONDS) for clip in labelled])
    labelled = spread(labelled, max(2, int(MAX_MINUTES * 60 / mean_seconds)))
    speakers = sorted({clip.speaker for clip in labelled if clip.speaker})
    if len(speakers) >= 2:
        fit_speakers = set(speakers[: len(speakers) // 2])
        in_fit = [clip.speaker in fit_speakers for clip in labelled]
        halves = f"fitted on {len(fit_speakers)} voices, scored on {len(speakers) - len(fit_speakers)} others"
    elif len(labelled) >= 2:
        in_fit = [n % 2 == 0 for n in range(len(labelled))]
        halves = "one voice: fitted on every other recording, scored on the rest"
    else:
        return "it needs at least two recordings with phones"

    owners, frames, labels, fit = [], [], [], []
    for clip, fits in zip(labelled, in_fit):
        num_samples = int(min(clip.duration, MAX_SECONDS) * SAMPLING_RATE)
        phones = frame_phones(clip, frame_lengths(num_samples))
        speech = np.flatnonzero([phone not in SILENCES for phone in phones])
        owners += [clip.path] * len(speech)
        frames.append(speech)
        labels.append(phones[speech])
        fit.append(np.full(len(speech), fits))
    frames, labels, fit = np.concatenate(frames), np.concatenate(labels), np.concatenate(fit)
    rng = np.random.default_rng(seed)
    kept = [rng.permutation(np.flatnonzero(fit == half))[:max_frames] for half in (True, False)]
    if min(map(len, kept)) == 0:
        return "no speech frame is left in one of its halves"
    kept = np.sort(np.concatenate(kept))
    labels, fit = labels[kept].astype(str), fit[kept]
    description = f"{len(set(labels))} phones, {fit.sum():,} frames to fit, {(~fit).sum():,} to score; {halves}"
    return Probe("phones", description, [owners[i] for i in kept], frames[kept], labels, fit)


def speaker_probe(clips: list[Clip]) -> Probe | str:
    """The speaker probe over these clips, or the reason why there is none."""
    by_speaker = defaultdict(list)
    for clip in clips:
        if clip.speaker:
            by_speaker[clip.speaker].append(clip)
    if not by_speaker:
        return "metadata.csv has no speaker_id column"
    enough = [speaker for speaker in sorted(by_speaker) if len(by_speaker[speaker]) >= MIN_CLIPS_PER_SPEAKER]
    if len(enough) < 2:
        return f"it needs two speakers with at least {MIN_CLIPS_PER_SPEAKER} recordings each"
    owners, labels, fit = [], [], []
    for speaker in spread(enough, MAX_SPEAKERS):
        chosen = spread(by_speaker[speaker], MAX_CLIPS_PER_SPEAKER)
        owners += [clip.path for clip in chosen]
        labels += [speaker] * len(chosen)
        fit += [n % 2 == 0 for n in range(len(chosen))]
    fit = np.array(fit)
    description = f"{len(set(labels))} voices, {fit.sum()} recordings to fit, {(~fit).sum()} others to score"
    return Probe("speakers", description, owners, np.full(len(fit), -1), np.array(labels), fit)


def mfcc_features(audio: np.ndarray) -> list[np.ndarray]:
    """13 MFCC with deltas and delta-deltas, over the encoder's own frames: the features of phase 1."""
    return [MfccFeatures()(torch.from_numpy(audio)[None])[0].numpy()]


def encoder_features(model: torch.nn.Module) -> FeatureExtractor:
    """All hidden states of a Transformers audio encoder; layer 0 is what enters the first Transformer layer."""
    device = default_device()
    model = model.eval().float().to(device)

    @torch.inference_mode()
    def extract(audio: np.ndarray) -> list[np.ndarray]:
        output = model(torch.from_numpy(audio)[None].to(device), output_hidden_states=True)
        return [hidden[0].cpu().numpy() for hidden in output.hidden_states]

    return extract


def collect(extract: FeatureExtractor, probes: list[Probe], audio: dict[Path, np.ndarray]) -> list[list[np.ndarray]]:
    """Runs every clip once; returns, for each probe, one array `[labels, features]` per layer."""
    wanted = [defaultdict(list) for _ in probes]
    for probe, of_clip in zip(probes, wanted):
        for n, clip in enumerate(probe.clips):
            of_clip[clip].append(n)
    rows: list[dict[int, list[np.ndarray]]] = [{} for _ in probes]
    for path, layers in _extract_all(extract, audio):
        for probe, of_clip, found in zip(probes, wanted, rows):
            for n in of_clip[path]:
                frame = probe.frames[n]  # clipped: metadata may round a duration up by one frame
                found[n] = [x.mean(axis=0) if frame < 0 else x[min(frame, len(x) - 1)] for x in layers]
    return [
        [np.stack([found[n][layer] for n in range(len(found))]) for layer in range(len(found[0]))] for found in rows
    ]


def _extract_all(extract: FeatureExtractor, audio: dict[Path, np.ndarray]) -> Iterator[tuple[Path, list[np.ndarray]]]:
    """Clips run side by side with one thread each: many threads within one short clip mostly wait for one another."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(num_threads) as pool:
            yield from zip(audio, pool.map(extract, audio.values()))
    finally:
        torch.set_num_threads(num_threads)


def accuracy(probe: Probe, features: np.ndarray, max_iter: int = 100) -> float:
    """Fits the linear classifier on `features [labels, D]` where `probe.fit`, and scores it on the rest."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=max_iter))
    # One thread: these matrices are small, and BLAS threads that wait for one another on a busy machine cost far more.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # enough iterations for a comparison
        classifier.fit(features[probe.fit], probe.labels[probe.fit])
    return float(classifier.score(features[~probe.fit], probe.labels[~probe.fit]))


def read_recordings(probes: list[Probe]) -> dict[Path, np.ndarray]:
    """Decodes every clip that a probe needs; labels of unreadable ones are dropped from the probes."""
    audio = {}
    for path in sorted({clip for probe in probes for clip in probe.clips}):
        try:
            audio[path] = read_audio(path, max_seconds=MAX_SECONDS)
        except BadAudio as error:
            print(f"  {path.name} is left out: {error}")
    for probe in probes:
        kept = np.array([clip in audio for clip in probe.clips])
        probe.clips = [clip for clip in probe.clips if clip in audio]
        probe.frames, probe.labels, probe.fit = probe.frames[kept], probe.labels[kept], probe.fit[kept]
    return audio


def run_probes(checkpoint: str | Path, folder: str | Path, note: str = "") -> dict:
    """Probes MFCC, the untrained encoder (seed 0) and `checkpoint` on the labelled recordings of `folder`.

    Args:
        checkpoint: what `AutoModel.from_pretrained` opens.
        folder: a folder with `metadata.csv`.
        note: a sentence about the recordings for the report, e.g. that pretraining never heard their voices.

    Returns:
        `{"probes": {name: {"description", "chance", "mfcc", "untrained": [per layer], "trained": [per layer]}},
        "unavailable": {name: reason}, "note", "seconds"}`
    """
    start = time.perf_counter()
    results = {"checkpoint": str(checkpoint), "data": str(folder), "note": note, "probes": {}, "unavailable": {}}
    try:
        clips = read_clips(folder)
        candidates = {"phones": phone_probe(clips), "speakers": speaker_probe(clips)}
    except ValueError as error:
        candidates = {"phones": str(error), "speakers": str(error)}
    audio = read_recordings([probe for probe in candidates.values() if isinstance(probe, Probe)])
    for name, probe in candidates.items():
        if isinstance(probe, Probe) and len(set(probe.fit)) < 2:
            candidates[name] = "too few of its recordings can be read"
    probes = [probe for probe in candidates.values() if isinstance(probe, Probe)]
    results["unavailable"] = {name: reason for name, reason in candidates.items() if isinstance(reason, str)}

    if probes:
        config = open_config(checkpoint)
        torch.manual_seed(0)
        untrained = build_model(AutoModel, config, checkpoint)
        trained = open_model(AutoModel, checkpoint)
        extractors = {
            "mfcc": mfcc_features,
            "untrained": encoder_features(untrained),
            "trained": encoder_features(trained),
        }
        scores = {}
        for name, extract in extractors.items():
            for probe, layers in zip(probes, collect(extract, probes, audio)):
                scores[probe.name, name] = [accuracy(probe, features) for features in layers]
        for probe in probes:
            results["probes"][probe.name] = {
                "description": probe.description,
                "chance": probe.chance,
                "mfcc": scores[probe.name, "mfcc"][0],
                "untrained": scores[probe.name, "untrained"],
                "trained": scores[probe.name, "trained"],
            }
    results["seconds"] = round(time.perf_counter() - start, 1)
    return results


def report(results: dict) -> str:
    """The results as a Markdown table that also reads well in a terminal."""
    lines = [
        "Accuracy of a linear classifier on frozen features, layer by layer; 1 is perfect.",
        "Untrained is the same network with random weights.",
        "",
    ]
    if results["note"]:
        lines += [results["note"], ""]
    lines += [f"- {name}: {result['description']}." for name, result in results["probes"].items()]
    lines += [f"- {name}: not available, {reason}." for name, reason in results["unavailable"].items()]
    if not results["probes"]:
        return "\n".join(lines)

    probes = results["probes"].values()
    header = ["features", *(f"{name}, {kind}" for name in results["probes"] for kind in ("untrained", "trained"))]
    rows = [
        ["chance", *(f"{probe['chance']:.3f}" for probe in probes for _ in range(2))],
        ["MFCC (39 values)", *(f"{probe['mfcc']:.3f}" for probe in probes for _ in range(2))],
    ]
    num_layers = len(next(iter(probes))["trained"])
    for k in range(num_layers):
        name = "layer 0 (Transformer input)" if k == 0 else f"layer {k}"
        rows.append([name, *(f"{probe[kind][k]:.3f}" for probe in probes for kind in ("untrained", "trained"))])
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        first, rest = cells[0].ljust(widths[0]), [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:])]
        return "| " + " | ".join([first, *rest]) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines += ["", line(header), line(rule), *map(line, rows), ""]
    for name, probe in results["probes"].items():
        best = int(np.argmax(probe["trained"]))
        lines.append(
            f"- best trained layer for {name}: {best} with {probe['trained'][best]:.3f}; "
            f"untrained {max(probe['untrained']):.3f}, MFCC {probe['mfcc']:.3f}."
        )
    return "\n".join(lines)


def save_report(results: dict, folder: str | Path) -> Path:
    """Writes `probes.md` and `probes.json` into `folder`; returns the first."""
    folder = Path(folder)
    (folder / "probes.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / "probes.md").write_text("# Probes\n\n" + report(results) + "\n")
    return folder / "probes.md"


@command
def main() -> None:
    parser = argparse.ArgumentParser(description="Linear probes of a pretrained encoder, layer by layer.")
    parser.add_argument("checkpoint", type=Path, help="folder that AutoModel.from_pretrained opens")
    parser.add_argument("--data", type=Path, required=True, help="folder with metadata.csv")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    results = run_probes(args.checkpoint, args.data)
    print(report(results))
    print(f"\nwritten to {save_report(results, args.checkpoint)} ({results['seconds']:.0f} s)")


if __name__ == "__main__":
    main()
