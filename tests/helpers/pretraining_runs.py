"""Small pretraining runs on seconds of noise, in this process or in others."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from processes import Forked
from safetensors.torch import load_file

from training import pretrain


ROOT = Path(__file__).parents[2]


RECIPE = """
model_config:
  front_end: {front_end}
  hidden_size: 32
  num_hidden_layers: 3
  num_attention_heads: 2
  intermediate_size: 64
  conv_dim: [16, 16, 16, 16, 16, 16, 16]
  num_conv_pos_embeddings: 16
  num_conv_pos_embedding_groups: 2
  predictor_num_attention_heads: 2
  predictor_intermediate_size: 64
mixed_precision: "no"
report_to: tensorboard
max_seconds: 2
batch_seconds: 6
bucket_buffer_size: 8
num_workers: 0
phase1_components: 8
phase2_components: 6
fit_frames: 2000
seed_frames: 600
reseed_frames: 400
em_iterations: 3
phase1_steps: 6
phase2_steps: 8
phase1_warmup_steps: 2
phase2_warmup_steps: 2
phase1_learning_rate: 1.0e-3
phase2_learning_rate: 1.0e-3
layer_check_steps: 3
start_layer: 2
ema_switch_steps: 3
logging_steps: 2
save_steps: 4
"""


def write_noise(folder: Path, count: int, shortest: float) -> Path:
    """Clips of a tone in noise, `shortest` to 3 seconds long."""
    random = np.random.default_rng(0)
    for number in range(count):
        seconds = random.uniform(shortest, 3.0)
        tone = np.sin(np.arange(int(16000 * seconds)) * random.uniform(0.02, 0.3))
        soundfile.write(folder / f"{number}.wav", 0.1 * tone + 0.05 * random.standard_normal(len(tone)), 16000)
    return folder


PRETRAIN = ROOT / "training" / "pretrain.py"
IMPORTS = """
import shortcuts
from training import finetune_ctc, pretrain, units
shortcuts.take()
"""


def environment() -> dict[str, str]:
    return os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def start(arguments, ranks: int | None = None, script=PRETRAIN) -> Forked:
    """The run in a process of its own, or in several: children of one that waits for them, without supervision."""
    return Forked(IMPORTS, [script, *arguments], environment(), ROOT, ranks)


def start_with_torchrun(arguments) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.Popen(
        [sys.executable, *launcher, str(PRETRAIN), *arguments],
        env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def wait_for_checkpoint(process, directory: Path, seconds=300) -> None:
    end = time.monotonic() + seconds
    while not directory.is_dir() and process.poll() is None:
        assert time.monotonic() < end, f"waited in vain for {directory}"
        time.sleep(0.05)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def assert_equal_weights(first: Path, second: Path) -> None:
    for name, tensor in weights(first).items():
        assert torch.equal(tensor, weights(second)[name]), name


def in_one_thread(arguments):
    """A run in this process, with as many threads as those in processes of their own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pretrain.main(arguments)
    finally:
        torch.set_num_threads(threads)


def command(noise: Path, directory: Path, *options: str, front_end: str = "log_mel") -> list[str]:
    """Arguments of a run of [`RECIPE`] in `directory`/out: 6 steps of phase 1, 8 of phase 2."""
    recipe = directory / "recipe.yaml"
    recipe.write_text(RECIPE.format(front_end=front_end))
    fixed = ["--config", str(recipe), "--train_data", str(noise), "--output_dir", str(directory / "out")]
    return [*fixed, *options]
