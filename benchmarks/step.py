"""Speed of a pretraining step: throughput, where the time goes, memory, utilisation, and what others take for it.

    python -m benchmarks.step --config tiny --phase 2 --clips 4 --seconds 8 --threads 2
    python -m benchmarks.step --config base --clips 24 --seconds 15 --dtype bf16 --compile dynamic  # a GPU
    python -m benchmarks.step --config base --visible_only true --against hubert
    python -m benchmarks.step --config base --sweep components 100 200 500 1000 2000
    python -m benchmarks.step --config tiny --clips 1 --seconds 8 --sweep compile no dynamic static graphs

A step is what training does with a batch: collate and masks, targets, student forward and backward, clipping and
optimizer, update of mixture and EMA encoder. Taking turns with it in the same run:

- naive: the same step written plainly (`steps/naive.py`), from the same weights;
- HuBERT: forward, backward and optimizer of `HubertModel` with as many layers of the same sizes, without targets;
- visible only: our step with `encode_visible_only`.

Clips are noise, all of the same length, and masks are drawn anew for each batch. On a GPU a turn is several steps with
one wait at its end, so that batches are prepared while the device computes, as the loader's workers do; the table of
parts comes from separate steps that wait after each part.
"""

import argparse
import gc
import platform
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from benchmarks.steps.candidates import SWEEPS, HubertStep, SJepaStep, StepArguments
from benchmarks.steps.flops import bf16_peak
from benchmarks.steps.turns import ratio, take_turns, wait_for
from sjepa_hf.command import command
from training.common.command_line import options_of
from training.common.memory import keep_freed_memory


GPU_STEPS = 10  # steps of a turn on a GPU


class Stopwatch:
    """Seconds of each part of a step; waits for the device before and after."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def part(self, name: str):
        wait_for(self.device)
        start = time.perf_counter()
        yield
        wait_for(self.device)
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)


def peak_memory(device: torch.device) -> float:
    """GiB: on a GPU the most that tensors took since the last reset, else the most that this process was resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def warm_up(step: Callable, arguments: StepArguments) -> None:
    """Steps that no figure contains; a compiled model sees batches of several sizes first."""
    for _ in range(3 if arguments.compile != "no" or arguments.device == "cuda" else 1):
        step()


# Reports


def measure(arguments: StepArguments, accelerator: Accelerator) -> None:
    """Print everything about one setting."""
    device = torch.device(arguments.device)
    ours = SJepaStep(arguments, accelerator)
    encoder = sum(p.numel() for p in ours.model.sjepa.parameters())
    print(
        f"{Path(arguments.config).stem}, phase {arguments.phase}: {arguments.clips} x {arguments.seconds:g} s,"
        f" {arguments.dtype}, {device_name(arguments)}; encoder {encoder / 1e6:.1f}M parameters,"
        f" {ours.config.num_hidden_layers} layers, {ours.config.num_mixture_components} components"
    )
    warm_up(ours, arguments)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    report_parts(ours, arguments)

    steps = {"ours": ours}
    if arguments.visible_only:
        steps["visible only"] = SJepaStep(arguments, accelerator, encode_visible_only=True)
    if "naive" in arguments.against:
        naive = ours.naive()
        steps["naive"] = lambda: naive.train_on(ours.batches())
    if "hubert" in arguments.against:
        steps["HuBERT"] = HubertStep(ours)
    for step in steps.values():  # ours too: a compiled one may be compiled anew once another model has run
        warm_up(step, arguments)
    seconds = take_turns(steps, arguments.repeats, device, GPU_STEPS if device.type == "cuda" else 1)
    report_turns(seconds, arguments)
    for name in ("ours", "visible only"):
        if name in steps:
            report_flops(name, steps[name].flops(), statistics.median(seconds[name]), device)
    if arguments.check_syncs:
        check_syncs(ours)
    if arguments.profile:
        for name in steps:
            print(f"\n{name}", profile(steps[name], device), sep="\n")


def device_name(arguments: StepArguments) -> str:
    """The device in words."""
    return torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {arguments.threads} thread(s)"


def report_parts(ours: SJepaStep, arguments: StepArguments) -> None:
    """Median seconds of each part, and the peak of memory."""
    watch = Stopwatch(ours.device)
    for _ in range(arguments.repeats):
        ours(watch.part)
    medians = {name: statistics.median(values) for name, values in watch.seconds.items()}
    print("\npart of a step               ms   share")
    for name, value in medians.items():
        print(f"{name:24s} {1e3 * value:8.1f} {value / sum(medians.values()):6.1%}")
    kind = "allocated on the GPU" if ours.device.type == "cuda" else "resident"
    print(f"peak memory of our step: {peak_memory(ours.device):.2f} GiB {kind}")


def report_turns(seconds: dict[str, list[float]], arguments: StepArguments) -> None:
    """Step time and throughput of each, and its ratio to ours turn by turn."""
    audio = arguments.clips * arguments.seconds
    print("\nwhole step        ms (    min      max)   audio s / s   step time / ours (min to max)")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(
            f"{name:12s} {1e3 * median:7.1f} ({1e3 * min(values):7.1f}  {1e3 * max(values):7.1f})"
            f" {audio / median:13.1f}   {ratio(values, seconds['ours'])}"
        )


def report_flops(name: str, parts: dict[str, int], seconds: float, device: torch.device) -> None:
    """Operations of a step by part, and the rate that the median step reaches."""
    total = sum(parts.values())
    rate = total / seconds
    print(f"\n{name}: {total / 1e9:.1f} GFLOP a step, {rate / 1e9:.1f} GFLOP/s")
    print("  " + ", ".join(f"{part} {flops / total:.1%}" for part, flops in parts.items()))
    peak = bf16_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if peak:
        print(f"  model-FLOPs utilisation {rate / peak:.1%} of the dense bf16 peak of {peak / 1e12:.0f} TFLOP/s")


def sweep(arguments: StepArguments, accelerator: Accelerator) -> None:
    """Our step for each value of one setting."""
    name, *values = arguments.sweep
    device = torch.device(arguments.device)
    print(f"{Path(arguments.config).stem}, phase {arguments.phase}, {arguments.dtype}, {device_name(arguments)}")
    memory = "  peak GiB" if device.type == "cuda" else ""
    print(f"{name:>10s}  step ms (    min      max)   audio s / s  GFLOP  GFLOP/s{memory}")
    for value in map(SWEEPS[name], values):
        setting = replace(arguments, **{name: value})
        torch.compiler.reset()
        step = SJepaStep(setting, accelerator)
        warm_up(step, setting)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        turns = take_turns({"ours": step}, setting.repeats, device, GPU_STEPS if device.type == "cuda" else 1)
        seconds = turns["ours"]
        median, flops = statistics.median(seconds), sum(step.flops().values())
        print(
            f"{value:>10}  {1e3 * median:7.1f} ({1e3 * min(seconds):7.1f}  {1e3 * max(seconds):7.1f})"
            f" {setting.clips * setting.seconds / median:13.1f} {flops / 1e9:6.0f} {flops / median / 1e9:8.1f}"
            + (f" {peak_memory(device):9.2f}" if memory else ""),
            flush=True,
        )
        del step
        gc.collect()


def check_syncs(ours: SJepaStep) -> None:
    """Run a step in which waiting for the GPU is an error, and say how it went."""
    batch = ours.batches()
    wait_for(ours.device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours.train_on(batch)
        print("\nthe host waits for the GPU nowhere in the step")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def profile(step: Callable, device: torch.device) -> str:
    """The operators of one step that take longest by themselves."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        step()
        wait_for(device)
    order = f"self_{device.type}_time_total"
    return profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=50)


@command
def main(argv: list[str] | None = None) -> None:
    """Measure what the command line asks for."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = options_of((StepArguments,), description=__doc__, formatter_class=formatter)
    (arguments,) = parser.parse_args_into_dataclasses(argv)
    torch.set_num_threads(arguments.threads)
    if arguments.device == "cpu":
        keep_freed_memory()
    accelerator = Accelerator(
        cpu=arguments.device == "cpu", mixed_precision="bf16" if arguments.dtype == "bf16" else "no"
    )
    (sweep if arguments.sweep else measure)(arguments, accelerator)


if __name__ == "__main__":
    main()
