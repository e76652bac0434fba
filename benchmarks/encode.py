"""Speed and memory of encoding, as features are read: ours beside HuBERT and WavLM of the same sizes.

    python -m benchmarks.encode --clips 1 4 --seconds 10 --threads 1
    python -m benchmarks.encode --clips 4 --padded --dtype bf16
    python -m benchmarks.encode --clips 1 --seconds 3600 --against  # an hour in one call: its peak of memory

Encoders with the recipe's sizes and random weights, without gradients, on clips of noise; they take turns. With
`--padded` each clip of a batch is shorter than the one before it, and an attention mask says so. The peak is what the
process held at its most, of which the second figure is the share that encoding added.
"""

import statistics
import threading
from functools import partial
from pathlib import Path

import psutil
import torch
from transformers import HubertConfig, HubertModel, PreTrainedModel, WavLMConfig, WavLMModel

from benchmarks.steps.candidates import SHARED_WITH_HUBERT, recipe_path
from benchmarks.steps.turns import ratio, take_turns
from sjepa_hf import SJepaConfig, SJepaModel
from sjepa_hf.command import CommandParser, command
from sjepa_hf.durations import duration
from sjepa_hf.frames import SAMPLING_RATE, length_mask
from training.common.command_line import read_recipe
from training.common.device import default_device
from training.pretraining.arguments import ARGUMENTS


OTHERS = {"hubert": (HubertConfig, HubertModel), "wavlm": (WavLMConfig, WavLMModel)}


def encoders(config: SJepaConfig, against: list[str], device: str) -> dict[str, PreTrainedModel]:
    """Ours and the others, with random weights."""
    made = {"ours": SJepaModel._from_config(config, attn_implementation="sdpa")}
    sizes = {name: getattr(config, name) for name in SHARED_WITH_HUBERT}
    for name in against:
        config_class, model_class = OTHERS[name]
        made[name] = model_class(config_class(**sizes))
    return {name: model.eval().to(device) for name, model in made.items()}


def batch_of(clips: int, seconds: float, padded: bool) -> dict[str, torch.Tensor]:
    """Noise, and the attention mask of a padded batch, whose last clip has half the length of its first."""
    samples = int(seconds * SAMPLING_RATE)
    batch = {"input_values": 0.1 * torch.randn(clips, samples, generator=torch.Generator().manual_seed(0))}
    if padded:
        lengths = torch.linspace(samples, samples // 2, clips).long()
        batch["attention_mask"] = length_mask(lengths, samples).long()
    return batch


class Peak:
    """The most memory that the process holds within this context, in GiB, and at its start."""

    def __enter__(self):
        self._process, self._ended = psutil.Process(), threading.Event()
        self.start = self.most = self._process.memory_info().rss / 2**30
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.most = max(self.most, self._process.memory_info().rss / 2**30)

    def __exit__(self, *exception):
        self._ended.set()
        self._watcher.join()


def measure(models: dict[str, PreTrainedModel], batch: dict, dtype: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of each encoder's turns; where there are several, one more of each comes first and is not counted."""
    device = next(iter(models.values())).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    runs = {name: partial(model, **batch) for name, model in models.items()}
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16"):
        if repeats > 1:
            take_turns(runs, 1, device)
        return take_turns(runs, repeats, device)


@command
def main(argv: list[str] | None = None) -> None:
    """Measure what the command line asks for."""
    parser = CommandParser(__doc__)
    parser.add_argument("--config", default="base", help="Sizes of a recipe: its name or a file.")
    parser.add_argument("--clips", type=int, nargs="+", default=[1, 4], help="Clips in a batch, one table row each.")
    parser.add_argument("--seconds", type=float, default=10.0, help="Seconds of the longest clip.")
    parser.add_argument("--padded", action="store_true", help="Clips of different lengths, with an attention mask.")
    parser.add_argument("--against", nargs="*", default=list(OTHERS), choices=list(OTHERS), help="Who takes turns.")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"], help="bf16 is by autocast.")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch.")
    parser.add_argument("--repeats", type=int, default=5, help="Turns of each; medians are printed.")
    arguments = parser.parse_args(argv)
    if min(*arguments.clips, arguments.repeats) < 1 or arguments.seconds < 0.1:
        parser.error("`--clips` and `--repeats` must be at least 1, and `--seconds` at least 0.1.")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = default_device()
    recipe = read_recipe(recipe_path(arguments.config), ARGUMENTS)
    models = encoders(SJepaConfig(**recipe.get("model_config", {})), arguments.against, device)
    print(f"{Path(arguments.config).stem}, {arguments.dtype}, {device}, {arguments.threads} thread(s)")
    print("batch            encoder     seconds (    min      max)   x real time   time / ours (min to max)")
    for clips in arguments.clips:
        batch = batch_of(clips, arguments.seconds, arguments.padded)
        with Peak() as peak:
            seconds = measure(models, batch, arguments.dtype, arguments.repeats)
        for name, values in seconds.items():
            median = statistics.median(values)
            print(
                f"{clips:3d} x {duration(arguments.seconds):10s} {name:8s} {median:10.2f}"
                f" ({min(values):7.2f}  {max(values):7.2f}) {clips * arguments.seconds / median:13.1f}"
                f"   {ratio(values, seconds['ours'])}"
            )
        print(f"peak of memory {peak.most:.2f} GiB, {peak.most - peak.start:.2f} GiB more than before", flush=True)


if __name__ == "__main__":
    main()
