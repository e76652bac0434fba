"""Kill pretraining at random moments, resume it, and compare the final weights, bit for bit, with a run left alone.

    python -m benchmarks.kill_and_resume --speech ../shared/speech/keywords --trials 20

Each trial kills (SIGKILL, the whole process group) once in the given phase, at a random moment of a random step,
be it in the update, in a checkpoint being written or at the boundary. CPU, one thread, two workers. The exit
status is 1 where the weights, or the clips heard, were others.
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from sjepa_hf.command import CommandParser, command
from training.pretraining.checkpoint_layout import load_loop_state
from training.pretraining.monitoring import HISTORY, read_history


ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
STEPS = 30  # of each phase
SETTINGS = {
    "model_config": {
        "front_end": "log_mel",
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
        "predictor_num_attention_heads": 2,
        "predictor_intermediate_size": 64,
    },
    "mixed_precision": "no",
    "report_to": "none",
    "max_seconds": 4,
    "batch_seconds": 8,
    "bucket_buffer_size": 64,
    "num_workers": 2,
    "phase1_components": 20,
    "phase2_components": 16,
    "fit_frames": 4000,
    "fit_hours": 0.02,
    "seed_frames": 2000,
    "reseed_frames": 1000,
    "em_iterations": 3,
    "phase1_steps": STEPS,
    "phase2_steps": STEPS,
    "phase1_warmup_steps": 5,
    "phase2_warmup_steps": 5,
    "phase1_learning_rate": 1.0e-3,
    "phase2_learning_rate": 1.0e-3,
    "layer_check_steps": 7,
    "start_layer": 2,
    "ema_switch_steps": 10,
    "logging_steps": 1,
    "save_steps": 5,
    "save_total_limit": 3,
}
WHOLE = SETTINGS | {"save_total_limit": 0}  # of the run left alone: it keeps every checkpoint


def start(recipe: Path, speech: Path, output_dir: Path) -> subprocess.Popen:
    command = [
        sys.executable,
        str(ROOT / "training" / "pretrain.py"),
        "--config",
        str(recipe),
        "--train_data",
        str(speech),
    ]
    command += ["--output_dir", str(output_dir), "--resume_from_checkpoint", "auto"]
    with open(output_dir.with_suffix(".log"), "a") as log:
        return subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)


def finish(recipe: Path, speech: Path, output_dir: Path) -> str:
    """Run to the end; the digest of the final weights."""
    status = start(recipe, speech, output_dir).wait()
    if status:
        sys.exit(f"{output_dir} ended with status {status}: {output_dir.with_suffix('.log').read_text()[-2000:]}")
    return hashlib.sha256((output_dir / "final" / "model.safetensors").read_bytes()).hexdigest()


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("--speech", type=Path, required=True, help="folder of audio files")
    parser.add_argument("--trials", type=int, default=20, help="kills in each phase")
    parser.add_argument("--phases", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(WHOLE))
        whole = folder / "whole"
        expected = finish(recipe, arguments.speech, whole)
        heard = load_loop_state(whole / "final")
        recipe.write_text(yaml.safe_dump(SETTINGS))
        others = 0
        for phase in arguments.phases:
            same = same_data = 0
            for trial in range(arguments.trials):
                run = folder / f"phase{phase}-{trial}"
                if phase == 2:  # phase 1 as it was
                    run.mkdir()
                    shutil.copytree(whole / f"checkpoint-{STEPS}", run / f"checkpoint-{STEPS}")
                    shutil.copy(whole / HISTORY, run / HISTORY)
                target = (phase - 1) * STEPS + draw.randint(0, STEPS - 1)
                process = start(recipe, arguments.speech, run)
                while process.poll() is None and last_step(run, since=STEPS * (phase - 1)) < target:
                    time.sleep(0.01)
                time.sleep(draw.uniform(0.0, 0.4))
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                resumed = finish(recipe, arguments.speech, run)
                state = load_loop_state(run / "final")
                same += resumed == expected
                same_data += (state.data, state.clips_seen) == (heard.data, heard.clips_seen)
                print(f"phase {phase}, killed after step {target}: same weights {resumed == expected}", flush=True)
                shutil.rmtree(run)
            print(f"phase {phase}: {same} of {arguments.trials} bit-identical, {same_data} with the same clips heard")
            others += 2 * arguments.trials - same - same_data
    sys.exit(1 if others else 0)


def last_step(run: Path, since: int) -> int:
    """The last step that the history tells of; a copied history counts for nothing before the run goes on."""
    if not (run / HISTORY).is_file():
        return -1
    history = read_history(run / HISTORY)
    step = history[-1]["step"] if history else -1
    return step if step < 2 * STEPS or not since else -1


if __name__ == "__main__":
    main()
