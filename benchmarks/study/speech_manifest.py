"""Write the JSONL manifest that the runs of the study are trained on.

    python -m benchmarks.study.speech_manifest ../shared/speech train.jsonl                   # 18 hours
    python -m benchmarks.study.speech_manifest ../shared/speech train.jsonl --nine_hours      # of the first study
    python -m benchmarks.study.speech_manifest ../shared/speech train.jsonl --no_share_alike  # for open weights

It takes the speech collection of the project, which is no part of this repository: folders of short clips, each with
a metadata.csv. Left out is all audio that something is scored on: the LibriSpeech validation speakers (wherever they
occur), the 600 digits (recording index divisible by 5), the first 120 LJ Speech clips, the official test and
validation parts of speechocean762 and of the Arabic commands, and in the `LANGUAGES` of Common Voice a third of
the speakers.
"""

import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path

from sjepa_hf.command import CommandParser, command


LIBRISPEECH, PHONES, DIGITS = "librispeech_train_clean_5", "ljspeech_phones", "digits_8khz"
NINE_HOURS = (f"{LIBRISPEECH}/train", "librispeech_251_speakers", PHONES, DIGITS, "keywords", "coffee_orders")
PHONES_MANY, KEYWORDS, COMMON_VOICE = "speechocean762", "arabic_speech_commands", "common_voice_57_languages"
TELEPHONE = "telephone_prompts"
FOLDERS = (*NINE_HOURS, PHONES_MANY, KEYWORDS, COMMON_VOICE, TELEPHONE, "kathleen", "kerstin")

VALIDATION_SPEAKERS = {"6272", "7367", "7859", "8629"}
LANGUAGES = set(  # with 40 speakers and more
    "ar ca cnh cs cy de en es et eu fa fr fy-NL id it ja mn mt nl pl rm-sursilv ru rw tr zh-CN zh-HK zh-TW".split()
)
SHARE_ALIKE_PROMPTS = {"en", "es", "fr"}  # those in Italian and Russian are under CC BY


def speech_folder(named: Path | None) -> Path:
    """The collection that a command line names, or else SJEPA_SPEECH. Raises a ValueError if neither does."""
    folder = named or os.environ.get("SJEPA_SPEECH")
    if not folder:
        raise ValueError("Say where the collection of speech lies: --speech, or SJEPA_SPEECH.")
    return Path(folder).resolve()


def part(folder: str, number: int, row: dict) -> str:
    """
    "train", or what a row of the collection is kept from training for: "validation" or "test".

    Args:
        folder: one of the `FOLDERS`.
        number: place of the row in the folder's metadata.
        row: its columns.
    """
    if folder == PHONES:
        held = number < 120
    elif folder == DIGITS:
        held = int(Path(row["file_name"]).stem.split("_")[2]) % 5 == 0
    elif folder == COMMON_VOICE:
        held = row["language"] in LANGUAGES and int(row["speaker"], 16) % 3 == 0
    elif folder in (PHONES_MANY, KEYWORDS):
        return row["split"]
    else:
        held = row.get("speaker_id") in VALIDATION_SPEAKERS
    return "test" if held else "train"


def is_share_alike(folder: str, row: dict) -> bool:
    """Whether the clip's licence asks that what is made of it is shared under the same one (CC BY-SA)."""
    return folder == DIGITS or (folder == TELEPHONE and row["language"] in SHARE_ALIKE_PROMPTS)


def manifest_rows(speech: Path, folder: str, wanted: str) -> list[dict]:
    """Rows of a manifest with all labels: one `part` of one of the `FOLDERS`."""
    with (speech / folder / "metadata.csv").open(newline="") as file:
        rows = [row for number, row in enumerate(csv.DictReader(file)) if part(folder, number, row) == wanted]
    return [
        {"audio_filepath": str((speech / folder / row.pop("file_name")).resolve()), **row}
        | {"duration": float(row["duration"])}
        for row in rows
    ]


def write_manifest(path: Path, rows: Iterable[dict]) -> None:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("speech", type=Path, help="folder that holds the collection")
    parser.add_argument("manifest", type=Path, help="JSONL file to write")
    parser.add_argument("--nine_hours", action="store_true", help="only the folders of the first study, in English")
    parser.add_argument(
        "--no_share_alike",
        action="store_true",
        help="leave out what is under CC BY-SA: weights may then be published under Apache 2.0",
    )
    arguments = parser.parse_args(argv)
    clips, hours, shown = [], 0.0, []
    for folder in NINE_HOURS if arguments.nine_hours else FOLDERS:
        rows = manifest_rows(arguments.speech, folder, "train")
        if arguments.no_share_alike:
            rows = [row for row in rows if not is_share_alike(folder, row)]
        taken = sum(row["duration"] for row in rows) / 3600
        shown.append(f"{folder:32} {len(rows):5} clips {taken:6.2f} hours")
        clips += [{name: row[name] for name in ("audio_filepath", "duration")} for row in rows]
        hours += taken
    write_manifest(arguments.manifest, clips)
    print(*shown, f"{len(clips)} clips, {hours:.2f} hours -> {arguments.manifest}", sep="\n")


if __name__ == "__main__":
    main()
