"""Bytes, FLOP and operations of a pretraining step, counted on any machine: no GPU, no memory, no clock.

    python -m benchmarks.traffic --config base --clips 24 --seconds 15
    python -m benchmarks.traffic --config base --clips 24 --seconds 15 --against hubert
    python -m benchmarks.traffic --config tiny --clips 4 --seconds 8 --longest 20

The step is that of `benchmarks.step`, run once on fake tensors, which have shapes and dtypes and no values
(`steps/operations.py` says what counts, `steps/cuda_rules.py` how a GPU is stood in for). "roof" is the time on an
H100 if each operation took the longer of bytes / 2.7 TB/s and FLOP / 550 TFLOP/s (50 in fp32): what the eager step
cannot get below without other operations. All clips have one length, so nothing is padded. Rows follow the step;
"front end: first layer" is its product alone, and the norm that is folded into it is part of "front end".
"""

import argparse
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.steps.candidates import HubertStep, SJepaStep, StepArguments
from benchmarks.steps.cuda_rules import cuda_rules
from benchmarks.steps.operations import Count, OperationCounter
from sjepa_hf.command import command
from training.common.command_line import options_of


WATCHED = {  # modules of an encoder, ours or HuBERT's, and their rows
    "": "encoder",
    "feature_extractor": "front end",
    "feature_extractor.conv_layers.0": "front end: first layer",
    "encoder.pos_conv_embed": "positional convolution",
}
Counts = dict[tuple[str, str, str], Count]
REST = "predictor, head, loss"
BESIDE = {  # what runs in no encoder
    "ours": {"targets": "mixture", "student forward": REST, "backward": REST},
    "HuBERT": {"forward": "loss", "backward": "loss"},
}


class FakeMode(FakeTensorMode):
    """Context of fake tensors that may be deep-copied: copies of a model share the mode that its tensors name."""

    def __deepcopy__(self, memo: dict) -> "FakeMode":
        return self


@dataclass
class TrafficArguments:
    """What is counted."""

    config: str = field(
        default="base", metadata={"help": "Sizes, mask share and layer of a recipe: its name (base, tiny) or a file."}
    )
    phase: int = field(default=2, metadata={"help": "1: targets from MFCC; 2: from the EMA encoder."})
    clips: int = field(default=24, metadata={"help": "Clips in a batch."})
    seconds: float = field(default=15.0, metadata={"help": "Seconds of each clip."})
    dtype: str = field(default="bf16", metadata={"help": "fp32, or bf16 by autocast."})
    against: list[str] = field(default_factory=list, metadata={"help": "hubert: also its step of the same sizes."})
    longest: int = field(default=0, metadata={"help": "Also this many operations of each step with the highest roof."})

    def __post_init__(self):
        if not set(self.against) <= {"hubert"}:
            raise ValueError(f"`against` is {' '.join(self.against)}; the only choice is hubert.")
        if self.longest < 0:
            raise ValueError(f"`longest` is {self.longest}; give a number of operations.")
        self.step()

    def step(self) -> StepArguments:
        """The same for the benchmark of a step."""
        return StepArguments(self.config, self.phase, self.clips, self.seconds, dtype=self.dtype, device="cpu")


def count_steps(arguments: TrafficArguments) -> dict[str, Counts]:
    """Counts of each step, by (phase, part, operation); the first is ours."""
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if arguments.dtype == "bf16" else "no")
    fake = FakeMode(allow_non_fake_inputs=True)
    with fake, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # the copy for the EMA encoder
        ours = SJepaStep(arguments.step(), accelerator)
        steps = {"ours": ours}
        if "hubert" in arguments.against:
            steps["HuBERT"] = HubertStep(ours)
    batch = {k: fake.from_tensor(v) if torch.is_tensor(v) else v for k, v in ours.batches().items()}
    with fake, cuda_rules():
        return {name: count(step, batch, BESIDE[name]) for name, step in steps.items()}


def count(step: SJepaStep | HubertStep, batch: dict, beside: dict[str, str]) -> Counts:
    """Counts of one step on a batch, both made of fake tensors; `beside` names what runs in no encoder, by phase."""
    step.train_on(batch)  # the optimizer's state is made
    counter = OperationCounter()
    encoders = [step.model] if isinstance(step, HubertStep) else [step.model.sjepa]
    if isinstance(step, SJepaStep) and step.phase == 2:
        encoders.append(step.targets.teacher)
    for encoder in encoders:
        watch_encoder(counter, encoder)
    with counter:
        step.train_on(batch, lambda phase: counter.phase(phase, beside.get(phase, "")))
    return counter.counts


def watch_encoder(counter: OperationCounter, encoder: nn.Module) -> None:
    """Tell the encoder's parts from each other, those that there are."""
    modules = dict(encoder.named_modules())
    for name, part in WATCHED.items():
        if name in modules:
            counter.watch(modules[name], part)


def by_part(counts: Counts) -> dict[tuple[str, str], Count]:
    """Sums over operations, by (phase, part) in the order of the step."""
    sums = defaultdict(Count)
    for (phase, part, _), count in counts.items():
        sums[phase, part] += count
    return sums


def total(counts: Counts) -> Count:
    """The whole step."""
    return sum(counts.values(), Count())


def row(name: str, count: Count) -> str:
    """A line of a table."""
    return (
        f"{name:44s} {count.flops / 1e9:8.1f} {count.bytes / 1e9:8.2f} {count.operations:10d} {1e3 * count.roof:8.2f}"
    )


def report(name: str, counts: Counts, longest: int) -> None:
    """Print a step's table."""
    print(f"\n{name:44s}    GFLOP       GB operations  roof ms")
    for (phase, part), count in by_part(counts).items():
        print(row(": ".join(filter(None, (phase, part))), count))
    print(row("step", total(counts)))
    if longest:
        print("\nlongest by roof")
        for names, count in sorted(counts.items(), key=lambda entry: -entry[1].roof)[:longest]:
            print(row(": ".join(filter(None, names)), count))


@command
def main(argv: list[str] | None = None) -> None:
    """Count what the command line asks for."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = options_of((TrafficArguments,), description=__doc__, formatter_class=formatter)
    (arguments,) = parser.parse_args_into_dataclasses(argv)
    print(
        f"{Path(arguments.config).stem}, phase {arguments.phase}: {arguments.clips} x {arguments.seconds:g} s,"
        f" {arguments.dtype}"
    )
    for name, counts in count_steps(arguments).items():
        report(name, counts, arguments.longest)


if __name__ == "__main__":
    main()
