"""Small fine-tunings on seconds of tones, a pitch for each letter."""

import csv
import os

import numpy as np
import pytest
import soundfile
from transformers import TrainerCallback

from training.common.progress import Heartbeat


SIZES = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    conv_dim=[16] * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2,
)


FAST = ["--dataloader_num_workers", "0", "--dataloader_persistent_workers", "false", "--disable_tqdm", "true"]
FAST += ["--use_cpu", "true"]

SHORT = ("--max_steps", "2")


PITCH = {"A": 300.0, "B": 900.0, " ": 0.0}


def sing(text: str, rng: np.random.Generator) -> np.ndarray:
    """80 ms for each character, a pitch of its own."""
    tones = [np.sin(2 * np.pi * PITCH[c] * np.arange(1280) / 16000) for c in text]
    return 0.3 * np.concatenate(tones) + 0.01 * rng.standard_normal(1280 * len(text))


def write_clips(folder, texts, column="text", label=None):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", column])
        for i, text in enumerate(texts):
            soundfile.write(folder / f"{i}.wav", sing(text, rng), 16000)
            writer.writerow([f"{i}.wav", label(i) if label else text.lower() + "."])
    return folder


def prepare(script, checkpoint, data, output, *options):
    required = ["--model_name_or_path", checkpoint, "--train_data", str(data), "--output_dir", str(output)]
    with script.settings([*required, *FAST, *options]) as asked:  # several are made ready in one directory here
        return script.prepare(*asked)


def run(script, *arguments):
    """Train to the end; the run and the folder of its result."""
    ready = prepare(script, *arguments)
    script.train(ready, Heartbeat("training"))
    return ready, arguments[2] / "final"


def sentence(script, checkpoint, data, output, *options) -> str:
    """What the script says before it exits."""
    required = ["--model_name_or_path", checkpoint, "--train_data", str(data), "--output_dir", str(output)]
    with pytest.raises(SystemExit) as caught:
        script.main([*required, *FAST, *options])
    return str(caught.value)


class At(TrainerCallback):
    """Sends a signal to this process at a step, or in the evaluation after it."""

    def __init__(self, step: int, number: int, evaluating: bool = False):
        self.step, self.number, self.evaluating = step, number, evaluating

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and not self.evaluating:
            os.kill(os.getpid(), self.number)

    def on_prediction_step(self, args, state, control, **kwargs):
        if state.global_step == self.step and self.evaluating:
            os.kill(os.getpid(), self.number)
