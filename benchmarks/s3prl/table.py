"""SUPERB's tasks in S3PRL's own code and in `training.superb`: same encoder, data, split, batch size, rate and steps.

    python -m benchmarks.s3prl.table --python s3prl/bin/python --speech ../shared/speech --checkpoint model_cards/tiny

`--python` is that of an environment of its own, without torchaudio:

    python -m venv s3prl && s3prl/bin/pip install torch==2.13.0
    s3prl/bin/pip install --no-deps s3prl==0.4.18 && s3prl/bin/pip install -r benchmarks/s3prl/requirements.txt

The data are small, so that a run takes a minute or two of one core. Every figure is the test set's at the step that
the dev set chooses, of ten; in asv S3PRL's is that of the last step. heads.py holds the heads' arithmetic against
S3PRL's, with copied weights.
"""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import yaml

from benchmarks.s3prl.data import EXPERIMENTS
from benchmarks.study.speech_manifest import write_manifest
from sjepa_hf.command import CommandParser, UserError, command
from training.common.progress import Heartbeat
from training.evaluation.superb.arguments import SuperbArguments
from training.evaluation.superb.tasks import TASKS
from training.superb import run


ROOT = Path(__file__).parents[2]


def write_data(task: str, speech: Path, root: Path) -> None:
    """Audio, manifests, and S3PRL's settings of a task, unless they are there."""
    if (root / "config.yaml").is_file():
        return
    experiment, known = EXPERIMENTS[task], TASKS[task]
    root.mkdir(parents=True, exist_ok=True)
    rows, expert = experiment.write(speech, root)
    for split, own in rows.items():
        write_manifest(root / f"{split}.jsonl", own)
    steps = experiment.settings["max_steps"]
    runner = {"total_steps": steps, "gradient_clipping": known.max_norm, "gradient_accumulate_steps": 1}
    runner |= {"log_step": steps, "eval_step": steps // 10, "save_step": steps, "max_keep": 1}
    runner["eval_dataloaders"] = [experiment.dev] if experiment.dev else []
    optimizer = {"name": "TorchOptim", "torch_optim_name": "AdamW", "weight_decay": known.weight_decay}
    config = {"runner": runner, "optimizer": optimizer | {"lr": experiment.settings["learning_rate"]}}
    if known.spec_augment:
        masks = {"freq_mask_width_range": [0, 16], "num_freq_mask": 4, "time_mask_width_range": [0, 40]}
        config["specaug"] = masks | {"num_time_mask": 2}
    config["downstream_expert"] = expert
    (root / "config.yaml").write_text(yaml.safe_dump(config))


def in_s3prl(python: Path, task: str, root: Path, checkpoint: str, seeds: list[int]) -> list[float]:
    """The test figures of S3PRL's own runner."""
    experiment = EXPERIMENTS[task]
    state = f"states-{experiment.settings['max_steps']}.ckpt"
    if experiment.dev:
        state = "best-states-dev.ckpt" if task == "sd" else f"{experiment.dev}-best.ckpt"
    options = {"config": root / "config.yaml", "checkpoint": checkpoint, "split": experiment.test, "state": state}
    call = [python, "-m", "benchmarks.s3prl.toolkit", experiment.downstream, "--seeds", *map(str, seeds)]
    call += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    log = root / "s3prl.log"
    with log.open("w") as file:
        call += ["--output", str(root / "s3prl")]
        done = subprocess.run(call, stdout=subprocess.PIPE, stderr=file, text=True, cwd=ROOT, env=environment)
        file.write(done.stdout)
    found = re.findall(rf"^(?:\S*/)?{experiment.figure}: ([\d.e-]+)", done.stdout, re.MULTILINE)
    if done.returncode or len(found) != len(seeds):
        raise UserError(f"S3PRL's run of {task} gave no figure: see {log}.")
    return [float(figure) / (100 if experiment.percent else 1) for figure in found]


def in_superb(task: str, root: Path, checkpoint: str, seeds: list[int]) -> list[float]:
    """The test figures of `training.superb`."""
    experiment = EXPERIMENTS[task]
    sources = {f"{name}_data": [str(root / f"{split}.jsonl")] for name, split in (("train", "train"), ("eval", "dev"))}
    trials = {"trials": str(root / "trials.txt")} if task == "asv" else {}
    folders = {"output_dir": str(root / "superb"), "cache_dir": str(root / "features")}
    arguments = SuperbArguments(
        task=task,
        model=[checkpoint],
        seeds=seeds,
        device="cpu",
        test_data=[str(root / "test.jsonl")],
        **(sources | trials | folders | experiment.settings),
    )
    results = {
        result["seed"]: result["metrics"][experiment.metric] for result in run(arguments, Heartbeat("evaluating"))
    }
    return [results[seed] for seed in seeds]


def in_words(values: list[float]) -> str:
    """Mean and every figure."""
    return f"{np.mean(values):.4f} ({', '.join(f'{value:.4f}' for value in values)})"


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("--python", type=Path, required=True, help="Python that has S3PRL")
    parser.add_argument("--speech", type=Path, required=True, help="the speech collection")
    parser.add_argument("--checkpoint", default="model_cards/tiny", help="the encoder")
    parser.add_argument("--tasks", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--output", type=Path, default=Path("runs/s3prl"), help="where data and results go")
    arguments = parser.parse_args(argv)
    print("| task, metric | S3PRL | `training.superb` |\n|---|---|---|", flush=True)
    for task in arguments.tasks:
        root = (arguments.output / task).resolve()
        write_data(task, arguments.speech.resolve(), root)
        theirs = in_s3prl(arguments.python, task, root, arguments.checkpoint, arguments.seeds)
        ours = in_superb(task, root, arguments.checkpoint, arguments.seeds)
        print(f"| {task}, {EXPERIMENTS[task].metric} | {in_words(theirs)} | {in_words(ours)} |", flush=True)


if __name__ == "__main__":
    main()
