"""Score checkpoints side by side, MFCC and an untrained encoder beside them: one table.

    python -m benchmarks.study.score runs/a/final runs/b/final --speech ../shared/speech --output scores \\
        --stages probe phones_many keywords languages --seeds 0 1 2

The scores are the study's (`scores.py`, `frozen.py`), on a speech collection that is no part of this repository. The
same command goes on where it was stopped, and more checkpoints, stages or seeds may be named. `OUTPUT/SUBJECT/` holds
what scores were read from, under a name with the digest of the weights; `OUTPUT/scores.json` has every score by
subject, seed by seed, `OUTPUT/scores.md` the table that is printed, with the standard deviation over the seeds.
"Untrained" is the first checkpoint's configuration with fresh weights.
"""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np

from benchmarks.study.frozen import FROZEN
from benchmarks.study.report import HIGHER_IS_BETTER
from benchmarks.study.run import environment
from benchmarks.study.scores import PROBES, Scorer
from benchmarks.study.speech_manifest import speech_folder
from sjepa_hf.command import CommandParser, command
from sjepa_hf.saving import write_text_aside
from sjepa_hf.scores import MFCC, UNTRAINED, markdown_table


logger = logging.getLogger(__name__)

STAGES = ("probe", "speakers", *FROZEN)
FILE = "scores.json"


def identity(subject: str) -> str:
    """
    A subject's name in a file system: where it lies and, for a checkpoint, the digest of its weights, or, untrained,
    of its configuration.

    Raises:
        ValueError: if there is no checkpoint of that name.
    """
    if subject == MFCC:
        return MFCC
    path = Path(subject.removeprefix(UNTRAINED)).resolve()
    weights = [] if subject.startswith(UNTRAINED) else sorted(path.glob("*.safetensors"))
    if not (path / "config.json").is_file() or not (weights or subject.startswith(UNTRAINED)):
        raise ValueError(f"{path} is not a checkpoint: it has no config.json, or no weights in safetensors beside it.")
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in [path / "config.json", *weights])).hexdigest()[:8]
    return f"untrained-{digest}" if not weights else f"{path.parent.name}-{path.name}-{digest}"


class Scores:
    """
    What is known of each subject, by its `identity`: `{stage: {seed: {score: value}}}`; kept in a file.

    Args:
        directory (`Path`): where that file is.
    """

    def __init__(self, directory: Path):
        self.path = directory / FILE
        self.known: dict[str, dict] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def has(self, subject: str, stage: str, seed: int) -> bool:
        return str(seed) in self.known.get(subject, {}).get(stage, {})

    def add(self, subject: str, stage: str, seed: int, scores: dict) -> None:
        self.known.setdefault(subject, {}).setdefault(stage, {})[str(seed)] = scores
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text_aside(self.path, json.dumps(self.known, indent=1) + "\n")

    def values(self, subject: str, score: str, seeds: list[int]) -> list[float]:
        """A score of those of the seeds that it has; of a probe, which has no seed, the one that there is."""
        runs_of_seeds = [
            runs.get(str(seed), {})
            for stage, runs in self.known.get(subject, {}).items()
            for seed in seeds_of(stage, seeds)
        ]
        return [scores[score] for scores in runs_of_seeds if score in scores]


def seeds_of(stage: str, seeds: list[int]) -> list[int]:
    """Of the seeds those that change a stage's scores: probes have several splits instead, qbe trains nothing."""
    return seeds if stage in FROZEN and FROZEN[stage].task != "qbe" else [0]


def score_all(scorer: Scorer, subjects: dict[str, str], stages: list[str], seeds: list[int], scores: Scores) -> None:
    """Every score that is not known yet; `subjects` are checkpoints, "mfcc" and "untrained:...", by their identity."""
    here = scores.path.parent
    if "probe" in stages:
        probe(scorer, subjects, scores)
    for stage in (stage for stage in stages if stage != "probe"):
        for name, subject in subjects.items():
            if stage not in FROZEN and is_baseline(subject):
                continue
            for seed in seeds_of(stage, seeds):
                if not scores.has(name, stage, seed):
                    logger.info("%s of %s, seed %d", stage, subject, seed)
                    scores.add(name, stage, seed, scorer.score(stage, subject, here / name, seed))
            scorer.forget_features(here / name)


def probe(scorer: Scorer, subjects: dict[str, str], scores: Scores) -> None:
    """Digits and phones of what has none yet; MFCC and the untrained encoder are scored in the same process."""
    missing = {name: subject for name, subject in subjects.items() if not scores.has(name, "probe", 0)}
    checkpoints = [Path(subject) for subject in subjects.values() if not is_baseline(subject)]
    asked = [path for path in checkpoints if str(path) in missing.values()] or checkpoints[:1]
    if not missing:
        return
    logger.info("probe of %s", ", ".join(missing))
    directory = scores.path.parent / f"probe-{hashlib.sha256(' '.join(missing).encode()).hexdigest()[:8]}"
    by_subject = scorer.layers(asked, directory, untrained=any(s.startswith(UNTRAINED) for s in missing.values()))
    for name, subject in missing.items():
        layers = by_subject["untrained" if subject.startswith(UNTRAINED) else subject]
        best = {task: max(layers[task]) for task in PROBES}
        scores.add(name, "probe", 0, best | {f"{task}_by_layer": layers[task] for task in PROBES})


def is_baseline(subject: str) -> bool:
    return subject == MFCC or subject.startswith(UNTRAINED)


def table(scores: Scores, subjects: dict[str, str], seeds: list[int]) -> str:
    """Markdown: a row for each subject."""
    columns = [s for s in HIGHER_IS_BETTER if any(scores.values(name, s, seeds) for name in subjects)]
    rows = []
    for name, subject in subjects.items():
        row = ["MFCC" if subject == MFCC else "untrained" if is_baseline(subject) else subject]
        for values in (scores.values(name, score, seeds) for score in columns):
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            row.append(f"{np.mean(values):.3f}{spread}" if values else "")
        rows.append(row)
    worse = [score for score in columns if not HIGHER_IS_BETTER[score]]
    note = f"\nError rates, of which lower is better: {', '.join(worse)}.\n" if worse else ""
    return markdown_table(["", *columns], rows) + "\n" + note


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("checkpoints", nargs="+", help="directories, such as OUTPUT_DIR/final of training.pretrain")
    parser.add_argument("--speech", type=Path, help="the speech collection (default: what SJEPA_SPEECH names)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=["probe", *FROZEN], help="which scores")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds of the heads on frozen features")
    parser.add_argument("--quick_probe", type=Path, help="quick_probe.py, to score digits and phones by it")
    parser.add_argument("--output", type=Path, required=True, help="directory, new or of an earlier call")
    arguments = parser.parse_args(argv)
    speech = speech_folder(arguments.speech)
    checkpoints = [str(Path(checkpoint).resolve()) for checkpoint in arguments.checkpoints]
    subjects = {identity(subject): subject for subject in (MFCC, f"{UNTRAINED}{checkpoints[0]}", *checkpoints)}
    quick_probe = arguments.quick_probe and arguments.quick_probe.resolve()
    scorer = Scorer(speech, quick_probe, {}, environment(jobs=1))
    scorer.check(arguments.stages)
    scores = Scores(arguments.output.resolve())
    score_all(scorer, subjects, arguments.stages, arguments.seeds, scores)
    made = table(scores, subjects, arguments.seeds)
    write_text_aside(scores.path.with_name("scores.md"), made)
    print(made)


if __name__ == "__main__":
    main()
