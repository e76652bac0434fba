"""One global batch, split in three ways: how far losses, weights and mixtures drift apart over both phases.

    python -m benchmarks.splits --speech ../shared/speech/keywords

- accumulated: one process, two micro-batches a step (the reference);
- two processes, one micro-batch each (gloo);
- one batch: one process, the two micro-batches padded into one.

fp32 on a CPU, one thread a process, dropout and augmentation off. Differences are the largest over all numbers, beside
the root mean square of the reference.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from benchmarks.kill_and_resume import ENVIRONMENT, ROOT, SETTINGS, STEPS
from sjepa_hf.command import CommandParser, command
from training import pretrain
from training.data.batches import attention_mask
from training.pretraining.arguments import parse_arguments
from training.pretraining.monitoring import HISTORY, read_history
from training.pretraining.training_data import TrainingData


DROPOUTS = ("hidden", "activation", "attention", "feat_proj", "predictor")
STILL = SETTINGS | {"p_mix": 0.0, "p_noise": 0.0, "layer_check_steps": 1000, "save_total_limit": 0}
STILL["model_config"] = SETTINGS["model_config"] | {f"{name}_dropout": 0.0 for name in DROPOUTS} | {"layerdrop": 0.0}


def joined(batches: list[dict]) -> dict:
    """Micro-batches as one: clips in order, padded to the longest."""
    longest = max(batch["input_values"].shape[1] for batch in batches)
    lengths = torch.cat([batch["lengths"] for batch in batches])
    frames = max(batch["mask_time_indices"].shape[1] for batch in batches)

    def stacked(name: str, width: int) -> torch.Tensor:
        parts = [torch.nn.functional.pad(batch[name], (0, width - batch[name].shape[1])) for batch in batches]
        return torch.cat(parts)

    positions, first = {"masked_positions": [], "visible_positions": []}, 0
    for batch in batches:
        own = batch["mask_time_indices"].shape[1]
        for name, found in positions.items():
            found.append((batch[name] // own + first) * frames + batch[name] % own)
        first += len(batch["lengths"])
    return batches[0] | {
        "input_values": stacked("input_values", longest),
        "attention_mask": attention_mask(lengths),
        "mask_time_indices": stacked("mask_time_indices", frames),
        "lengths": lengths,
        "longest_visible": max(batch["longest_visible"] for batch in batches),
        "seconds": sum(batch["seconds"] for batch in batches),
        **{name: torch.cat(found) for name, found in positions.items()},
    }


class JoinedData(TrainingData):
    """Gives two batches as one."""

    def next(self) -> dict:
        return joined([super(JoinedData, self).next() for _ in range(2)])


def train(recipe: Path, speech: Path, output_dir: Path, how: str) -> None:
    command = ["--config", str(recipe), "--train_data", str(speech), "--output_dir", str(output_dir)]
    if how == "two processes":
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        script = str(ROOT / "training" / "pretrain.py")
        subprocess.run([*launcher, script, *command, "--num_workers", "1"], env=ENVIRONMENT, check=True)
        return
    steps = "2" if how == "accumulated" else "1"
    run = pretrain.prepare(parse_arguments([*command, "--gradient_accumulation_steps", steps]))
    if how == "one batch":
        run.data.__class__ = JoinedData
    with run.interruption:
        pretrain.pretrain(run)
    run.lock.release()


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("--speech", type=Path, required=True, help="folder of audio files")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    ways = ("accumulated", "two processes", "one batch")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(STILL))
        for how in ways:
            train(folder / "recipe.yaml", arguments.speech, folder / how, how)
        print(f"{'step':>4} {'split':14} {'loss':>9} {'gradient norm':>13} {'weights':>9} {'mixture':>9}")
        for step in (5, STEPS, STEPS + 5, 2 * STEPS):
            reference = history_and_tensors(folder / ways[0], step)
            loss, norm, weights, mixture = reference
            print(f"{step:4d} {'(its size)':14} {loss:9.3f} {norm:13.3f} {rms(weights):9.1e} {rms(mixture):9.1e}")
            for how in ways[1:]:
                other = history_and_tensors(folder / how, step)
                figures = [abs(other[0] - loss), abs(other[1] - norm)]
                figures += [largest_difference(other[n], reference[n]) for n in (2, 3)]
                print(f"     {how:14} {figures[0]:9.1e} {figures[1]:13.1e} {figures[2]:9.1e} {figures[3]:9.1e}")
        loops = [json.loads((folder / how / "final/training_state/loop.json").read_text()) for how in ways]
        print(f"clips heard: {', '.join(str(loop['clips_seen']) for loop in loops)}")


def history_and_tensors(directory: Path, step: int) -> tuple[float, float, dict, dict]:
    """Masked KL and gradient norm of a step, weights and mixture after it."""
    (line,) = [line for line in read_history(directory / HISTORY) if line["step"] == step]
    tensors = load_file(directory / f"checkpoint-{step}" / "model.safetensors")
    mixture = {name: tensors.pop(name) for name in list(tensors) if name.startswith("mixture.")}
    return line["masked_kl"], line["gradient_norm"], tensors, mixture


def rms(tensors: dict) -> float:
    return torch.cat([tensor.flatten() for tensor in tensors.values()]).square().mean().sqrt().item()


def largest_difference(tensors: dict, reference: dict) -> float:
    return max((tensors[name] - reference[name]).abs().max().item() for name in reference)


if __name__ == "__main__":
    main()
