"""What an export to ONNX gains and costs: size, agreement with PyTorch, accuracy on a real task, speed.

    python -m benchmarks.onnx runs/asr/final --data dev/
    python -m benchmarks.onnx runs/words/final --data test/ --clips 500 --threads 1 2 4 --batch_sizes 1 16

The checkpoint is exported in fp32 and int8. PyTorch and both files then transcribe or classify the same clips (error
rates of a CTC checkpoint, accuracy of a classifier, none for an encoder without a head), in batches of clips of like
length, and take turns at the clock on batches of clips of about median length. Everything is done on the CPU.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.steps.turns import ratio, take_turns
from sjepa_hf.command import CommandParser, command
from sjepa_hf.encoding import pad_waveforms
from sjepa_hf.export_onnx import export_onnx, open_checkpoint, open_session
from sjepa_hf.feature_extraction import feature_extractor
from sjepa_hf.frames import SAMPLING_RATE
from sjepa_hf.opening import open_processor
from training.common.metrics import load_metric
from training.data.labelled import (
    LABEL_COLUMNS,
    TEXT_COLUMNS,
    LabelledClips,
    choose_column,
    open_labelled,
)
from training.finetuning.beam_search import greedy_decode
from training.finetuning.classification import check_labels_known
from training.finetuning.text import TextNormalizer
from training.finetuning.transcribe import error_rates


COLUMNS = {"ctc": (TEXT_COLUMNS, "transcripts"), "classification": (LABEL_COLUMNS, "labels")}
BATCH_SIZE = 8  # of what is scored
WAYS = ("PyTorch", "ONNX fp32", "ONNX int8")

Batch = dict[str, torch.Tensor]
Way = Callable[[Batch], np.ndarray]


@dataclass
class Subject:
    """A checkpoint and its files."""

    model: torch.nn.Module
    task: str
    files: list[Path]

    def ways(self, threads: int) -> dict[str, Way]:
        """The three ways to run it, each a function from a batch to the task's output."""
        torch.set_num_threads(threads)

        @torch.inference_mode()
        def in_pytorch(batch: Batch) -> np.ndarray:
            output = self.model(**batch)
            return (output.last_hidden_state if self.task == "features" else output.logits).numpy()

        def in_onnx(path: Path) -> Way:
            session = open_session(path, threads)
            return lambda batch: session.run(None, {name: value.numpy() for name, value in batch.items()})[0]

        return dict(zip(WAYS, (in_pytorch, *map(in_onnx, self.files))))


def read(clips: LabelledClips, indices: Sequence[int]) -> tuple[list[int], Batch]:
    """The clips at `indices` as one padded batch, and which they are; those that cannot be used are left out."""
    found = [(i, clip["input_values"]) for i in indices if (clip := clips[i]) is not None]
    if not found:
        return [], {}
    kept, waveforms = zip(*found)
    batch = pad_waveforms(feature_extractor(), waveforms)
    return list(kept), {"input_values": batch["input_values"], "attention_mask": batch["attention_mask"].long()}


def batches(clips: LabelledClips, size: int) -> Iterator[tuple[list[int], Batch]]:
    """All clips in batches of like length."""
    order = sorted(range(len(clips)), key=clips.num_samples.__getitem__)
    for start in range(0, len(order), size):
        kept, batch = read(clips, order[start : start + size])
        if kept:
            yield kept, batch


def compare(subject: Subject, clips: LabelledClips, column: str | None, checkpoint: str, threads: int) -> list[str]:
    """
    Run all clips in every way.

    Returns:
        For each way, a line with the largest absolute difference to PyTorch over the real frames of a clip (of all
        clips, and of the clip in the middle), and the scores.
    """
    ways = subject.ways(threads)
    answers = {way: [] for way in ways}
    references, differences = [], {way: [] for way in ways}
    read_off = reader(subject, checkpoint)
    normalizer = TextNormalizer.load(checkpoint) if subject.task == "ctc" else str
    for kept, batch in batches(clips, BATCH_SIZE):
        if column is not None:
            references += [normalizer(clips.labels[column][i]) for i in kept]
        frames = subject.model._get_feat_extract_output_lengths(batch["attention_mask"].sum(-1)).tolist()
        rows = {}
        for way, call in ways.items():
            output = call(batch)
            rows[way] = list(output) if subject.task == "classification" else [o[:n] for o, n in zip(output, frames)]
            differences[way] += [np.abs(a - b).max(initial=0.0) for a, b in zip(rows[way], rows["PyTorch"])]
            answers[way] += map(read_off, rows[way])
    lines = []
    for way in ways:
        scores = score(subject.task, answers[way], references).items()
        worst, middle = max(differences[way]), statistics.median(differences[way])
        difference = " " * 24 if way == "PyTorch" else f"{worst:10.1e} {middle:10.1e}   "
        lines.append(difference + "   ".join(f"{name} {value:.4f}" for name, value in scores))
    return lines


def reader(subject: Subject, checkpoint: str) -> Callable[[np.ndarray], str | None]:
    """From a clip's output to what it says: a transcript, a class name, or nothing for features."""
    if subject.task == "ctc":
        tokenizer = open_processor(checkpoint).tokenizer
        return lambda logits: greedy_decode(logits, tokenizer)
    if subject.task == "classification":
        return lambda logits: subject.model.config.id2label[int(logits.argmax())]
    return lambda features: None


def score(task: str, answers: list, references: list[str]) -> dict[str, float]:
    if task == "ctc":
        return error_rates(answers, references)
    if task == "classification":
        return load_metric("accuracy").compute(predictions=answers, references=references)
    return {}


def measure_speed(subject: Subject, clips: LabelledClips, threads: int, batch_size: int, repeats: int) -> None:
    """Print audio seconds per second, real-time factor and time beside PyTorch's, for one setting."""
    middle = statistics.median(clips.num_samples)
    nearest = sorted(range(len(clips)), key=lambda i: abs(clips.num_samples[i] - middle))
    _, batch = read(clips, nearest[:batch_size])
    audio = float(batch["attention_mask"].sum()) / SAMPLING_RATE
    ways = subject.ways(threads)
    runs = {way: partial(call, batch) for way, call in ways.items()}
    take_turns(runs, 1, torch.device("cpu"))  # no figure contains the first run
    seconds = take_turns(runs, repeats, torch.device("cpu"))
    for way, values in seconds.items():
        median = statistics.median(values)
        print(
            f"{threads:7d} {len(batch['input_values']):6d} {audio:8.1f}   {way:9s} {audio / median:12.1f}"
            f" ({audio / max(values):7.1f} to {audio / min(values):7.1f}) {median / audio:9.5f}"
            f"   {ratio(values, seconds['PyTorch'])}",
            flush=True,
        )


def benchmark(arguments: argparse.Namespace) -> None:
    """
    Print everything.

    Raises:
        ValueError: if the checkpoint cannot be exported, or the data does not fit it.
    """
    model, task = open_checkpoint(arguments.checkpoint)
    model.set_attn_implementation("sdpa")  # what PyTorch is fastest with
    column = arguments.column
    if task in COLUMNS:
        column = choose_column([arguments.data], column, COLUMNS[task][0], "column", COLUMNS[task][1])
    clips = open_labelled([arguments.data], [column] if column else [])
    if task == "classification":
        check_labels_known(clips.labels[column], list(model.config.id2label.values()), arguments.data)
    if arguments.clips < len(clips):
        clips = clips.select(np.linspace(0, len(clips) - 1, arguments.clips).astype(int).tolist())
    with tempfile.TemporaryDirectory() as folder:
        files = list(export_onnx(arguments.checkpoint, Path(folder) / "model.onnx", task, int8=True))
        subject = Subject(model, task, files)
        sizes = [4 * model.num_parameters(), *(path.stat().st_size for path in files)]
        print(f"{arguments.checkpoint}: {task}, {model.num_parameters() / 1e6:.1f}M parameters")
        print(f"{len(clips)} clips of {arguments.data}, {60 * clips.hours:.1f} minutes, batches of {BATCH_SIZE}\n")
        print("                 MB   difference to PyTorch (worst clip, median clip), scores")
        lines = compare(subject, clips, column, arguments.checkpoint, max(arguments.threads))
        for way, size, line in zip(WAYS, sizes, lines):
            print(f"{way:9s} {size / 1e6:9.1f} {line}")
        print("\nthreads  clips  seconds               audio s / s (    min to     max)       RTF   time / PyTorch's")
        for threads in arguments.threads:
            for batch_size in arguments.batch_sizes:
                measure_speed(subject, clips, threads, batch_size, arguments.repeats)


@command
def main(argv: list[str] | None = None) -> None:
    """Measure what the command line asks for."""
    parser = CommandParser(__doc__)
    parser.add_argument("checkpoint", help="checkpoint with a CTC head, a classifier, or none")
    parser.add_argument("--data", required=True, help="labelled clips, as in fine-tuning")
    parser.add_argument("--column", help="column of the transcripts or labels (default: as in fine-tuning)")
    parser.add_argument("--clips", type=int, default=100, help="clips of it to use, evenly spaced")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=10, help="turns at the clock")
    benchmark(parser.parse_args(argv))


if __name__ == "__main__":
    main()
