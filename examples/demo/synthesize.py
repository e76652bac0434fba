"""A small labelled speech corpus, synthesised on the spot with eSpeak NG.

    python -m examples.demo.synthesize demo-speech --minutes 60

writes `demo-speech/train` (many voices) and `demo-speech/test` (other voices, never in `train`), each a folder of
16 kHz FLAC files with a `metadata.csv` in the form of the audiofolder of `datasets`:
`file_name, transcription, speaker_id, phones, phone_ends, duration`. `phones` are eSpeak's phoneme mnemonics without
stress marks (`sil` for pauses), `phone_ends` the seconds at which each one ends. The synthesiser knows both exactly,
so nothing has to be aligned.

The same seed gives the same bytes. eSpeak keeps state from one utterance to the next and is not thread-safe, so the
speakers are dealt to a fixed number of shards and every shard runs in a process of its own: the result does not
depend on how many of them run at once.
"""

import csv
import ctypes
import json
import multiprocessing
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import fftconvolve, lfilter, resample_poly

from sjepa_hf.command import CommandParser, UserError, command
from sjepa_hf.frames import SAMPLING_RATE


FIELDS = ("file_name", "transcription", "speaker_id", "phones", "phone_ends", "duration")
NUM_SHARDS = 4
TEST_SHARE = 0.25

ACCENTS = ("en-us", "gmw/en", "en-gb-scotland", "en-gb-x-rp", "en-us-nyc", "en-029", "en-gb-x-gbclan")
# Speaker variants of eSpeak NG 1.52. Variants with the same formants never stand on both sides: where a held-out
# voice has near twins (belinda and linda, steph2 and steph, ...), the twins are used nowhere.
TRAIN_VARIANTS = (
    "Alex Andy AnxiousAndy Denis Diogo Gene Henrique Jacky Lee Marco Mario Mike Reed Storm adam anika antonio aunty "
    "benjamin boris croak david f1 f3 f4 grandma grandpa gustave ian john klatt3 klatt4 m1 m2 m3 m4 m5 m7 m8 max "
    "miguel norbert pablo paul pedro sandro zac"
).split()
TEST_VARIANTS = (
    "Alicia Andrea Annie Michael Nguyen ed edward2 f2 iven kaukovalta linda marcelo quincy rob shelby steph"
).split()


@dataclass(frozen=True)
class Speaker:
    """One synthetic voice: an eSpeak accent and variant with its own pitch, liveliness and speed."""

    speaker_id: str
    split: str
    voice: str
    pitch: int
    pitch_range: int
    words_per_minute: int
    seconds: float
    seed: int


def plan_speakers(minutes: float, seed: int = 0) -> list[Speaker]:
    """Who speaks, and for how long: two accents of every training variant, three of every held-out one.

    Speakers of one variant differ in accent, pitch and speed alone: a mean spectrum does not tell them apart.

    Args:
        minutes: length of the whole corpus; a quarter of it is the held-out voices'.
        seed: draws pitch, pitch range and speed of every speaker.
    """
    if minutes <= 0:
        raise ValueError(f"minutes must be positive, got {minutes}.")
    casts = {
        "train": [(variant, n + m) for n, variant in enumerate(TRAIN_VARIANTS) for m in (0, 3)],
        "test": [(variant, n + m) for n, variant in enumerate(TEST_VARIANTS) for m in (0, 2, 4)],
    }
    speakers = []
    for split, cast in casts.items():
        share = TEST_SHARE if split == "test" else 1 - TEST_SHARE
        for variant, accent_number in cast:
            accent = ACCENTS[accent_number % len(ACCENTS)]
            rng = np.random.default_rng([seed, len(speakers)])
            speakers.append(
                Speaker(
                    speaker_id=f"{variant.lower()}-{accent.split('/')[-1]}",
                    split=split,
                    voice=f"{accent}+{variant}",
                    pitch=int(rng.integers(38, 63)),
                    pitch_range=int(rng.integers(30, 80)),
                    words_per_minute=int(rng.integers(135, 200)),
                    seconds=60 * minutes * share / len(cast),
                    seed=int(rng.integers(2**31)),
                )
            )
    return speakers


# what is said

_WORDS = {
    "person": "the baker|my sister|an old sailor|the youngest judge|our neighbour|the tired nurse|a cheerful guide|"
    "the pilot|her cousin|a quiet farmer|the violin teacher|someone in uniform|both brothers|the treasurer",
    "verb": "carried|painted|measured|borrowed|noticed|repaired|watched|hid|chose|weighed|sold|found|brought|"
    "photographed|described|polished|enjoyed|threw away|loosened|guarded",
    "adjective": "huge|wooden|shiny|broken|yellow|narrow|foreign|beige|smooth|noisy|cheap|fragile|ancient|blue|"
    "useful|thick|square|pleasant|dusty|azure",
    "object": "kettle|bridge|garage door|wheelchair|map of the valley|bicycle|church bell|ladder|toy train|feather|"
    "garden hose|pair of gloves|mirage|suitcase|window|jar of cherries|engine|coin|telescope|mushroom soup",
    "place": "behind the station|near the harbour|under the oak tree|at the top of the hill|in the kitchen|"
    "across the river|beside the theatre|outside the village hall|on the third floor|along the coast|"
    "between two mountains|in the usual corner",
    "time": "yesterday|this morning|at half past four|before the storm|after lunch|every Thursday|last June|"
    "a few hours ago|just before sunrise|twelve years later|in the middle of the night|on a foggy evening",
    "number": "two|three|five|six|seven|nine|eleven|fourteen|nineteen|thirty six|forty eight|a hundred|a thousand",
    "plural": "oranges|letters|chairs|foxes|watches|boys|gloves|thumbs|valleys|ships|judges|wings|cakes|measures",
    "clause": "the weather was changing|nobody asked why|the road had vanished|they could hear the thunder|"
    "it made very little noise|the whole village laughed|there was no other choice|the milk had gone sour|"
    "we were all invited|the decision was final",
    "join": "because|although|while|and|but|so",
}
_VOCABULARY = {kind: words.split("|") for kind, words in _WORDS.items()}
_TEMPLATES = (
    "{person} {verb} the {adjective} {object} {place}.",
    "{time}, {person} {verb} {number} {adjective} {plural}.",
    "{person} {verb} {number} {plural} {time}, {join} {clause}.",
    "did {person} really see a {adjective} {object} {place}?",
    "there were {number} {plural} {place}, {join} {clause}.",
    "{time} {clause}, {join} {person} {verb} the {object}.",
    "put the {adjective} {object} {place}, please.",
    "{clause}.",
    "{number} {plural} and a {object} were left {place} {time}.",
)


def make_sentence(rng: np.random.Generator) -> str:
    """One sentence from a small grammar: 3 to 20 words, every English phoneme within reach."""

    def word(match: re.Match) -> str:
        choices = _VOCABULARY[match.group(1)]
        return choices[rng.integers(len(choices))]

    sentence = re.sub(r"\{(\w+)\}", word, _TEMPLATES[rng.integers(len(_TEMPLATES))])
    sentence = re.sub(r"\ba (?=[aeio])", "an ", sentence)
    return sentence[0].upper() + sentence[1:]


# eSpeak NG through ctypes


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_SYNCHRONOUS, _PHONEME_EVENTS, _UTF8, _FROM_CHARACTER = 2, 1, 1, 1
_EVENT_PHONEME = 7
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4


class ESpeak:
    """The synthesiser of the `espeakng-loader` wheel. One instance a process."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise UserError(
                "The demo corpus is spoken by eSpeak NG: pip install espeakng-loader, or give a folder of your own "
                "speech instead (make demo SPEECH=DIR)."
            ) from error
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self.sampling_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, _PHONEME_EVENTS)
        if self.sampling_rate <= 0:
            raise RuntimeError("eSpeak NG did not start: reinstall the espeakng-loader wheel.")
        self._library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        self._chunks: list[bytes] = []
        self._events: list[tuple[int, str]] = []
        self._callback = _CALLBACK(self._receive)  # kept: the library holds a bare pointer to it
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples, num_samples, events) -> int:
        if num_samples > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * num_samples))
        n = 0
        while events[n].type != 0:
            if events[n].type == _EVENT_PHONEME:
                self._events.append((events[n].sample, events[n].id.string.decode("utf-8", "replace")))
            n += 1
        return 0

    def speak(self, text: str, speaker: Speaker, rate: int, seed: int) -> tuple[np.ndarray, list[tuple[int, str]]]:
        """Returns the samples (float64 `[S]` in +-1, at `sampling_rate`) and `(start sample, phoneme)` pairs."""
        library = self._library
        if library.espeak_SetVoiceByName(speaker.voice.encode()) != 0:
            raise RuntimeError(f"this eSpeak NG has no voice named {speaker.voice!r}.")
        settings = {_RATE: rate, _VOLUME: 70, _PITCH: speaker.pitch, _RANGE: speaker.pitch_range}
        for parameter, value in settings.items():
            library.espeak_SetParameter(parameter, value, 0)
        library.espeak_ng_SetRandSeed(seed)
        self._chunks, self._events = [], []
        encoded = text.encode()
        size = ctypes.c_size_t(len(encoded) + 1)
        if library.espeak_Synth(encoded, size, 0, _FROM_CHARACTER, 0, _UTF8, None, None) != 0:
            raise RuntimeError(f"eSpeak NG could not speak {text!r}.")
        samples = np.frombuffer(b"".join(self._chunks), dtype=np.int16).astype(np.float64) / 32768
        return samples, self._events


# from a synthesised utterance to a labelled recording


def phone_name(mnemonic: str) -> str:
    """eSpeak mnemonic -> label: no stress, no allophone marks, `sil` for every kind of pause."""
    if not mnemonic or mnemonic.startswith("_"):
        return "sil"
    return re.sub(r"[#2\[\-|;]+$", "", mnemonic.lstrip("',=%")) or "sil"


def phone_segments(events: list[tuple[int, str]], num_samples: int) -> tuple[list[str], list[int]]:
    """`(start sample, mnemonic)` events -> labels and end samples, strictly rising, the last one `num_samples`."""
    starts = [(0, "sil"), *((max(0, start), phone_name(mnemonic)) for start, mnemonic in events)]
    labels, ends = [], []
    for n, (start, label) in enumerate(starts):
        end = starts[n + 1][0] if n + 1 < len(starts) else num_samples
        if end <= start:
            continue
        if labels and label == labels[-1] == "sil":
            ends[-1] = end
        else:
            labels.append(label)
            ends.append(end)
    return labels, ends


def record(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gives clean speech `[S]` (16 kHz) a room, a microphone, background noise and a level of its own."""
    if rng.random() < 0.5:
        decay = rng.uniform(0.08, 0.35)  # seconds to fall by 60 dB
        length = int(decay * SAMPLING_RATE)
        room = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
        room *= 10 ** (-rng.uniform(3, 15) / 20) / np.linalg.norm(room)
        room[0] = 1.0  # the direct sound: phone boundaries stay where they are
        speech = fftconvolve(speech, room)[: len(speech)]
    speech = lfilter([1.0, rng.uniform(-0.4, 0.4)], [1.0], speech)
    noise = lfilter([1.0], [1.0, -rng.uniform(0.0, 0.95)], rng.standard_normal(len(speech)))
    snr_db = rng.uniform(15, 40)
    noise *= np.sqrt(np.mean(speech**2) / np.mean(noise**2)) * 10 ** (-snr_db / 20)
    mixture = speech + noise
    mixture *= 10 ** (rng.uniform(-32, -20) / 20) / np.sqrt(np.mean(mixture**2))
    return mixture * min(1.0, 0.98 / np.abs(mixture).max())


def _utterances(espeak: ESpeak, speaker: Speaker, folder: Path) -> list[dict[str, str]]:
    """Speaks and writes one speaker's share; returns its metadata rows."""
    rng = np.random.default_rng(speaker.seed)
    (folder / speaker.split / speaker.speaker_id).mkdir(parents=True)
    rows, seconds = [], 0.0
    # one or two sentences a recording to train on, one to test on: more recordings for the speaker probe to score
    most = 1 if speaker.split == "test" else 2
    while not rows or seconds < speaker.seconds - 2:  # 2: half a recording, so that the total comes out on average
        text = " ".join(make_sentence(rng) for _ in range(rng.integers(1, most + 1)))
        rate = speaker.words_per_minute + int(rng.integers(-12, 13))
        samples, events = espeak.speak(text, speaker, rate, seed=int(rng.integers(1, 2**31)))
        labels, ends = phone_segments(events, len(samples))
        # 22,050 Hz -> 16 kHz is 320 samples for every 441
        common = np.gcd(SAMPLING_RATE, espeak.sampling_rate)
        speech = resample_poly(samples, SAMPLING_RATE // common, espeak.sampling_rate // common)
        duration = len(speech) / SAMPLING_RATE
        end_seconds = [end / espeak.sampling_rate for end in ends[:-1]] + [duration]
        name = f"{speaker.speaker_id}/{speaker.speaker_id}-{len(rows):03d}.flac"
        soundfile.write(folder / speaker.split / name, record(speech, rng), SAMPLING_RATE, subtype="PCM_16")
        rows.append(
            {
                "file_name": name,
                "transcription": text,
                "speaker_id": speaker.speaker_id,
                "phones": " ".join(labels),
                "phone_ends": " ".join(f"{end:.4f}" for end in end_seconds),
                "duration": f"{duration:.4f}",
            }
        )
        seconds += duration
    return rows


def _run_shard(task: tuple[list[Speaker], Path]) -> list[tuple[str, list[dict[str, str]]]]:
    speakers, folder = task
    espeak = ESpeak()
    return [(speaker.split, _utterances(espeak, speaker, folder)) for speaker in speakers]


def synthesize(folder: str | Path, minutes: float = 60.0, seed: int = 0, num_processes: int = 2) -> dict[str, float]:
    """Writes the corpus into `folder` (which appears only when complete) and returns the minutes of each split.

    A folder that this function wrote before with the same settings is left as it is.

    Raises:
        ValueError: `folder` exists and holds something else.
        UserError: the `espeakng-loader` wheel is not installed.
    """
    folder = Path(folder)
    settings = {"minutes": minutes, "seed": seed}
    receipt = folder / "corpus.json"
    if receipt.exists() and (found := json.loads(receipt.read_text()))["settings"] == settings:
        return found["split_minutes"]
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists and is not this corpus ({settings}): name another folder or remove it.")

    staging = folder.with_name(folder.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    speakers = plan_speakers(minutes, seed)
    tasks = [(speakers[n::NUM_SHARDS], staging) for n in range(NUM_SHARDS)]
    context = multiprocessing.get_context("forkserver")  # each shard gets a process of its own; one imports for all
    context.set_forkserver_preload(["sjepa_hf.command", "scipy.signal", "soundfile"])
    with context.Pool(min(num_processes, NUM_SHARDS), maxtasksperchild=1) as pool:
        results = [result for shard in pool.map(_run_shard, tasks, chunksize=1) for result in shard]

    split_minutes = {}
    for split in ("train", "test"):
        rows = [row for found, speaker_rows in results if found == split for row in speaker_rows]
        rows.sort(key=lambda row: row["file_name"])
        split_minutes[split] = sum(float(row["duration"]) for row in rows) / 60
        with open(staging / split / "metadata.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    content = {"settings": settings, "split_minutes": split_minutes}
    (staging / "corpus.json").write_text(json.dumps(content, indent=2) + "\n")
    if folder.exists():
        folder.rmdir()  # empty, as checked above
    staging.rename(folder)
    return split_minutes


@command
def main() -> None:
    parser = CommandParser("Synthesise the demo corpus with eSpeak NG.")
    parser.add_argument("folder", type=Path, help="where to write it")
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the whole corpus")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_processes", type=int, default=2)
    args = parser.parse_args()
    start = time.perf_counter()
    minutes = synthesize(args.folder, args.minutes, args.seed, args.num_processes)
    print(
        f"{args.folder}: {minutes['train']:.1f} min train, {minutes['test']:.1f} min test (held-out voices), "
        f"{time.perf_counter() - start:.1f} s"
    )


if __name__ == "__main__":
    main()
