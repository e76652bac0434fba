"""Scores of a pretraining checkpoint, each by a program of the project or the yardstick, in a process of its own."""

import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.study.grid import as_flags
from sjepa_hf.model_card import RESULTS


LIBRISPEECH = "librispeech_train_clean_5"
CROPS, CROP_SECONDS = 3, 0.5  # of each clip, for the speakers: whole clips give every encoder full marks


@dataclass
class Scorer:
    """
    Args:
        speech (`Path`): folder of the labelled speech.
        quick_probe (`Path`): the yardstick, `quick_probe.py`.
        ctc (`dict`): settings of the CTC fine-tuning.
        environment (`dict`): environment variables of the processes.
    """

    speech: Path
    quick_probe: Path
    ctc: dict
    environment: dict[str, str]

    def score(self, stage: str, checkpoint: Path, directory: Path, seed: int) -> dict:
        """
        Scores of one stage; what they were read from stays in `directory` and is not made twice.

        Returns:
            "probe": `digits` and `phones`, accuracy of the best layer, `digits_by_layer`, `phones_by_layer`, and
            `mfcc_digits`, `mfcc_phones` of the same run; "speakers": `speakers`, accuracy of the best layer on half
            seconds of the validation speakers, and `speakers_by_layer`; "ctc": `cer` and `wer`, greedy, on the
            validation speakers.
        """
        directory.mkdir(parents=True, exist_ok=True)
        return getattr(self, f"_{stage}")(checkpoint, directory, seed)

    def _probe(self, checkpoint: Path, directory: Path, seed: int) -> dict:
        found = directory / "quick_probe.json"
        if not found.is_file():
            aside = found.with_suffix(".incomplete")
            command = [self.quick_probe, checkpoint, "--speech", self.speech, "--json", aside]
            self._run(command, directory / "quick_probe.log")
            aside.replace(found)
        scores = json.loads(found.read_text())
        own = scores[str(checkpoint)]
        return {
            **{task: max(own[task]) for task in ("digits", "phones")},
            **{f"{task}_by_layer": own[task] for task in ("digits", "phones")},
            **{f"mfcc_{task}": max(scores["mfcc"][task]) for task in ("digits", "phones")},
        }

    def _speakers(self, checkpoint: Path, directory: Path, seed: int) -> dict:
        found = directory / "speakers" / "probes.json"
        if not found.is_file():
            data = directory / "speakers.jsonl"
            data.write_text("".join(json.dumps(row) + "\n" for row in crops(self.speech / LIBRISPEECH / "validation")))
            command = ["-m", "training.probe", checkpoint, "--data", data, "--utterance_labels", "speaker_id"]
            self._run([*command, "--baselines", "false", "--output", found.parent], directory / "speakers.log")
        means = [score["mean"] for score in json.loads(found.read_text())["scores"]]
        return {"speakers": max(means), "speakers_by_layer": means}

    def _ctc(self, checkpoint: Path, directory: Path, seed: int) -> dict:
        output = directory / "ctc"
        if not (output / "final" / RESULTS).is_file():
            clips = self.speech / LIBRISPEECH
            command = ["-m", "training.finetune_ctc", "--model_name_or_path", checkpoint]
            command += ["--train_data", clips / "train", "--test_data", clips / "validation", "--output_dir", output]
            self._run([*command, *as_flags({**self.ctc, "seed": seed})], directory / "ctc.log")
        scores = json.loads((output / "final" / RESULTS).read_text())["scores"]
        greedy = next(values["greedy"] for name, values in scores.items() if "validation" in name)
        return {"cer": greedy["cer"], "wer": greedy["wer"]}

    def _run(self, command: list, log: Path) -> None:
        run_logged([sys.executable, *map(str, command)], log, self.environment)


def crops(folder: Path) -> list[dict]:
    """Rows of a manifest: short pieces, evenly spaced, of each clip of a folder whose metadata.csv names speakers."""
    with (folder / "metadata.csv").open(newline="") as file:
        clips = list(csv.DictReader(file))
    rows = []
    for clip in clips:
        piece = float(clip["duration"]) / CROPS
        if piece >= CROP_SECONDS:
            rows += [
                {
                    "audio_filepath": str((folder / clip["file_name"]).resolve()),
                    "offset": round((number + 0.5) * piece - CROP_SECONDS / 2, 3),
                    "duration": CROP_SECONDS,
                    "speaker_id": clip["speaker_id"],
                }
                for number in range(CROPS)
            ]
    return rows


def run_logged(command: list[str], log: Path, environment: dict[str, str]) -> None:
    """
    A process whose output goes to a file.

    Raises:
        RuntimeError: with the last lines of the output, if it fails.
    """
    with log.open("a") as file:
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
    if status:
        tail = log.read_text(errors="replace").replace("\r", "\n").splitlines()[-5:]
        raise RuntimeError(f"{' '.join(command[1:4])} ended with status {status}; {log} says: " + " | ".join(tail))
