import json

import numpy as np
import pytest
import soundfile
import torch
from sklearn.metrics import mutual_info_score
from transformers import HubertConfig

from sjepa_hf import SJepaForPreTraining
from training.target_information import JointCounts, candidates, information_share, main


def test_information_agrees_with_scikit_learn():
    random = np.random.default_rng(0)
    phones = random.integers(0, 5, 400)
    components = (phones + random.integers(0, 3, 400)) % 7
    counts = JointCounts(5, 7)
    one_hot = torch.eye(7)[torch.from_numpy(components)]
    for part in (slice(0, 150), slice(150, 400)):
        counts.add(torch.from_numpy(phones[part]), one_hot[part])
    found = counts.result()
    expected = mutual_info_score(phones, components) / mutual_info_score(phones, phones)
    assert found.hard == pytest.approx(expected) and found.soft == pytest.approx(expected)
    assert found.entropy_bits == 0 and 5 < found.components_used <= 7


def test_soft_targets_that_say_nothing_know_nothing():
    counts = JointCounts(2, 4)
    counts.add(torch.tensor([0, 1] * 50), torch.full((100, 4), 0.25))
    found = counts.result()
    assert found.soft == pytest.approx(0, abs=1e-9)
    assert found.entropy_bits == pytest.approx(2) and found.components_used == pytest.approx(4)
    assert information_share(torch.eye(3) / 3) == pytest.approx(1)


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
    assert [row["targets"] for row in rows] == [c.name for c in candidates(layers, [0, 4])]
    assert len(rows) == 3 + 2 * (2 * layers + 1)
    found = {row["targets"]: row for row in rows}
    assert found["mfcc"]["hard"] > 0.7, "two tones are told apart"
    assert all(0 < row["hard"] < 1.001 and 1 <= row["components_used"] <= 6 for row in rows)
    assert capsys.readouterr().out.count("\n| ") == len(rows)


def test_what_is_missing_is_named(aligned, tmp_path):
    command = ["--train_data", str(aligned), "--data", str(aligned)]
    with pytest.raises(SystemExit, match="error: .*nowhere cannot be opened as a directory or a name on the Hub"):
        main([str(tmp_path / "nowhere"), *command])
    HubertConfig().save_pretrained(tmp_path / "hubert")
    with pytest.raises(SystemExit, match="error: .*hubert is of type hubert, not an S-JEPA checkpoint"):
        main([str(tmp_path / "hubert"), *command])
    with pytest.raises(SystemExit, match="error: `components` must be at least 2"):
        main([str(tmp_path), *command, "--components", "1"])
