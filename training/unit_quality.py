"""Say how good units are: phones, ABX, bitrate, noise, speakers; beside MFCC.

    python -m training.unit_quality runs/mine/final --data aligned/ --train_data my_audio/ --noise noise/ \\
        --words keywords/ --word_label keyword --voices speech/ --speaker_label speaker_id --output quality.json

Subjects: k-means of MFCC, of the untrained encoder and of the encoder at `--layers`, all with as many clusters as the
checkpoint has (or `--components`), fitted to `--train_data`; the checkpoint's mixture and its prediction.

purity       share of aligned frames whose phone is the commonest one of their unit
PNMI         mutual information of unit and phone as a share of the phones' entropy (`hard` in target_information); of
             both in brackets what phones of other clips give, which is much where frames are few
ABX phones   error over triphones of one voice that differ in the middle (0.5: chance), `--data` being of one voice
ABX words    the same over whole clips of `--words`, of one voice and across voices; columns of ABX say how many
             triplets they are of. `--max_clips` draws about as many voices as words, and up to 5 clips of each word of
             each voice, so that there are pairs of one word by one voice
bits/s       of the runs of units, durations not sent
noise, speed edit distance of the runs with noise at `--snr` dB, and 10 % faster, as a share of the runs
speaker      accuracy of a linear probe for the speaker on the histogram of a clip's units (`--voices`)
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import transformers

from sjepa_hf.command import command
from sjepa_hf.fitted_units import KMEANS_PASSES, first_frames
from sjepa_hf.frames import SAMPLING_RATE
from sjepa_hf.kmeans import kmeans, nearest
from sjepa_hf.opening import open_config, open_pretraining
from sjepa_hf.saving import write_text_aside
from sjepa_hf.scores import UNTRAINED, json_text, markdown_table
from sjepa_hf.writable import check_output_file
from training.common.command_line import parse_dataclasses
from training.common.device import default_device
from training.common.progress import Heartbeat
from training.common.ranges import check_enough_frames, check_ranges
from training.corpus.extraction import unit_extractor
from training.data.labelled import LabelledClips, open_labelled
from training.data.manifest import MissingColumn
from training.evaluation.abx import MAX_GROUP, Token, abx
from training.evaluation.alignment import read_alignment
from training.evaluation.encoders import open_encoder
from training.evaluation.layer_features_of_clips import features_of_layers, readable_clips
from training.evaluation.phone_information import JointCounts, number_phones, of_other_clips
from training.evaluation.probes.classifiers import accuracies
from training.evaluation.probes.tasks import utterance_task
from training.evaluation.unit_measures import at_speed, bitrate, phone_tokens, purity, run_edits, with_noise


logger = logging.getLogger(__name__)

SPEED = 1.1
OF_SOURCES = {  # what says how a source is read: its default, and the sources
    "snr": (10.0, "noise"),
    "word_label": ("keyword", "words"),
    "speaker_label": ("speaker", "words", "voices"),
}
Units = Callable[[np.ndarray], np.ndarray]
"""Samples `(num_samples,)` at 16 kHz -> units `(num_frames,)`."""


@dataclass
class QualityArguments:
    """What is measured, on which clips."""

    data: list[str] = field(metadata={"help": "Aligned sources with columns phones and phone_ends."})
    train_data: list[str] = field(metadata={"help": "Sources that k-means is fitted to; labels are not read."})
    layers: list[int] = field(default_factory=list, metadata={"help": "Layers of the encoder for k-means; none."})
    components: int | None = field(default=None, metadata={"help": "Clusters of k-means; default: the checkpoint's."})
    noise: str | None = field(default=None, metadata={"help": "A source of noise."})
    snr: float | None = field(default=None, metadata={"help": "Decibels of speech above noise; default: 10."})
    words: list[str] = field(default_factory=list, metadata={"help": "Sources with a word in each clip, for ABX."})
    word_label: str | None = field(default=None, metadata={"help": "Column of `words`; default: keyword."})
    voices: list[str] = field(default_factory=list, metadata={"help": "Sources of many speakers, for the probe."})
    speaker_label: str | None = field(
        default=None, metadata={"help": "Column of `words` and `voices`; default: speaker."}
    )
    silences: list[str] = field(
        default_factory=lambda: ["sil", "sp", "spn"], metadata={"help": "Phones that are none."}
    )
    frames: int = field(default=100_000, metadata={"help": "Frames that k-means is fitted to."})
    max_clips: int | None = field(
        default=None, metadata={"help": "Clips of each source, drawn at random; of words by voice and word."}
    )
    output: str | None = field(default=None, metadata={"help": "A JSON file for the figures."})
    seed: int = field(default=0, metadata={"help": "Seed of clips, clusters, noise and splits."})

    def __post_init__(self):
        check_ranges(self, at_least_2="components frames", at_least_1="max_clips", seed="seed")
        check_enough_frames(self.frames, self.components or 0)
        for name, (value, *sources) in OF_SOURCES.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
            elif not any(getattr(self, source) for source in sources):
                given = " or ".join(f"`{source}`" for source in sources)
                raise ValueError(f"`{name}` has no use without {given}: give the source, or leave it out.")


def clustered(name: str, layer: int, components: int, clips: LabelledClips, arguments: QualityArguments) -> Units:
    """k-means over a layer of an encoder, fitted to random frames. Raises ValueError if there are too few."""
    extract = features_of_layers(open_encoder(name, default_device(), untrained_seed=arguments.seed), [layer])
    order = np.random.default_rng(arguments.seed).permutation(len(clips)).tolist()
    examples = filter(None, map(clips.__getitem__, order))
    sample = first_frames((torch.from_numpy(extract(e["input_values"])[0]) for e in examples), arguments.frames)
    if len(sample) < components:
        raise ValueError(f"`components` is {components}, but train_data has {len(sample)} frames: give more audio.")
    spread = sample.std(0).clamp_min(1e-6) if name == "mfcc" else torch.ones(sample.shape[1])
    generator = torch.Generator().manual_seed(arguments.seed)
    centroids = kmeans(sample / spread, components, KMEANS_PASSES, generator=generator)
    return lambda samples: nearest(torch.from_numpy(extract(samples)[0]) / spread, centroids).numpy()


def subjects(checkpoint: str, arguments: QualityArguments) -> Iterator[tuple[str, Units]]:
    """Each kind of units by its name, made one at a time."""
    model = open_pretraining(checkpoint) if open_config(checkpoint).model_type == "sjepa" else None
    components = arguments.components or (model.mixture.num_components if model else 500)
    check_enough_frames(arguments.frames, components)
    clips = open_labelled(arguments.train_data, ())
    layers = arguments.layers or [open_config(checkpoint).num_hidden_layers // 2]
    yield f"k-means of MFCC, {components}", clustered("mfcc", 0, components, clips, arguments)
    for kind, name in (("untrained", UNTRAINED + checkpoint), ("encoder", checkpoint)):
        for layer in layers:
            units = clustered(name, layer, components, clips, arguments)
            yield f"k-means of {kind}, layer {layer}, {components}", units
    for source in ("mixture", "prediction") if model else ():
        if source == "mixture" and model.config.mixture_features is None:
            continue
        extract = unit_extractor(checkpoint, source, 0, default_device()).extract
        name = f"{source}, {model.mixture.num_components}"
        yield name, lambda samples, e=extract: e([samples], [checkpoint])[0]["units"].numpy()


class QualityData:
    """The clips that all subjects are measured on: aligned ones, noise, words and voices."""

    def __init__(self, arguments: QualityArguments):
        limit, seed, label = arguments.max_clips, arguments.seed, arguments.speaker_label
        aligned = open_labelled(arguments.data, ("phones", "phone_ends"))
        self.aligned, counts = readable_clips(aligned, limit, seed)
        self.known, self.phones = number_phones(self.aligned, counts)
        self.words = self.voices = None
        if arguments.words:
            words = open_named(arguments.words, {"word_label": arguments.word_label, "speaker_label": label})
            drawn = drawn_words(words.labels[label], words.labels[arguments.word_label], limit, seed)
            self.words = readable_clips(words.select(drawn), None, seed)[0]
        if arguments.voices:
            self.voices = readable_clips(open_named(arguments.voices, {"speaker_label": label}), limit, seed)[0]
        self.noise = None
        if arguments.noise:
            noise = readable_clips(open_labelled([arguments.noise], ()), None, seed)[0]
            self.noise = [noise[i]["input_values"] for i in range(len(noise))]


def open_named(specs: list[str], columns: dict[str, str]) -> LabelledClips:
    """Clips with the columns that options name. Raises a ValueError with the option's name if one is missing."""
    try:
        return open_labelled(specs, tuple(columns.values()))
    except MissingColumn as error:
        option = next(option for option, column in columns.items() if column == error.column)
        raise ValueError(f"{error} Name another with --{option}.") from None


def drawn_words(voices: list[str], words: list[str], max_clips: int | None, seed: int) -> list[int]:
    """
    Numbers of at most `max_clips` clips for ABX, whose voices and words are given; all clips without it. They are of
    about as many voices as words, drawn at random, as many of each word of each voice as ABX keeps.
    """
    if max_clips is None:
        return list(range(len(words)))
    order = np.random.default_rng(seed).permutation(len(words)).tolist()
    voice_ranks = {voice: rank for rank, voice in enumerate(dict.fromkeys(voices[i] for i in order))}
    word_ranks = {word: rank for rank, word in enumerate(dict.fromkeys(words[i] for i in order))}
    cells = defaultdict(list)
    for i in order:
        cells[max(voice_ranks[voices[i]], word_ranks[words[i]]), voices[i], words[i]].append(i)
    drawn = [i for cell in sorted(cells) for i in cells[cell][:MAX_GROUP]]
    return sorted(drawn[:max_clips])


def measure(units: Units, data: QualityData, arguments: QualityArguments) -> dict:
    """All figures of one kind of units; None where there is nothing to measure them on."""
    rng, clips = np.random.default_rng(arguments.seed), data.aligned
    samples = [clips[i]["input_values"] for i in range(len(clips))]
    clean = [units(each) for each in samples]
    size = max(int(each.max()) for each in clean) + 1
    counts, tokens = JointCounts(len(data.known), size), []
    for number, (expected, others, found) in enumerate(
        zip(data.phones, of_other_clips(data.phones), clean, strict=True)
    ):
        one_hot = torch.nn.functional.one_hot(torch.from_numpy(found[: len(expected)]).long(), size).float()
        counts.add(expected, others, one_hot)
        tokens += phone_tokens(found, *read_alignment(clips, number), arguments.silences)
    information = counts.result()
    result = {
        "purity": purity(counts.hard),
        "purity_chance": purity(counts.hard_chance),
        "pnmi": information.hard,
        "pnmi_chance": information.hard_chance,
        **_abx("abx_phones", tokens, False, arguments.seed),
        "bits_a_second": bitrate(clean, sum(map(len, samples)) / SAMPLING_RATE),
        "units_used": len(np.unique(np.concatenate(clean))),
        "speed": run_edits(clean, [units(at_speed(each, SPEED)) for each in samples]),
    }
    if data.noise:
        noisy = [with_noise(s, data.noise[i % len(data.noise)], arguments.snr, rng) for i, s in enumerate(samples)]
        result["noise"] = run_edits(clean, list(map(units, noisy)))
    if data.words:
        labels = data.words.labels
        tokens = [
            Token(units(data.words[i]["input_values"]), word, speaker)
            for i, (word, speaker) in enumerate(zip(labels[arguments.word_label], labels[arguments.speaker_label]))
        ]
        result |= _abx("abx_words_within", tokens, False, arguments.seed)
        result |= _abx("abx_words_across", tokens, True, arguments.seed)
    if data.voices:
        task = utterance_task(data.voices, arguments.speaker_label, 3, arguments.seed)
        found = [units(data.voices[i]["input_values"]) for i in range(len(data.voices))]
        size = max(int(each.max()) for each in found) + 1
        shares = np.stack([np.bincount(each, minlength=size) / len(each) for each in found])
        features = np.sqrt(shares[task.rows.clips]).astype(np.float32)[None]
        result["speaker"] = float(accuracies(task, "linear", features, arguments.seed, 1).mean())
        result["speaker_commonest"] = task.describe()["commonest_class_share"]
    return result


def _abx(name: str, tokens: list[Token], across: bool, seed: int) -> dict:
    error, cells, triplets = abx(tokens, across, seed=seed) or (None, 0, 0)
    return {name: error, f"{name}_cells": cells, f"{name}_triplets": triplets}


COLUMNS = {
    "purity": "purity",
    "pnmi": "PNMI",
    "abx_phones": "ABX phones",
    "abx_words_within": "ABX words, one voice",
    "abx_words_across": "ABX words, across",
    "bits_a_second": "bits/s",
    "noise": "noise",
    "speed": "speed",
    "speaker": "speaker",
}


def table(rows: list[dict]) -> str:
    """Markdown; how many triplets an ABX column is of, which are those of all rows, stands in its head."""
    shown = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    triplets = {name: rows[0].get(f"{name}_triplets") for name in shown}
    heads = [COLUMNS[name] + (f" ({triplets[name]} triplets)" if triplets[name] else "") for name in shown]
    lines = []
    for row in rows:
        figures = [row.get(name) for name in shown]
        texts = [
            "" if f is None else f"{f:.0f}" if n == "bits_a_second" else f"{f:.3f}" for n, f in zip(shown, figures)
        ]
        chance = [row.get(f"{name}_chance") for name in shown]
        texts = [text if c is None else f"{text} ({c:.3f})" for text, c in zip(texts, chance)]
        lines.append([row["units"], *texts])
    return markdown_table(["units", *heads], lines)


@command
def main(argv: list[str] | None = None) -> None:
    transformers.logging.set_verbosity_error()
    arguments, rest = parse_dataclasses(
        (QualityArguments,),
        argv,
        "How good units are.",
        checkpoint=dict(help="An encoder: a directory or Hub name."),
    )
    if arguments.output:
        check_output_file(arguments.output, "output")
    with Heartbeat("opening the data") as heartbeat:
        data, rows = QualityData(arguments), []
        for name, units in subjects(rest.checkpoint, arguments):
            heartbeat.doing = f"measuring {name}"
            rows.append({"units": name, **measure(units, data, arguments)})
            logger.info("%s: %s", name, {key: round(v, 3) for key, v in rows[-1].items() if isinstance(v, float)})
    if arguments.output:
        write_text_aside(arguments.output, json_text({"checkpoint": rest.checkpoint, "rows": rows}, 1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
