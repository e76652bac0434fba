"""One phase-2 step of the base model against a bare HuBERT step of the same sizes, alternating in one run.

    python -m training.benchmarks.step [--clips 4] [--seconds 10] [--threads 2] [--repeats 5] [--dtype fp32]

Ours: masks, EMA forward, mixture posteriors, student forward and backward, optimizer, mixture update, EMA update.
HuBERT: forward, backward, optimizer of `HubertModel` with six layers, on the same batch and attention mask.
"""

import argparse
import statistics
import time

import torch
from accelerate import Accelerator
from transformers import HubertConfig, HubertModel

from sjepa_hf import SJepaConfig, SJepaForPreTraining
from training.batching import collate
from training.layer_choice import LayerChoice
from training.targets import OnlineTargets


class Parts:
    """Seconds spent in each part of a step."""

    def __init__(self):
        self.seconds: dict[str, list[float]] = {}

    def measure(self, name: str, function):
        start = time.perf_counter()
        result = function()
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layer", type=int, default=2, help="layer (from 0) that the targets are taken from")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--include_visible", action="store_true", help="the loss of early phase 2: visible frames too")
    parser.add_argument("--profile", action="store_true", help="print where the time of our step goes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if arguments.dtype == "bf16" else "no")

    model = SJepaForPreTraining(SJepaConfig()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    targets = OnlineTargets(model.sjepa, model.mixture, LayerChoice(arguments.layer), accelerator)
    hubert = HubertModel(HubertConfig(num_hidden_layers=6, layerdrop=0.05)).train()
    hubert_optimizer = torch.optim.AdamW(hubert.parameters(), lr=1e-5, fused=True)
    clips = [torch.randn(int(16000 * arguments.seconds)).mul(0.1).numpy() for _ in range(arguments.clips)]
    generator = torch.Generator().manual_seed(0)
    parts = Parts()

    def sjepa_step():
        batch = parts.measure(
            "collate and masks", lambda: collate(clips, mask_prob=0.65, mask_span=10, generator=generator)
        )
        posteriors = parts.measure("EMA forward, mixture", lambda: targets.posteriors(batch))

        def forward():
            with accelerator.autocast():
                return model(
                    batch["input_values"],
                    attention_mask=batch["attention_mask"],
                    mask_time_indices=batch["mask_time_indices"],
                    target_posteriors=posteriors,
                    include_visible=arguments.include_visible,
                    masked_positions=batch["masked_positions"],
                    visible_positions=batch["visible_positions"],
                )

        output = parts.measure("student forward", forward)
        parts.measure("backward", output.loss.backward)
        parts.measure("optimizer", optimizer.step)
        optimizer.zero_grad()
        parts.measure("mixture and EMA update", lambda: targets.update(model.sjepa, 0.999))

    def hubert_step():
        batch = collate(clips, mask_prob=0.65, mask_span=10, generator=generator)
        with accelerator.autocast():
            output = hubert(batch["input_values"], attention_mask=batch["attention_mask"]).last_hidden_state
        output.float().square().mean().backward()
        hubert_optimizer.step()
        hubert_optimizer.zero_grad()

    seconds = {"ours": [], "HuBERT": []}
    for repeat in range(arguments.repeats + 1):  # the first of each warms up
        for name, step in (("ours", sjepa_step), ("HuBERT", hubert_step)):
            start = time.perf_counter()
            step()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["HuBERT"])]
    print(f"{arguments.clips} clips of {arguments.seconds:g} s, {arguments.dtype}, {arguments.threads} threads")
    for name, values in seconds.items():
        print(f"{name:8s} {statistics.median(values):6.2f} s a step (min {min(values):.2f}, max {max(values):.2f})")
    print(f"ratio    {statistics.median(ratios):6.2f} (min {min(ratios):.2f}, max {max(ratios):.2f})")
    for name, values in parts.seconds.items():
        print(f"  {name:24s} {statistics.median(values[1:]):6.2f} s")
    if arguments.profile:
        for name, step in (("ours", sjepa_step), ("HuBERT", hubert_step)):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                step()
            table = profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50)
            print(name, table, sep="\n")


if __name__ == "__main__":
    main()
