"""A language model of units: a small GPT-2, trained by the Trainer on the runs that `training.units` wrote.

    python -m examples.unit_language_model units_train units_test --output unit-lm

Both folders hold units of the same clusters, as Parquet, JSONL or text; the second one of other speakers. Repeated
units count once. Told is the perplexity per unit on the second folder, the ends of clips counted as units, beside
that of a unigram and of a trigram (interpolated modified Kneser-Ney) of the same units, and a continuation of a clip
of the second folder. A unit that the first folder lacks counts as one unknown unit in n-grams, which flatters them.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from sjepa_hf.command import command
from sjepa_hf.durations import duration
from sjepa_hf.saving import written_aside
from training.common.command_line import parse_dataclasses
from training.common.progress import Progress
from training.common.ranges import check_ranges
from training.corpus.output import units_settings
from training.finetuning.ngram import estimate


CLUSTERS = ("weights", "clusters", "layers", "components", "ema encoder")  # what makes units of two corpora the same
IGNORED = -100  # a label that the loss leaves out
SCORED_AT_ONCE = 8  # clips in a batch
SHOWN = 40  # units of a prompt, and of its continuation


@dataclass
class LanguageModelArguments:
    """The model and its training."""

    output: str = field(metadata={"help": "Folder for the model and perplexities.json; one that is not there."})
    context: int = field(default=256, metadata={"help": "Units that the model sees; longer clips are cut."})
    hidden_size: int = field(default=192, metadata={"help": "Width of the model: a multiple of 32."})
    num_layers: int = field(default=4, metadata={"help": "Layers of the model."})
    num_epochs: float = field(default=2.0, metadata={"help": "Passes over the units."})
    batch_size: int = field(default=4, metadata={"help": "Clips, or pieces of such, in a step."})
    learning_rate: float = field(default=2e-3, metadata={"help": "At its highest; it falls along a cosine."})
    seed: int = field(default=0, metadata={"help": "Of weights, order, dropout and the continuation."})

    def __post_init__(self):
        check_ranges(
            self, positive="num_epochs learning_rate", at_least_1="num_layers batch_size", not_negative="seed"
        )
        if self.context < 8:
            raise ValueError(f"`context` is {self.context}; it must be at least 8.")
        if self.hidden_size < 32 or self.hidden_size % 32:
            raise ValueError(f"`hidden_size` must be a multiple of 32, got {self.hidden_size}.")
        if Path(self.output).exists():
            raise ValueError(f"`output` {self.output} is there already: name a folder that is not.")


def read_units(folder: str) -> tuple[list[list[int]], dict]:
    """
    The runs' units of each clip of a corpus, and its settings.

    Raises:
        ValueError: if the folder is no whole corpus of units.
    """
    settings, clips = units_settings(folder), []
    for file in sorted(Path(folder).glob("units-*")):
        if settings["format"] == "parquet":
            clips += pq.read_table(file, columns=["run_units"])["run_units"].to_pylist()
            continue
        for line in filter(None, file.read_text(encoding="utf-8").splitlines()):  # empty: a clip that cannot be used
            clips.append(
                json.loads(line)["run_units"] if settings["format"] == "jsonl" else list(map(int, line.split()))
            )
    return clips, settings


def read_both(train: str, test: str) -> tuple[list[list[int]], list[list[int]], int]:
    """Clips of both corpora, and how many units there are. Raises ValueError if their clusters are not the same."""
    (train_clips, settings), (test_clips, others) = read_units(train), read_units(test)
    for name in CLUSTERS:
        if settings.get(name) != others.get(name):
            raise ValueError(
                f"{test} holds units of other clusters than {train}: `{name}` is {others.get(name)!r}, not"
                f" {settings.get(name)!r}. Make both with one checkpoint and one --clusters."
            )
    return train_clips, test_clips, settings["components"]


def pieces(clips: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """The clips, longer ones cut into pieces of `size` units."""
    return [list(clip[first : first + size]) for clip in clips for first in range(0, len(clip), size)]


def batch(clips: Sequence[Sequence[int]], boundary: int) -> dict[str, torch.Tensor]:
    """`input_ids` and `labels` `(batch_size, longest + 2)`: clips between boundaries."""
    rows = [torch.tensor([boundary, *clip, boundary]) for clip in clips]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=boundary),
        "labels": pad_sequence(rows, batch_first=True, padding_value=IGNORED),
    }


class Pace(TrainerCallback):
    """Says how far training is."""

    def __init__(self):
        self._say, self._began = Progress("Language model", True), time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        left = (time.monotonic() - self._began) * (state.max_steps / state.global_step - 1)
        self._say(f"step {state.global_step} of {state.max_steps}, about {duration(left)} left")


def train(clips: Sequence[Sequence[int]], num_units: int, arguments: LanguageModelArguments, folder: Path):
    """A GPT-2 of pieces of at most `context - 2` units; the boundary of clips is its last token, `num_units`."""
    transformers.set_seed(arguments.seed)
    config = GPT2Config(
        vocab_size=num_units + 1,
        n_positions=arguments.context,
        n_embd=arguments.hidden_size,
        n_layer=arguments.num_layers,
        n_head=arguments.hidden_size // 32,
        bos_token_id=num_units,
        eos_token_id=num_units,
        pad_token_id=num_units,
    )
    settings = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=arguments.num_epochs,
        per_device_train_batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        weight_decay=0.1,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
        disable_tqdm=True,
        seed=arguments.seed,
    )
    trainer = Trainer(
        GPT2LMHeadModel(config),
        settings,
        train_dataset=[{"input_ids": clip} for clip in clips],
        data_collator=lambda rows: batch([row["input_ids"] for row in rows], num_units),
        callbacks=[Pace()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.model.eval()


@torch.no_grad()
def perplexity(model: GPT2LMHeadModel, clips: Sequence[Sequence[int]]) -> float:
    """Perplexity per unit, the ends of the clips counted as units."""
    total = count = 0
    ordered = sorted(clips, key=len)
    for first in range(0, len(ordered), SCORED_AT_ONCE):
        rows = batch(ordered[first : first + SCORED_AT_ONCE], model.config.bos_token_id)
        predicted = int((rows["labels"][:, 1:] != IGNORED).sum())
        loss = model(**{name: value.to(model.device) for name, value in rows.items()}).loss
        total, count = total + loss.item() * predicted, count + predicted
    return math.exp(total / count)


def ngram_perplexity(order: int, clips: Sequence[Sequence[int]], test: Sequence[Sequence[int]]) -> float:
    """That of an n-gram of `order`, over the same units and ends."""
    model = estimate((" ".join(map(str, clip)) for clip in clips), order)
    return model.perplexity(" ".join(map(str, clip)) for clip in test)


@torch.no_grad()
def continuation(model: GPT2LMHeadModel, prompt: Sequence[int], size: int, seed: int) -> list[int]:
    """At most `size` units drawn after a prompt; fewer where the model ends the clip."""
    boundary = model.config.bos_token_id
    torch.manual_seed(seed)
    ids = torch.tensor([[boundary, *prompt]], device=model.device)
    drawn = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=size)
    return [unit for unit in drawn[0, ids.shape[1] :].tolist() if unit != boundary]


@command
def main(argv: list[str] | None = None) -> None:
    transformers.logging.set_verbosity_error()
    arguments, folders = parse_dataclasses(
        (LanguageModelArguments,),
        argv,
        "A language model of units.",
        train=dict(help="A folder of training.units: what is learned from."),
        test=dict(help="Another one of the same clusters: what perplexity is told of. Take other speakers."),
    )
    known, unheard, num_units = read_both(folders.train, folders.test)
    known, test = (pieces(clips, arguments.context - 2) for clips in (known, unheard))
    found = {name: ngram_perplexity(order, known, test) for name, order in (("unigram", 1), ("trigram", 3))}
    with written_aside(arguments.output) as aside:
        model = train(known, num_units, arguments, aside)
        found["GPT-2"] = perplexity(model, test)
        model.save_pretrained(aside)
        (aside / "perplexities.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{sum(map(len, known)):,} units to learn from, {sum(map(len, test)):,} of {folders.test}; perplexity:")
    for name, value in found.items():
        print(f"  {name:8} {value:8.1f}")
    print(f"The GPT-2 has {model.num_parameters() / 1e6:.1f}M parameters.")
    longest = max(test, key=len)
    size = min(SHOWN, len(longest) // 2)
    prompt, followed = longest[:size], longest[size : 2 * size]
    drawn = continuation(model, prompt, size, arguments.seed)
    for name, units in (("begun", prompt), ("drawn", drawn), ("true", followed)):
        print(f"  {name}: {' '.join(map(str, units))}")


if __name__ == "__main__":
    main()
