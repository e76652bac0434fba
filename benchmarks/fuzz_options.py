"""
Random settings: a run is refused in one sentence or ends, and it ends the same when it is stopped and resumed.

    python -m benchmarks.fuzz_options pretrain --speech ../shared/speech/keywords --count 40 --seed 0

Each trial draws settings of `pretrain`, `finetune_ctc` or `finetune_classification` and runs them dry, to the end, and
once more with a stop (SIGTERM, Ctrl-C, SIGKILL) at a random step, resumed. It prints what came of each; the exit
status is 1 where one died of a fault of ours, a dry run left something behind, or final weights or scores differed.
Without GPU, in one thread; trials of a seed are the same on every machine, the moment of the stop is not.
"""

import hashlib
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path


# Arrow's allocator has a thread of its own, and what is forked beside a thread may hang.
os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")

# isort: split
import torch
import yaml

from benchmarks.kill_and_resume import SETTINGS
from sjepa_hf.command import CommandParser, command
from training.common.output_directory import checkpoints, step_of


SECONDS = 300  # a run may take
FAULT = 70  # status of a run that an exception ended which is no sentence
CHECKPOINT = Path(__file__).parents[1] / "model_cards" / "tiny"

SIZES = {
    "front_end": ("log_mel", "waveform"),
    "conv_dim": ([16] * 7,),
    "num_hidden_layers": (1, 3),
    "predictor_keeps_hidden": (True,),
    "encode_visible_only": (True,),
    "log_mel_cmn": (True,),
    "stem_kernel_size": (1, 5),
    "layerdrop": (0.0, 0.5),
    "hidden_dropout": (0.0, 0.3),
}
PRETRAINING = {
    "mixed_precision": ("no", "bf16"),
    "num_workers": (0, 1, 2),
    "batch_seconds": (4, 8),
    "bucket_buffer_size": (1, 16),
    "phase1_steps": (0, 3, 6),
    "phase2_steps": (0, 4, 7),
    "phase1_features": ("mfcc_cmn", "log_mel"),
    "phase1_temperature": (0, 2),
    "target_temperature": (0, 0.5),
    "target_layers": ([0], [1], [0, 1]),
    "target_instance_norm": (True,),
    "target_dims": (4, 32),
    "target_transitions": (True,),
    "frozen_weight": (0.3, 1),
    "mixture_decay": (0, 0.5, 1),
    "mixture_average": ("parameters",),
    "adaptive_layer": (False,),
    "start_layer": (0, 1, None),
    "layer_check_steps": (1, 2),
    "reseed_on_layer_switch": (False,),
    "ema_decays": ([0], [1], [0.5, 0.9, 0.99]),
    "visible_loss": (False,),
    "masked_only_after": (0, 1),
    "mask_prob": (0.3, 0.9),
    "mask_span": (1, 30),
    "mel_mask": (5, 20),
    "p_mix": (0, 0.5),
    "p_noise": (0, 0.5),
    "noise_data": (["coloured"],),
    "phase1_schedule": ("cosine", "constant"),
    "phase2_schedule": ("linear", "cosine"),
    "phase1_decay_steps": (0, 2),
    "gradient_accumulation_steps": (2, 3),
    "weight_decay": (0, 0.1),
    "adam_beta1": (0, 0.95),
    "max_grad_norm": (0.001, 100),
    "gradient_checkpointing": (True,),
    "attn_implementation": ("eager",),
    "initial_checkpoint": (str(CHECKPOINT),),
}
FINE_TUNING = {
    "max_steps": (4, 9),
    "num_train_epochs": (0.5, 2),
    "per_device_train_batch_size": (1, 3),
    "per_device_eval_batch_size": (1, 8),
    "eval_strategy": ("steps", "epoch", "no"),
    "save_strategy": ("steps", "epoch"),
    "load_best_model_at_end": (False,),
    "dataloader_num_workers": (0, 2),
    "dataloader_drop_last": (True,),
    "gradient_accumulation_steps": (2, 3),
    "gradient_checkpointing": (True,),
    "optim": ("adafactor", "sgd"),
    "lr_scheduler_type": ("cosine", "constant", "reduce_lr_on_plateau"),
    "warmup_steps": (0, 2),
    "train_sampling_strategy": ("random", "sequential"),
    "bf16": (True,),
    "eval_on_start": (False,),
    "save_total_limit": (1, 2),
    "freeze_feature_encoder": (True, False),
    "freeze_encoder_steps": (1, 3),
    "from_scratch": (True,),
    "reinit_layers": (1, 2),
    "lora_rank": (1, 4),
    "head_learning_rate": (0, 0.01),
    "mask_time_prob": (0, 0.3),
    "mask_feature_prob": (0, 0.3),
    "p_noise": (0.5, 1),
    "dropout": (0, 0.2),
}
OPTIONS = {
    "pretrain": PRETRAINING,
    "finetune_ctc": FINE_TUNING | {"metric_for_best_model": ("wer", "cer", "loss")},
    "finetune_classification": FINE_TUNING | {"metric_for_best_model": ("accuracy", "loss"), "frozen": (True,)},
}


def write_clips(speech: Path, folder: Path, words: int = 3, each: int = 12) -> None:
    """A few clips of the first subfolders of `speech`, the subfolder's name being label and transcript of each."""
    rows = ["file_name,label,text"]
    for source in sorted(path for path in speech.iterdir() if path.is_dir())[:words]:
        for clip in sorted(path for path in source.iterdir() if path.is_file())[:each]:
            name = f"{source.name}-{clip.name}"
            folder.mkdir(exist_ok=True)
            shutil.copy(clip, folder / name)
            rows.append(f"{name},{source.name},{source.name.replace('_', ' ')}")
    if len(rows) == 1:
        raise ValueError(f"--speech {speech} has no folders of audio: name one with a folder of clips for each word.")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")


def drawn(options: dict, rng: random.Random, share: float) -> dict:
    """About this share of the options, each with one of its values."""
    return {name: rng.choice(values) for name, values in options.items() if rng.random() < share}


def settings(name: str, rng: random.Random, clips: Path) -> dict:
    """A recipe of the command `name`."""
    base = {"train_data": [str(clips)], "report_to": "none", "logging_steps": rng.choice((1, 3))}
    base |= {"save_steps": rng.choice((1, 2, 3)), "seed": rng.randrange(3)}
    if name == "pretrain":
        base = SETTINGS | base | {"phase1_steps": 4, "phase2_steps": 5, "save_total_limit": 0, "start_layer": 1}
        base |= {"phase1_warmup_steps": 0, "phase2_warmup_steps": 0} | drawn(PRETRAINING, rng, 0.25)
        sizes = SETTINGS["model_config"] | drawn(SIZES, rng, 0.3)
        return base | {"model_config": {} if "initial_checkpoint" in base else sizes}
    base |= {"model_name_or_path": str(CHECKPOINT), "max_steps": 6, "use_cpu": True, "eval_fraction": 0.3}
    base |= {"learning_rate": 1e-3, "dataloader_num_workers": 0, "eval_strategy": "steps", "save_strategy": "steps"}
    base |= {"dataloader_persistent_workers": False, "disable_tqdm": True} | drawn(OPTIONS[name], rng, 0.25)
    if "num_train_epochs" in base:
        base["max_steps"] = -1
    return base | {"eval_steps": base["save_steps"]}


class Runs:
    """The runs of a trial, each in a process that is forked from this one: imports are made once."""

    def __init__(self, name: str, folder: Path, recipe: dict):
        self.main = importlib.import_module(f"training.{name}").main
        self.folder = folder
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def run(self, output_dir: Path, *options: str, stop: "Stop | None" = None) -> int:
        """Status of a run into that directory; what it says goes to the log of its name."""
        argv = ["--config", str(self.folder / "recipe.yaml"), "--output_dir", str(output_dir), *options]
        sys.stdout.flush()
        process = os.fork()
        if process == 0:
            self.become(argv, output_dir.with_suffix(".log"))
        began, ended = time.monotonic(), False
        try:
            while time.monotonic() - began < SECONDS:
                pid, status = os.waitpid(process, os.WNOHANG)
                if ended := pid != 0:
                    return os.waitstatus_to_exitcode(status)
                if stop is not None and stop.is_due(output_dir):
                    os.kill(process, stop.number) if stop.number != signal.SIGKILL else os.killpg(process, stop.number)
                    stop = None
                time.sleep(0.01)
            return FAULT
        finally:
            if not ended:  # it hangs, or this command is being ended
                os.killpg(process, signal.SIGKILL)
                os.waitpid(process, 0)

    def become(self, argv: list[str], log: Path) -> None:
        """Be the command, in a process of its own; does not return."""
        os.setsid()
        file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(file, stream)
        # As in a process that a shell starts: this one is within a command already.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = sys.__unraisablehook__
        status = 0
        try:
            self.main(argv)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
            status = FAULT
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def said(self, output_dir: Path) -> str:
        """All that the runs into that directory have said."""
        return output_dir.with_suffix(".log").read_text(errors="replace")


class Stop:
    """A signal at a moment after a checkpoint of a random step is there."""

    def __init__(self, rng: random.Random, steps: int):
        self.number = rng.choice((signal.SIGTERM, signal.SIGINT, signal.SIGKILL))
        self.step, self.delay = rng.randint(0, steps), rng.uniform(0.0, 0.5)
        self.status = -self.number if self.number == signal.SIGKILL else 128 + self.number  # of what it ends
        self.seen: float | None = None

    def is_due(self, output_dir: Path) -> bool:
        if self.seen is None and output_dir.is_dir() and last_step(output_dir) >= self.step:
            self.seen = time.monotonic()
        return self.seen is not None and time.monotonic() - self.seen > self.delay


def last_step(output_dir: Path) -> int:
    """Step of the newest checkpoint, 0 where there is none."""
    return max(map(step_of, checkpoints(output_dir)), default=0)


def outcome(output_dir: Path) -> tuple[str, str]:
    """Digest of the final weights, and the scores of a fine-tuning."""
    final = output_dir / "final"
    scores = final / "results.json"
    digest = hashlib.sha256((final / "model.safetensors").read_bytes()).hexdigest()
    return digest, scores.read_text() if scores.is_file() else ""


def trial(runs: Runs, rng: random.Random) -> str:
    """`same`, `refused: SENTENCE`, or what is wrong, beginning with FAULT."""
    whole, stopped = runs.folder / "whole", runs.folder / "stopped"
    dry = runs.run(whole, "--dry_run", "true")
    if whole.exists():
        return f"FAULT: the dry run left {whole}"
    status = runs.run(whole)
    if status not in (0, 1) or "Traceback" in runs.said(whole):
        return f"FAULT: status {status}, {runs.said(whole).strip().splitlines()[-1]}"
    if status == 1:
        return f"refused{' after the start' * (dry == 0)}: {runs.said(whole).strip().splitlines()[-1]}"
    stop = Stop(rng, last_step(whole))
    signalled = f"{signal.Signals(stop.number).name} after step {stop.step}"
    status = runs.run(stopped, "--resume_from_checkpoint", "auto", stop=stop)
    if status not in (0, stop.status):  # it may have ended before
        return f"FAULT: status {status} after {signalled}"
    status = runs.run(stopped, "--resume_from_checkpoint", "auto")
    if status or "Traceback" in runs.said(stopped):
        return f"FAULT: status {status} of the run that was resumed, {signalled}"
    return "same" if outcome(whole) == outcome(stopped) else f"FAULT: another result, {signalled}"


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("command", choices=OPTIONS)
    parser.add_argument("--speech", type=Path, required=True, help="folder with a folder of clips for each word")
    parser.add_argument("--count", type=int, default=40, help="trials")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder that takes the runs of each fault")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    os.environ |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        clips = Path(directory) / "clips"
        write_clips(arguments.speech, clips)
        for number in range(arguments.count):
            rng = random.Random(f"{arguments.seed} {number}")
            folder = Path(directory) / f"{arguments.command}-{arguments.seed}-{number}"
            folder.mkdir()
            result = trial(Runs(arguments.command, folder, settings(arguments.command, rng, clips)), rng)
            print(f"{number}: {result}", flush=True)
            found[result.partition(":")[0]] += 1
            if result.startswith("FAULT") and arguments.keep:
                shutil.copytree(folder, arguments.keep / folder.name)
            shutil.rmtree(folder)
    print(dict(found))
    sys.exit("FAULT" in found)


if __name__ == "__main__":
    main()
