"""The notebook runs from its first cell to its last, and what is committed was run so, without an error."""

import csv
import json
import shutil
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import soundfile

import examples.demo.synthesize


ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "first_steps.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]


def write_sentences(folder: Path, real: Path | None) -> None:
    """Ten clips with phones in time: real sentences where there are any, else tones."""
    folder.mkdir(parents=True)
    if real is not None:
        with open(real / "metadata.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if float(row["duration"]) < 6][:10]
        for row in rows:
            shutil.copy(real / row["file_name"], folder)
    else:
        rng, rows = np.random.default_rng(0), []
        for number in range(10):
            pieces = [0.3 * np.sin(pitch * np.arange(8000) / 16000) for pitch in (900, 5000, 2000)]
            samples = np.concatenate(pieces) + 0.01 * rng.standard_normal(24000)
            soundfile.write(folder / f"{number}.wav", samples, 16000)
            rows.append({"file_name": f"{number}.wav", "phones": "AH0 S IY1", "phone_ends": "0.5 1.0 1.5"})
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def run_cells() -> dict:
    """Run every code cell in order in one namespace, which is returned."""
    matplotlib.use("Agg")
    names = {}
    with matplotlib.rc_context():  # what it sets is its own
        for number, cell in enumerate(CELLS):
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, cell {number}", "exec"), names)
        for number in plt.get_fignums():
            plt.figure(number).savefig("picture.png")
        plt.close("all")
    return names


def in_a_clone(directory: Path, monkeypatch) -> None:
    """Work in a directory that has the weights which come with the clone, and nothing else."""
    (directory / "model_cards").mkdir()
    (directory / "model_cards" / "tiny").symlink_to(ROOT / "model_cards" / "tiny")
    monkeypatch.chdir(directory)


def test_every_cell_runs_on_the_weights_of_the_clone(speech_if_any, pictures, tmp_path, monkeypatch, capsys):
    in_a_clone(tmp_path, monkeypatch)
    write_sentences(Path("demo-output/speech-60min-seed0/test"), speech_if_any and speech_if_any / "ljspeech_phones")
    names = run_cells()
    assert len(names["accuracies"]["trained"]) == len(names["ranks"]["untrained"]) == 5
    assert names["accuracies"]["MFCC"][0] > 2 * 1 / len(names["names"])  # MFCC tell phones apart
    assert names["heard"][: len(names["clusters"])] == names["clusters"].tolist()
    assert "knows most of phones" in capsys.readouterr().out
    if speech_if_any:
        assert max(names["accuracies"]["trained"]) > names["accuracies"]["MFCC"][0]


def test_without_the_demo_fresh_speech_stands_in(pictures, tmp_path, monkeypatch, capsys):
    in_a_clone(tmp_path, monkeypatch)
    monkeypatch.setattr(
        examples.demo.synthesize, "synthesize", lambda folder, minutes: write_sentences(folder / "test", None)
    )
    run_cells()
    assert "knows most of phones" in capsys.readouterr().out


def test_what_is_committed_was_run_and_is_small():
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(cell["outputs"] for cell in code)
    kinds = [output["output_type"] for cell in code for output in cell["outputs"]]
    assert "error" not in kinds
    assert sum("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"]) >= 2
    said = "".join("".join(output.get("text", [])) for cell in code for output in cell["outputs"])
    assert "Traceback" not in said and "/tmp" not in said
    assert all(output.get("name") != "stderr" for cell in code for output in cell["outputs"])
    assert NOTEBOOK.stat().st_size < 600_000
