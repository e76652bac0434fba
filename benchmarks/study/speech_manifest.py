"""Write the JSONL manifest that the runs of the study are trained on.

    python -m benchmarks.study.speech_manifest ../shared/speech train.jsonl

It takes the speech collection of the project, which is no part of this repository: `FOLDERS` of short clips, each with
a metadata.csv. Left out is all audio that something is scored on: the LibriSpeech validation speakers (wherever they
occur), the 600 digits (recording index divisible by 5) and the first 120 LJ Speech clips.
"""

import argparse
import csv
import json
from pathlib import Path

from sjepa_hf.command import command


LIBRISPEECH, PHONES, DIGITS = "librispeech_train_clean_5", "ljspeech_phones", "digits_8khz"
FOLDERS = (f"{LIBRISPEECH}/train", "librispeech_251_speakers", PHONES, DIGITS, "keywords", "coffee_orders")
VALIDATION_SPEAKERS = {"6272", "7367", "7859", "8629"}


def is_scored(folder: str, number: int, row: dict) -> bool:
    """Whether something is scored on this row (`number`: its place in the folder's metadata)."""
    if folder == PHONES:
        return number < 120
    if folder == DIGITS:
        return int(Path(row["file_name"]).stem.split("_")[2]) % 5 == 0
    return row.get("speaker_id") in VALIDATION_SPEAKERS


def manifest_rows(speech: Path, folder: str, scored: bool) -> list[dict]:
    """Rows of a manifest with all labels: of one of the `FOLDERS`, what is scored on, or what is left for training."""
    with (speech / folder / "metadata.csv").open(newline="") as file:
        rows = [row for number, row in enumerate(csv.DictReader(file)) if is_scored(folder, number, row) == scored]
    return [
        {"audio_filepath": str((speech / folder / row.pop("file_name")).resolve()), **row}
        | {"duration": float(row["duration"])}
        for row in rows
    ]


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path, help="folder that holds the collection")
    parser.add_argument("manifest", type=Path, help="JSONL file to write")
    arguments = parser.parse_args(argv)
    rows = [row for folder in FOLDERS for row in manifest_rows(arguments.speech, folder, scored=False)]
    lines = [json.dumps({name: row[name] for name in ("audio_filepath", "duration")}) for row in rows]
    arguments.manifest.write_text("\n".join(lines) + "\n")
    print(f"{len(rows)} clips, {sum(row['duration'] for row in rows) / 3600:.2f} hours -> {arguments.manifest}")


if __name__ == "__main__":
    main()
