import json
from contextlib import redirect_stdout

import numpy as np
import pytest
import soundfile
from full_disk import FullDisk
from transformers import HubertConfig

from sjepa_hf import SJepaForPreTraining
from training.target_information import candidates, main


@pytest.fixture
def aligned(tmp_path):
    """Clips of two tones in turn, which are the phones."""
    random = np.random.default_rng(0)
    lines = []
    for number in range(6):
        pieces = random.integers(0, 2, 8)
        at = np.repeat(pieces, 3200)
        samples = np.sin(np.cumsum(np.where(at == 0, 0.1, 0.9))) * 0.2 + 0.01 * random.standard_normal(len(at))
        soundfile.write(tmp_path / f"{number}.wav", samples, 16000)
        ends = " ".join(f"{0.2 * (i + 1):.1f}" for i in range(8))
        lines.append({
            "audio_filepath": f"{number}.wav", "phones": " ".join("ab"[p] for p in pieces), "phone_ends": ends
        })  # fmt: skip
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "clips.jsonl"


def test_every_kind_of_target_is_measured(aligned, make_config, tmp_path, capsys):
    SJepaForPreTraining(make_config("log_mel")).save_pretrained(tmp_path / "model")
    command = [str(tmp_path / "model"), "--train_data", str(aligned), "--data", str(aligned), "--components", "6"]
    main([*command, "--dims", "0", "4", "--frames", "400", "--output", str(tmp_path / "deep" / "found.json")])
    rows = json.loads((tmp_path / "deep" / "found.json").read_text())["rows"]
    layers = make_config("log_mel").num_hidden_layers
    kinds = ("", ", given the clip", ", given the clip, 2 rounds")
    expected = [
        c.name + kind for c in candidates(layers, [0, 4]) for kind in (kinds if c.frame_features else kinds[:1])
    ]
    assert [row["targets"] for row in rows] == expected
    assert len(rows) == 3 * 3 + 2 * (2 * layers + 1)
    found = {row["targets"]: row for row in rows}
    assert found["mfcc"]["hard"] > 0.7, "two tones are told apart"
    assert all(0 < row["hard"] < 1.001 and 1 <= row["components_used"] <= 6 for row in rows)
    assert capsys.readouterr().out.count("\n| ") == len(rows)


def test_figures_are_written_before_they_are_printed(tmp_path, monkeypatch):
    row = dict.fromkeys(("soft", "soft_chance", "hard", "hard_chance", "entropy_bits", "components_used"), 0.5)
    rows = [row | {"targets": "mfcc", "components": 6}]
    monkeypatch.setattr("training.target_information.run", lambda *_: rows)
    with redirect_stdout(FullDisk()), pytest.raises(SystemExit, match="error: .*No space left"):
        main(["model", "--train_data", "a", "--data", "b", "--output", str(tmp_path / "found.json")])
    assert json.loads((tmp_path / "found.json").read_text())["rows"] == rows


def test_an_output_that_cannot_be_is_told_before_anything_is_opened(tmp_path):
    with pytest.raises(SystemExit, match="error: `output` .* is a directory: name a file"):
        main(["nowhere", "--train_data", "a", "--data", "b", "--output", str(tmp_path)])


def test_a_fit_to_too_few_frames_gets_a_sentence(aligned, make_config, tmp_path):
    SJepaForPreTraining(make_config("log_mel")).save_pretrained(tmp_path / "model")
    command = [str(tmp_path / "model"), "--train_data", str(aligned), "--data", str(aligned), "--frames", "100"]
    with pytest.raises(SystemExit, match="error: Cannot fit 500 components to 100 frames"):
        main([*command, "--components", "500"])


def test_what_is_missing_is_named(aligned, make_config, tmp_path):
    command = ["--train_data", str(aligned), "--data", str(aligned)]
    with pytest.raises(SystemExit, match="error: .*nowhere cannot be opened: there is no such directory"):
        main([str(tmp_path / "nowhere"), *command])
    HubertConfig().save_pretrained(tmp_path / "hubert")
    with pytest.raises(SystemExit, match="error: .*hubert is of type hubert, not an S-JEPA checkpoint"):
        main([str(tmp_path / "hubert"), *command])
    SJepaForPreTraining(make_config("log_mel")).save_pretrained(tmp_path / "model")
    for option, value, message in (
        ("components", "1", "must be at least 2"),
        ("max_clips", "-5", "must be at least 1"),
        ("dims", "-1", "must be at least 0"),
        ("dims", "49", "has 49, but the encoder's features have 48 dimensions"),
    ):
        with pytest.raises(SystemExit, match=f"error: `{option}` {message}"):
            main([str(tmp_path / "model"), *command, f"--{option}", value])
