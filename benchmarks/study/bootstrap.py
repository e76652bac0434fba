"""How sure is it that one recogniser makes fewer errors than another? A paired bootstrap over the clips of both.

    python -m benchmarks.study.bootstrap runs/a/final runs/b/final --data dev/ --speaker_column speaker_id

Reads the greedy transcripts that `training.finetune_ctc` leaves. Whole clips are drawn with replacement, the same for
both; clips of one voice are alike, so with `--data`, the sources they are of, whole speakers are drawn too.
"""

import json
from pathlib import Path

import jiwer
import numpy as np

from sjepa_hf.command import CommandParser, command
from sjepa_hf.scores import grouped
from training.data.labelled import open_labelled


RESAMPLINGS, SEED = 10_000, 0


def character_errors(result: Path) -> dict[tuple[str, str, str], int]:
    """Errors in each clip, by its source, name and reference. Raises a ValueError for a folder of another kind."""
    path, errors = result / "transcripts.jsonl", {}
    try:
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            found = jiwer.process_characters(row["reference"], row["greedy"])
            clip = row["data"], row["clip"], row["reference"]
            errors[clip] = found.substitutions + found.deletions + found.insertions
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no transcripts of `training.finetune_ctc` ({error!r}).") from None
    return errors


def interval(first: np.ndarray, second: np.ndarray, groups: list) -> str:
    """
    The middle 95 % over resamplings of the share by which the second makes fewer errors than the first. Errors in each
    clip are `(num_clips,)`; `groups` says of each what is drawn as a whole. Raises a ValueError for too few of them.
    """
    places = np.unique(groups, return_inverse=True)[1]
    sums = np.stack([np.bincount(places, weights=errors) for errors in (first, second)])
    rng, count = np.random.default_rng(SEED), sums.shape[1]
    drawn = np.stack([sums[:, rng.integers(count, size=count)].sum(1) for _ in range(RESAMPLINGS)])
    if count < 2 or not drawn[:, 0].all():
        raise ValueError(f"{count} clips or speakers with {first.sum()} errors are too few to resample: give more.")
    return "{:.1%} to {:.1%}".format(*np.quantile(1 - drawn[:, 1] / drawn[:, 0], (0.025, 0.975)))


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("results", nargs=2, type=Path, help="`final` of the first and the second fine-tuning")
    parser.add_argument("--data", nargs="+", default=[], help="labelled sources that the clips are of")
    parser.add_argument("--speaker_column", default="speaker_id", help="their column of speakers")
    arguments = parser.parse_args(argv)
    first, second = map(character_errors, arguments.results)
    if alone := first.keys() ^ second.keys():
        raise ValueError(f"{len(alone)} clips or references are in one result alone: score both on the same data.")
    labelled = open_labelled(arguments.data, [arguments.speaker_column]) if arguments.data else ()
    speakers = {labelled.clip(i).name: labelled.labels[arguments.speaker_column][i] for i in range(len(labelled))}
    for source, clips in grouped(first, lambda clip: clip[0]).items():
        one, other = (np.array([errors[clip] for clip in clips]) for errors in (first, second))
        cers = " and ".join(f"{errors.sum() / sum(len(text) for *_, text in clips):.4f}" for errors in (one, other))
        over = f"{interval(one, other, list(range(len(clips))))} over clips"
        if missing := [name for _, name, _ in clips if speakers and name not in speakers]:
            raise ValueError(f"--data has no clip {missing[0]}: name the sources that were scored, as they were.")
        if speakers:
            over += f", {interval(one, other, [speakers[name] for _, name, _ in clips])} over speakers"
        print(f"{source}, {len(clips)} clips: CER {cers}; {1 - other.sum() / one.sum():.1%} fewer errors ({over});")
        print(f"  fewer in {np.mean(other < one):.0%} of the clips, more in {np.mean(other > one):.0%}.")


if __name__ == "__main__":
    main()
