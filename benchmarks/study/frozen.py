"""Scores of a frozen encoder by `training.superb`: what every score is read off, and how.

Sizes, steps and rates are chosen so that a score takes a few minutes of one core. No voice is in two of training, dev
and test part.
"""

from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.study.speech_manifest import (
    COMMON_VOICE,
    KEYWORDS,
    LANGUAGES,
    LIBRISPEECH,
    PHONES_MANY,
    manifest_rows,
)


SOURCES = {"train": "train_data", "validation": "eval_data", "test": "test_data"}


@dataclass(frozen=True)
class FrozenScore:
    """
    Attributes:
        folder: folder of the speech collection.
        task: of `training.superb`.
        settings: its settings.
        every: of each part, in the order of the metadata, one clip in so many is used.
        test_folder: folder that has the test part, where it is another.
        parts: parts that are used.
    """

    folder: str
    task: str
    settings: dict = field(default_factory=dict)
    every: int = 1
    test_folder: str | None = None
    parts: tuple[str, ...] = tuple(SOURCES)

    def rows(self, speech: Path) -> dict[str, list[dict]]:
        """Rows of a manifest for each source that `training.superb` is given, by its argument."""
        found = {}
        for part in self.parts:
            folder = self.test_folder if part == "test" and self.test_folder else self.folder
            rows = manifest_rows(speech, folder, part)
            if self.folder == COMMON_VOICE:
                rows = [row for row in rows if row["language"] in LANGUAGES]
            if rows:
                found[SOURCES[part]] = rows[:: self.every]
        return found


FROZEN = {
    "phones_many": FrozenScore(
        PHONES_MANY,
        "pr",
        dict(
            label_column="phones",
            stress=False,
            stacked_frames=2,
            split_by="speaker",
            eval_fraction=0.1,
            max_steps=1000,
            learning_rate=2e-3,
            batch_size=16,
        ),
        every=2,
    ),
    "keywords": FrozenScore(KEYWORDS, "ks", dict(label_column="keyword", max_steps=2000, learning_rate=1e-3)),
    "languages": FrozenScore(
        COMMON_VOICE,
        "sid",
        dict(label_column="language", split_by="speaker", eval_fraction=0.1, max_steps=2000, learning_rate=1e-3),
    ),
    "verification": FrozenScore(
        PHONES_MANY,
        "asv",
        dict(label_column="speaker", head_units=128, max_steps=400, learning_rate=1e-3),
        every=2,
    ),
    "diarization": FrozenScore(
        f"{LIBRISPEECH}/train",
        "sd",
        dict(
            label_column="speaker_id",
            split_by="speaker_id",
            eval_fraction=0.1,
            head_units=128,
            max_steps=150,
            learning_rate=3e-3,
            batch_size=8,
        ),
        every=8,
        test_folder=f"{LIBRISPEECH}/validation",
    ),
    "queries": FrozenScore(KEYWORDS, "qbe", dict(label_column="keyword"), parts=("validation", "test")),
}
"""The scores by name: phone error rate on 250 speakers of English as a second language; accuracy on 40 Arabic command
words, and on the language of a clip of Common Voice; equal error rate on pairs of clips of those 250 speakers;
diarization error rate on mixtures of LibriSpeech's readers; MTWV of the Arabic words, looked for by a clip of each."""
