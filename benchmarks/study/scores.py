"""Scores of a pretraining checkpoint, each by a command of the project in a process of its own.

They read the speech collection that `speech_manifest.py` describes, which is no part of this repository. Digits and
phones come from `training.probe`, or from the yardstick `quick_probe.py` for who has it: the study's tables
do. The two differ in what they regularise and pool, so their scores are not to be set side by side.
"""

import csv
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from benchmarks.study.frozen import FROZEN
from benchmarks.study.grid import as_flags
from benchmarks.study.speech_manifest import DIGITS, LIBRISPEECH, PHONES, manifest_rows, write_manifest
from sjepa_hf.command import UserError
from sjepa_hf.contents import RESULTS
from sjepa_hf.scores import MFCC, UNTRAINED, Score, grouped, read_scores


PROBES = {  # what is probed for -> the folder it is read off, and how
    "digits": (DIGITS, ["--utterance_labels", "digit", "--split_by", "speaker_id"]),
    "phones": (PHONES, ["--phones", "--max_frames", "15000"]),
}
FEATURES = "features"
CROPS, CROP_SECONDS = 3, 0.5  # of each clip, for the speakers: whole clips give every encoder full marks


@dataclass
class Scorer:
    """
    Args:
        speech (`Path`): folder of the speech collection.
        quick_probe (`Path`): the yardstick, `quick_probe.py`; None: `training.probe` scores digits and phones.
        ctc (`dict`): settings of the CTC fine-tuning.
        environment (`dict`): environment variables of the processes.
    """

    speech: Path
    quick_probe: Path | None
    ctc: dict
    environment: dict[str, str]

    def check(self, stages: list[str]) -> None:
        """Raise a ValueError if the collection lacks a folder that one of the stages reads."""
        needed = {stage: [score.folder] for stage, score in FROZEN.items()}
        needed["probe"] = [] if self.quick_probe else [folder for folder, _ in PROBES.values()]
        for folder in (folder for stage in stages for folder in needed.get(stage, [f"{LIBRISPEECH}/validation"])):
            if not (self.speech / folder / "metadata.csv").is_file():
                raise ValueError(
                    f"{self.speech} has no {folder}/metadata.csv: the study scores on the collection of speech that"
                    " benchmarks/study/speech_manifest.py describes."
                )

    def score(self, stage: str, checkpoint: Path | str, directory: Path, seed: int) -> dict:
        """
        Scores of one stage; what they were read from stays in `directory` and is not made twice.

        Args:
            checkpoint: its directory; for the `FROZEN` scores also "mfcc" or "untrained:CHECKPOINT".
            seed: of what is trained for the score; another one is not needed by the probes, which have several splits.

        Returns:
            "probe": `digits` and `phones`, accuracy of the best layer, `digits_by_layer`, `phones_by_layer`,
            `mfcc_digits`, `mfcc_phones` of the same run, and `probed_by`, the program; "speakers": `speakers`,
            accuracy of the best layer on half seconds of the validation speakers, and `speakers_by_layer`; "ctc":
            `cer` and `wer`, greedy, on the validation speakers; a stage of `FROZEN`: one score of its name.
        """
        directory.mkdir(parents=True, exist_ok=True)
        if stage in FROZEN:
            return self._frozen(stage, checkpoint, directory, seed)
        if stage == "ctc":
            return self._ctc(checkpoint, directory, seed)
        return {"probe": self._probe, "speakers": self._speakers}[stage](checkpoint, directory)

    def forget_features(self, directory: Path) -> None:
        """Remove the features that the `FROZEN` scores of several seeds share: half a gigabyte."""
        shutil.rmtree(directory / FEATURES, ignore_errors=True)

    def _frozen(self, stage: str, checkpoint: Path | str, directory: Path, seed: int) -> dict:
        score = FROZEN[stage]
        output = directory / f"{stage}-s{seed}"
        results = output / f"{score.task}.json"
        if not results.is_file():
            settings = {"task": score.task, "model": checkpoint, **score.settings, "seeds": seed}
            for source, rows in score.rows(self.speech).items():
                settings[source] = directory / f"{stage}_{source}.jsonl"
                write_manifest(settings[source], rows)
            settings |= {"output_dir": output, "cache_dir": directory / FEATURES}
            self._run(["-m", "training.superb", *as_flags(settings)], directory / f"{stage}.log")
        (own,) = read_scores(results)
        return {stage: own.value}

    def _probe(self, checkpoint: Path, directory: Path) -> dict:
        by_subject = self.layers([checkpoint], directory)
        own, mfcc = by_subject[str(checkpoint)], by_subject["mfcc"]
        return {
            "probed_by": self.quick_probe.name if self.quick_probe else "training.probe",
            **{task: max(own[task]) for task in PROBES},
            **{f"{task}_by_layer": own[task] for task in PROBES},
            **{f"mfcc_{task}": max(mfcc[task]) for task in PROBES},
        }

    def layers(
        self, checkpoints: list[Path], directory: Path, untrained: bool = False
    ) -> dict[str, dict[str, list[float]]]:
        """
        Accuracy on digits and phones of every layer of each checkpoint (by its path), of "mfcc", and, as "untrained",
        if that is asked for, the first checkpoint's model with fresh weights; what it was read from stays in
        `directory`.
        """
        directory.mkdir(parents=True, exist_ok=True)
        fresh = f"{UNTRAINED}{checkpoints[0]}"
        subjects = [*map(str, checkpoints), *([fresh] if untrained else [])]
        scores = self._quick_probe(subjects, directory) if self.quick_probe else self._own_probe(subjects, directory)
        return {"untrained" if name == fresh else name: score for name, score in scores.items()}

    def _quick_probe(self, subjects: list[str], directory: Path) -> dict[str, dict[str, list[float]]]:
        results = directory / "quick_probe.json"
        if not results.is_file():
            aside = results.with_suffix(".incomplete")
            command = [self.quick_probe, *subjects, "--speech", self.speech, "--json", aside]
            self._run(command, results.with_suffix(".log"))
            aside.replace(results)
        return json.loads(results.read_text())

    def _own_probe(self, subjects: list[str], directory: Path) -> dict[str, dict[str, list[float]]]:
        by_subject = defaultdict(dict)
        for task, (folder, how) in PROBES.items():
            rows = manifest_rows(self.speech, folder, "test")
            for subject, scores in self._run_probe([MFCC, *subjects], directory, task, rows, how).items():
                by_subject[subject][task] = [score.value for score in scores]
        return dict(by_subject)

    def _speakers(self, checkpoint: Path, directory: Path) -> dict:
        rows = crops(self.speech / LIBRISPEECH / "validation")
        how = ["--utterance_labels", "speaker_id"]
        (scores,) = self._run_probe([str(checkpoint)], directory, "speakers", rows, how).values()
        means = [score.value for score in scores]
        return {"speakers": max(means), "speakers_by_layer": means}

    def _run_probe(
        self, subjects: list[str], directory: Path, name: str, rows: list[dict], how: list[str]
    ) -> dict[str, list[Score]]:
        """Scores of the linear probe by `training.probe`, by subject and in order of layers, unless they are there."""
        results = directory / name / "probes.json"
        if not results.is_file():
            data = directory / f"{name}.jsonl"
            write_manifest(data, rows)
            command = ["-m", "training.probe", *subjects, "--data", data, *how, "--output", results.parent]
            self._run([*command, "--baselines", "false"], directory / f"{name}.log")
        linear = [score for score in read_scores(results) if score.task.endswith(", linear probe")]
        return grouped(linear, lambda score: score.subject)

    def _ctc(self, checkpoint: Path, directory: Path, seed: int) -> dict:
        output = directory / "ctc"
        if not (output / "final" / RESULTS).is_file():
            clips = self.speech / LIBRISPEECH
            command = ["-m", "training.finetune_ctc", "--model_name_or_path", checkpoint]
            command += ["--train_data", clips / "train", "--test_data", clips / "validation", "--output_dir", output]
            self._run([*command, *as_flags({**self.ctc, "seed": seed})], directory / "ctc.log")
        scores = read_scores(output / "final" / RESULTS)
        rates = {s.metric: s.value for s in scores if s.split == "test" and s.task.endswith("greedy decoding")}
        return {"cer": rates["cer"], "wer": rates["wer"]}

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
        UserError: with the last lines of the output, if it fails.
    """
    with log.open("a") as file:
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
    if status:
        tail = log.read_text(errors="replace").replace("\r", "\n").splitlines()[-5:]
        raise UserError(f"{' '.join(command[1:4])} ended with status {status}; {log} says: " + " | ".join(tail))
