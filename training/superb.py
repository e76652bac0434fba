"""SUPERB: what a frozen encoder is worth to the ten tasks, under a light head.

On the benchmark's data, from the Hub (settings and data sets: `training/evaluation/superb/tasks.py`):

    python -m training.superb --task ks --model demo-output/model/final facebook/hubert-base-ls960

On your own data, in small: any source of `training/data/labelled.py`, several subjects and seeds in one table. `mfcc`
and `untrained:CHECKPOINT` (the same network with fresh weights) say what the pretraining adds, `fbank` is SUPERB's own
baseline:

    python -m training.superb --task sid --label_column speaker_id --train_data librispeech/train \\
        --model mfcc untrained:demo-output/model/final demo-output/model/final \\
        --max_steps 2000 --learning_rate 1e-3 --seeds 0 1 2

Slot filling is SUPERB's where transcripts are annotated ("A B-size LARGE E-size COFFEE", CTC over characters and slot
tokens), and a classification of each slot's value with `--slot_columns size roast`: for data without transcripts, not
comparable with SUPERB's figures.

SUPERB's emotion recognition is the mean of five folds, one for each session that is the test set, the others being
trained on: `--task er --folds session`, of data with that column.

The best step is chosen on the dev set; the figures are the test set's. Written to `output_dir`: `TASK.jsonl`, one
object for each subject, seed and fold; made from it, `TASK.json`, the scores over the seeds as a model card takes
them, `TASK.md`, the printed table, and `TASK_layer_weights.png`. What is there is not evaluated again: after an
interruption, or with more subjects and seeds, the same command goes on.
"""

import logging
from pathlib import Path

from sjepa_hf.command import command
from sjepa_hf.writable import check_output_directory
from training.common.progress import Heartbeat
from training.evaluation.encoders import check_encoders, open_encoder
from training.evaluation.frozen_features import FeatureStore
from training.evaluation.superb.arguments import SuperbArguments, arguments_of_tasks, parse_arguments
from training.evaluation.superb.evaluation import Evaluation
from training.evaluation.superb.results import (
    add,
    check_data,
    current,
    draw_layer_weights,
    earlier_results,
    over_folds,
    run_of,
    table,
)
from training.evaluation.superb.summary import write_summary


logger = logging.getLogger(__name__)


@command
def main(argv: list[str] | None = None) -> None:
    """Run the evaluation that the command line asks for."""
    arguments = parse_arguments(argv)
    check_output_directory(arguments.output_dir, "output_dir")
    with Heartbeat("opening the data") as heartbeat:
        if arguments.task == "all":
            text = run_all(arguments, heartbeat)
        else:
            results = run(arguments, heartbeat)
            text = table(results) if results else ""
    if text:
        print(text)


def run(arguments: SuperbArguments, heartbeat: Heartbeat) -> list[dict]:
    """
    Evaluate all subjects with all seeds, but those whose results `output_dir` holds, unless an encoder has changed;
    results are written after each.

    Args:
        arguments: what to evaluate.
        heartbeat: says what is being done.

    Returns:
        all results of the task there, as in the JSON lines, but the mean over folds: task, split, metrics and so on;
        none with `dry_run`.

    Raises:
        ValueError: as `prepare`, and a checkpoint at fault.
        BadAudioError: too much of the audio cannot be used.
    """
    check_encoders(arguments.model)
    return evaluate(*prepare(arguments), heartbeat)


def prepare(arguments: SuperbArguments) -> tuple[Evaluation, list[dict]]:
    """
    A task with its data open, and the results that `output_dir` holds.

    Raises:
        ValueError: settings or data at fault, or results there of other settings or data.
        BadAudioError: too much of the audio cannot be used.
    """
    output = Path(arguments.output_dir)
    if arguments.cache_gb:
        check_output_directory(Path(arguments.cache_dir).expanduser(), "cache_dir")
    evaluation = Evaluation(arguments)
    earlier = earlier_results(output, evaluation.task.name, evaluation.settings)
    evaluation.open()
    if earlier:
        check_data(earlier, evaluation.data_digest, output)
    return evaluation, earlier


def evaluate(evaluation: Evaluation, earlier: list[dict], heartbeat: Heartbeat) -> list[dict]:
    """What `run` returns, of a task that `prepare` has opened."""
    arguments, output = evaluation.arguments, Path(evaluation.arguments.output_dir)
    if arguments.dry_run:
        return []
    evaluation.warn_of_shared()
    store = FeatureStore(arguments.cache_dir, arguments.cache_gb)
    for subject in dict.fromkeys(arguments.model):
        heartbeat.doing = f"encoding the clips with {subject}"
        encoder = open_encoder(subject, evaluation.device, arguments.untrained_seed)
        own = [result for result in earlier if result["encoder"] == subject]
        there = {run_of(result) for result in own if result["encoder_digest"] == encoder.digest}
        outdated = {result["seed"] for result in own if run_of(result) not in there}
        if outdated:
            logger.warning(
                "%s is another than output_dir has results of: those of the seeds %s are scored again.",
                subject,
                ", ".join(map(str, sorted(outdated))),
            )
        seeds = sorted({*evaluation.seeds, *outdated})
        if done := sum((subject, seed, fold) in there for seed in seeds for fold in evaluation.folds):
            of = len(seeds) * len(evaluation.folds)
            logger.info("%s: %d of %d results are in output_dir already.", subject, done, of)
        for fold in evaluation.folds:
            missing = [seed for seed in seeds if (subject, seed, fold) not in there]
            features = evaluation.features(fold, encoder, store) if missing else {}
            for seed in missing:
                add(evaluation.score(subject, encoder, fold, features, seed, heartbeat), output)
    results = over_folds(current(earlier_results(output, evaluation.task.name, evaluation.settings)))
    draw_layer_weights(results, output)
    return results


def run_all(arguments: SuperbArguments, heartbeat: Heartbeat) -> str:
    """
    Evaluate all subjects on all tasks of the file `tasks`, with a table and a picture of their results, `all.md` and
    `all.png`. All encoders and data are opened and checked before the first task is run.

    Returns:
        the table.

    Raises:
        ValueError: as `arguments_of_tasks` and `run` do.
    """
    check_encoders(arguments.model)
    results = {}
    for evaluation, earlier in [prepare(one) for one in arguments_of_tasks(arguments)]:
        found = evaluate(evaluation, earlier, heartbeat)
        results[evaluation.task.name] = [result for result in found if result["encoder"] in arguments.model]
    if arguments.dry_run:
        return ""
    return write_summary(results, Path(arguments.output_dir))


if __name__ == "__main__":
    main()
