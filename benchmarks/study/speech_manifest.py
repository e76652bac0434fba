"""Write the JSONL manifest that the real-speech runs of this project are trained on.

    python -m benchmarks.study.speech_manifest ../shared/speech train.jsonl

Left out is all audio that something is scored on: the LibriSpeech validation speakers (wherever they occur), the 600
digits (recording index divisible by 5) and the 120 LJ Speech clips of the quick probe.
"""

import argparse
import csv
import json
from pathlib import Path

from sjepa_hf.command import command


VALIDATION_SPEAKERS = {"6272", "7367", "7859", "8629"}
FOLDERS = (
    "librispeech_train_clean_5/train",
    "librispeech_251_speakers",
    "ljspeech_phones",
    "digits_8khz",
    "keywords",
    "coffee_orders",
)


def is_scored(folder: str, number: int, row: dict) -> bool:
    """Whether a probe scores on this row (`number`: its place in the folder's metadata)."""
    if folder == "ljspeech_phones":
        return number < 120
    if folder == "digits_8khz":
        return int(Path(row["file_name"]).stem.split("_")[2]) % 5 == 0
    return row.get("speaker_id") in VALIDATION_SPEAKERS


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path, help="folder that holds the corpora")
    parser.add_argument("manifest", type=Path, help="JSONL file to write")
    arguments = parser.parse_args(argv)
    hours = 0.0
    lines = []
    for folder in FOLDERS:
        with (arguments.speech / folder / "metadata.csv").open(newline="") as file:
            for number, row in enumerate(csv.DictReader(file)):
                if not is_scored(folder, number, row):
                    path = (arguments.speech / folder / row["file_name"]).resolve()
                    lines.append(json.dumps({"audio_filepath": str(path), "duration": float(row["duration"])}))
                    hours += float(row["duration"]) / 3600
    arguments.manifest.write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} clips, {hours:.2f} hours -> {arguments.manifest}")


if __name__ == "__main__":
    main()
