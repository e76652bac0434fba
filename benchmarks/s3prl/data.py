"""Small data for seven tasks of SUPERB: WAV files as S3PRL looks for them, and manifests of the same files.

Real speech of the collection stands in for SUPERB's corpora: Arabic command words for Speech Commands, readers of
LibriSpeech for VoxCeleb1, languages for emotions, strings of spoken digits for LibriSpeech's sentences.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import soundfile
import torch

from benchmarks.study.speech_manifest import write_manifest
from sjepa_hf.frames import SAMPLING_RATE
from training.data.labelled import open_labelled
from training.data.waveforms import read_audio
from training.evaluation.superb.diarization import Mixtures
from training.evaluation.superb.verification import made_trials


Rows = dict[str, list[dict]]
"""Rows of a manifest by split: "train", "dev", "test"."""

KEYWORDS = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]  # S3PRL's names; words stand in
PARTS = {"train": "train", "validation": "dev", "test": "test"}
DIGITS = "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split()
BATCH, UNITS = 16, 64  # clips in a batch; units of recurrent layers and x-vectors


@dataclass(frozen=True)
class Experiment:
    """
    A task on small data.

    Attributes:
        write: writes the data below a folder, and gives the manifests' rows and S3PRL's `downstream_expert` settings.
        downstream: S3PRL's name of the task.
        figure: what stands before the figure in what S3PRL prints.
        metric: its name in `training.superb`.
        settings: of `training.superb`.
        dev, test: names of S3PRL's splits; without a dev set the last step is taken.
        percent: S3PRL prints percent.
    """

    write: Callable[[Path, Path], tuple[Rows, dict]]
    downstream: str
    figure: str
    metric: str
    settings: dict
    dev: str | None = "dev"
    test: str = "test"
    percent: bool = False


def table(speech: Path, folder: str) -> list[dict]:
    """Rows of a folder's metadata, each with the whole `path`."""
    with (speech / folder / "metadata.csv").open(newline="") as file:
        return [row | {"path": speech / folder / row["file_name"]} for row in csv.DictReader(file)]


def of_each(rows: list[dict], column: str, count: int) -> Iterator[tuple[str, list[dict]]]:
    """Values of a column, in order, with their first `count` rows; values with fewer are left out."""
    for value, own in groupby(sorted(rows, key=lambda row: row[column]), lambda row: row[column]):
        found = list(own)[:count]
        if len(found) == count:
            yield value, found


def write_wav(path: Path, source: Path | np.ndarray, seconds: float | None = None) -> str:
    """A file, of which the first `seconds`, or samples at 16 kHz, as a WAV file."""
    samples = read_audio(source, max_seconds=seconds) if isinstance(source, Path) else source
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, SAMPLING_RATE, subtype="FLOAT")
    return str(path)


def pooled(**datarc) -> dict:
    """S3PRL's settings of a projection, a mean over the frames and a linear layer."""
    modelrc = {"projector_dim": 256, "select": "UtteranceLevel", "UtteranceLevel": {"pooling": "MeanPooling"}}
    return {"datarc": {"num_workers": 0, **datarc}, "modelrc": modelrc}


def keyword_spotting(speech: Path, root: Path) -> tuple[Rows, dict]:
    """Ten command words, three others as `_unknown_`, and background noises."""
    rows = table(speech, "arabic_speech_commands")
    words = sorted({row["keyword"] for row in rows})[:13]
    names = dict(zip(words, KEYWORDS))
    found: Rows = {"train": [], "dev": [], "test": []}
    for number, row in enumerate(row for row in rows if row["keyword"] in words):
        split, label = PARTS[row["split"]], names.get(row["keyword"], "_unknown_")
        folder = label if label != "_unknown_" else row["keyword"].replace(" ", "_")
        if split == "test":
            path = root / "test" / label / f"{number}.wav"
        else:
            path = root / "speech" / folder / f"{speaker_of_split(number, split)}_nohash_0.wav"
        found[split].append({"audio_filepath": write_wav(path, row["path"], 1.0), "label": label})
    for row in table(speech, "noise/speech_commands"):
        noise = write_wav(root / "speech" / "_background_noise_" / f"{row['kind']}.wav", row["path"])
        for split in ("train", "dev"):
            found[split].append({"audio_filepath": noise, "label": "_silence_"})
    for row in table(speech, "noise/arabic"):
        noise = read_audio(row["path"])
        for n in range(10):
            path = root / "test" / "_silence_" / f"{row['kind']}_{n}.wav"
            piece = noise[n * 2 * SAMPLING_RATE : (2 * n + 1) * SAMPLING_RATE]
            found["test"].append({"audio_filepath": write_wav(path, piece), "label": "_silence_"})
    roots = {"speech_commands_root": str(root / "speech"), "speech_commands_test_root": str(root / "test")}
    return found, pooled(**roots, batch_size=BATCH)


def speaker_of_split(number: int, split: str) -> str:
    """A name that S3PRL's hash of a speaker puts into the split: its lowest tenth is the dev set."""
    for attempt in range(1000):
        name = f"{number}x{attempt}"
        share = int(hashlib.sha1(name.encode()).hexdigest(), 16) % 2**27 / (2**27 - 1)
        if share < 0.1 if split == "dev" else share >= 0.2:
            return name
    raise RuntimeError("no such name")


def speaker_identification(speech: Path, root: Path) -> tuple[Rows, dict]:
    """Readers of LibriSpeech, a second of each clip."""
    found: Rows = {"train": [], "dev": [], "test": []}
    lines = []
    for number, (_, own) in enumerate(of_each(table(speech, "librispeech_train_clean_5/train"), "speaker_id", 27)):
        for n, row in enumerate(own):
            split = "train" if n < 15 else "dev" if n < 20 else "test"
            name = f"id{10001 + number}/rec/{n:05}.wav"
            path = write_wav(root / "dev" / "wav" / name, row["path"], 1.0)
            found[split].append({"audio_filepath": path, "label": str(number)})
            lines.append(f"{1 + list(found).index(split)} {name}\n")
    (root / "splits.txt").write_text("".join(lines))
    files = {"file_path": str(root), "meta_data": str(root / "splits.txt"), "max_timestep": 128_000}
    return found, pooled(**files, train_batch_size=BATCH, eval_batch_size=1)


def emotion(speech: Path, root: Path) -> tuple[Rows, dict]:
    """Six languages of Common Voice in the place of emotions, 1.5 seconds; no voice of the test set is in training.
    The dev set is the fifth that S3PRL draws."""
    languages = ["ar", "de", "et", "ja", "rw", "tr"]
    sessions: dict[str, list[dict]] = {"train": [], "test": []}
    for row in table(speech, "common_voice_57_languages"):
        if row["language"] in languages:
            session = "test" if int(row["speaker"], 16) % 3 == 0 else "train"
            path = write_wav(root / session / Path(row["file_name"]).with_suffix(".wav").name, row["path"], 1.5)
            sessions[session].append({"audio_filepath": path, "label": row["language"]})
    folder = root / "Session1"
    folder.mkdir(exist_ok=True)
    classes = {language: n for n, language in enumerate(languages)}
    for session, rows in sessions.items():
        listed = [{"path": row["audio_filepath"], "label": row["label"]} for row in rows]
        text = json.dumps({"labels": classes, "meta_data": listed})
        (folder / f"{session}_meta_data.json").write_text(text)
    count = len(sessions["train"])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()  # what `random_split` draws
    train, dev = order[: int(0.8 * count)], order[int(0.8 * count) :]
    found = {"train": [sessions["train"][i] for i in train], "dev": [sessions["train"][i] for i in dev]}
    files = {"root": "/", "meta_data": str(root), "valid_ratio": 0.2, "pre_load": True}
    expert = pooled(**files, train_batch_size=BATCH, eval_batch_size=4)
    return found | {"test": sessions["test"]}, expert


def speech_recognition(speech: Path, root: Path) -> tuple[Rows, dict]:
    """Strings of three digits of one speaker, in LibriSpeech's folders."""
    takes = {"train": range(10, 50), "dev": range(5, 10), "test": range(5)}
    names = {"train": "train", "dev": "dev-clean", "test": "test-clean"}
    found: Rows = {}
    speakers: dict[str, dict[tuple[int, int], Path]] = {}
    for row in table(speech, "digits_8khz"):
        take = int(Path(row["file_name"]).stem.split("_")[2])
        speakers.setdefault(row["speaker_id"], {})[int(row["digit"]), take] = row["path"]
    (root / "lengths").mkdir(exist_ok=True)
    for split, count in (("train", 50), ("dev", 6), ("test", 20)):
        rng, found[split], lengths = np.random.default_rng(0), [], []
        for number, (_, files) in enumerate(sorted(speakers.items())):
            folder = f"{names[split]}/{number}/1"
            transcripts = []
            for n in range(count):
                drawn = list(zip(rng.integers(10, size=3).tolist(), rng.choice(takes[split], 3).tolist()))
                waveform = np.concatenate([read_audio(files[one]) for one in drawn])
                text, name = " ".join(DIGITS[digit] for digit, _ in drawn), f"{number}-1-{n:04}"
                path = write_wav(root / folder / f"{name}.wav", waveform)
                found[split].append({"audio_filepath": path, "text": text})
                lengths.append(f"{folder}/{name}.wav,{len(waveform) // 160}\n")  # in frames of 10 ms
                transcripts.append(f"{name} {text}\n")
            (root / folder / f"{number}-1.trans.txt").write_text("".join(transcripts))
        (root / "lengths" / f"{names[split]}.csv").write_text("file_path,length\n" + "".join(lengths))
    (root / "char.dict").write_text("".join(f"{letter} 1\n" for letter in sorted({"|", *"".join(DIGITS)})))
    files = {"libri_root": str(root), "bucket_file": str(root / "lengths"), "dict_path": str(root / "char.dict")}
    files |= {name: [name] for name in names.values()}
    layers = {"module": "LSTM", "bidirection": True, "dim": [UNITS] * 2, "dropout": [0.2] * 2, "sample_rate": [1, 1]}
    layers |= {"layer_norm": [False] * 2, "proj": [False] * 2, "sample_style": "concat"}
    datarc = files | {"num_workers": 0, "batch_size": BATCH, "eval_batch_size": 1, "zero_infinity": True}
    datarc |= {"decoder_args": {"decoder_type": "None"}}
    return found, {"datarc": datarc, "modelrc": {"project_dim": UNITS, "select": "RNNs", "RNNs": layers}}


def phone_recognition(speech: Path, root: Path) -> tuple[Rows, dict]:
    """Phones of 250 speakers of English as a second language, without stress, clips of at most 2.5 seconds."""
    rows = [row for row in table(speech, "speechocean762") if float(row["duration"]) <= 2.5]
    train, test = ([row for row in rows if row["split"] == split] for split in ("train", "test"))
    found: Rows = {}
    for split, own in {"train": train[50:], "dev": train[:50], "test": test[:100]}.items():
        found[split] = [
            {
                "audio_filepath": write_wav(root / split / f"{row['path'].stem}.wav", row["path"]),
                "phones": " ".join(phone.rstrip("012") for phone in row["phones"].split() if phone != "|"),
            }
            for row in own
        ]
    phones = sorted({phone for own in found.values() for row in own for phone in row["phones"].split()})
    (root / "vocab.txt").write_text("".join(f"{phone}\n" for phone in phones))
    corpus = {"name": "libriphone", "bucketing": True, "batch_size": BATCH, "num_workers": 0}
    corpus |= {split: str(root / f"{split}.jsonl") for split in found}
    model = {"project_dim": 256, "zero_infinity": True, "select": "FrameLevel"}
    text = {"mode": "word", "vocab_file": str(root / "vocab.txt")}
    return found, dict(corpus=corpus, model=model, text=text, metric=["per"], metric_higher_better=False)


def diarization(speech: Path, root: Path) -> tuple[Rows, dict]:
    """Mixtures of two readers, those of `training.superb`, in Kaldi's form."""
    found: Rows = {}
    readers = {"train": table(speech, "librispeech_train_clean_5/train")}
    readers["test"] = table(speech, "librispeech_train_clean_5/validation")
    speakers = [own for _, own in of_each(readers["train"], "speaker_id", 6)]
    parts = {"train": sum(speakers[:20], []), "dev": [row for own in speakers[20:] for row in own[:3]]}
    for split, rows in (parts | {"test": readers["test"][:: max(1, len(readers["test"]) // 40)]}).items():
        found[split] = [
            {
                "audio_filepath": write_wav(root / "clips" / f"{row['path'].stem}.wav", row["path"], 2.0),
                "speaker": row["speaker_id"],
            }
            for row in rows
        ]
        folder = root / split
        folder.mkdir(exist_ok=True)
        manifest = root / f"{split}.jsonl"
        write_manifest(manifest, found[split])
        mixtures = Mixtures(open_labelled([str(manifest)], ["speaker"]), "speaker", split)
        kaldi: dict[str, list[str]] = {"wav.scp": [], "segments": [], "utt2spk": [], "reco2dur": []}
        for i in range(len(mixtures)):
            name, other, start = f"rec{i:04}", mixtures.others[i], mixtures.starts[i]
            path = write_wav(folder / "wav" / f"{name}.wav", mixtures[i]["input_values"])
            kaldi["wav.scp"].append(f"{name} {path}")
            kaldi["reco2dur"].append(f"{name} {mixtures.num_samples[i] / SAMPLING_RATE}")
            ends = ((0, mixtures.clips.num_samples[i]), (start, start + mixtures.clips.num_samples[other]))
            for who, (begin, end) in zip("ab", ends):
                kaldi["segments"].append(f"{name}{who} {name} {begin / SAMPLING_RATE} {end / SAMPLING_RATE}")
                kaldi["utt2spk"].append(f"{name}{who} {name}{who}")
        for file, lines in kaldi.items():
            (folder / file).write_text("".join(f"{line}\n" for line in lines))
    loader = {f"{split}_dir": str(root / split) for split in found}
    return found, {
        "loaderrc": loader | {"num_workers": 0, "train_batchsize": BATCH, "eval_batchsize": 1},
        "datarc": {"chunk_size": 2000, "subsampling": 1, "rate": 16000, "use_last_samples": True, "num_speakers": 2},
        "modelrc": {"rnn_layers": 1, "hidden_size": UNITS},
        "scorerc": {"save_predictions": True},
    }


def speaker_verification(speech: Path, root: Path) -> tuple[Rows, dict]:
    """40 speakers of English as a second language to train on, 15 to choose the step with, 40 of the test half."""
    found: Rows = {"train": [], "dev": [], "test": []}
    halves: dict[str, list[dict]] = {"train": [], "test": []}
    for row in table(speech, "speechocean762"):
        if float(row["duration"]) >= 1.5:
            halves[row["split"]].append(row)
    train = list(of_each(halves["train"], "speaker", 10))
    for split, speakers in (("train", train[:40]), ("dev", train[40:55])):
        for speaker, rows in speakers:
            for row in rows:
                folder = root / ("dev" if split == "train" else "select") / "wav" / speaker / "rec"
                path = write_wav(folder / f"{row['path'].stem}.wav", row["path"], 1.5)
                found[split].append({"audio_filepath": path, "speaker": speaker})
    for speaker, rows in list(of_each(halves["test"], "speaker", 5))[:40]:
        for row in rows:
            path = write_wav(root / "test/wav" / speaker / "rec" / f"{row['path'].stem}.wav", row["path"], 1.5)
            found["test"].append({"audio_filepath": path, "speaker": speaker})
    names = ["/".join(Path(row["audio_filepath"]).parts[-3:]) for row in found["test"]]
    trials = made_trials([row["speaker"] for row in found["test"]], "test")
    (root / "trials.txt").write_text("".join(f"{int(same)} {names[a]} {names[b]}\n" for same, a, b in trials))
    files = {"file_path": str(root), "max_timestep": 128_000, "vad_config": {"min_sec": 16_000}, "num_workers": 0}
    files |= {f"{split}_meta_data": str(root / "trials.txt") for split in found}
    modelrc = {"input_dim": UNITS, "agg_module": "SP", "module": "XVector", "utter_module": "UtteranceExtractor"}
    modelrc |= {"ObjectiveLoss": "AMSoftmaxLoss", "LossConfig": {"AMSoftmaxLoss": {"s": 30.0, "m": 0.4}}}
    x_vector = {"agg_dim": round(UNITS * 1500 / 512), "dropout_p": 0.0, "batch_norm": False}
    modelrc["module_config"] = {"XVector": x_vector}
    return found, {"datarc": files | {"train_batch_size": BATCH, "eval_batch_size": 1}, "modelrc": modelrc}


def settings(label: str, steps: int, rate: float, **more) -> dict:
    return dict(label_column=[label], max_steps=steps, learning_rate=rate, batch_size=BATCH, **more)


EXPERIMENTS = {
    "ks": Experiment(keyword_spotting, "speech_commands", "test acc", "accuracy", settings("label", 200, 2e-3)),
    "sid": Experiment(speaker_identification, "voxceleb1", "test acc", "accuracy", settings("label", 200, 2e-3)),
    "er": Experiment(emotion, "emotion", "test acc", "accuracy", settings("label", 200, 2e-3)),
    "asr": Experiment(
        speech_recognition,
        "asr",
        "test-clean wer",
        "wer",
        settings("text", 600, 5e-3, head_units=UNITS),
        dev="dev-clean",
        test="test-clean",
        percent=True,
    ),
    "pr": Experiment(phone_recognition, "ctc", "test per", "per", settings("phones", 200, 1e-2)),
    "sd": Experiment(diarization, "diarization", "der", "der", settings("speaker", 100, 5e-3, head_units=UNITS)),
    "asv": Experiment(
        speaker_verification,
        "sv_voxceleb1",
        "test-EER",
        "eer",
        settings("speaker", 150, 2e-3, head_units=UNITS),
        dev=None,
    ),
}
