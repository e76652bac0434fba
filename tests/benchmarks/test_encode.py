"""What the benchmark of encoding prints."""

import re
import time

import pytest

from benchmarks import encode


RECIPE = """
model_config:
  hidden_size: 32
  num_hidden_layers: 1
  num_attention_heads: 2
  intermediate_size: 64
  conv_dim: [32, 32, 32, 32, 32, 32, 32]
  num_conv_pos_embeddings: 16
  num_conv_pos_embedding_groups: 4
"""


@pytest.fixture
def recipe(tmp_path) -> str:
    (tmp_path / "narrow.yaml").write_text(RECIPE)
    return str(tmp_path / "narrow.yaml")


@pytest.mark.parametrize("options", [(), ("--padded", "--dtype", "bf16")])
def test_a_row_for_each_encoder_and_batch(recipe, options, capsys):
    encode.main(["--config", recipe, "--clips", "1", "2", "--seconds", "1", "--repeats", "1", *options])
    lines = capsys.readouterr().out.splitlines()
    rows = [re.match(r" *(\d+) x 1 seconds +(\w+) +([\d.]+) ", line).groups() for line in lines if " x 1 s" in line]
    assert [row[:2] for row in rows] == [(n, name) for n in "12" for name in ("ours", "hubert", "wavlm")]
    assert sum("GiB more than before" in line for line in lines) == 2


def test_times_real_time_is_all_that_was_encoded_by_the_median_turn(recipe, monkeypatch, capsys):
    monkeypatch.setattr(encode, "encoders", lambda *_: {})
    monkeypatch.setattr(encode, "measure", lambda *_: {"ours": [0.5, 0.2, 0.4], "hubert": [1.0, 0.8, 0.8]})
    encode.main(["--config", recipe, "--clips", "2", "--seconds", "4"])
    ours, hubert = (line.split(maxsplit=4)[4] for line in capsys.readouterr().out.splitlines() if " x 4 s" in line)
    assert ours.split() == "ours 0.40 ( 0.20 0.50) 20.0 1.00 (1.00 to 1.00)".split()
    assert hubert.split() == "hubert 0.80 ( 0.80 1.00) 10.0 2.00 (2.00 to 4.00)".split()


def test_batches_are_padded_where_asked_for():
    assert set(encode.batch_of(2, 1, False)) == {"input_values"}
    assert encode.batch_of(3, 1, True)["attention_mask"].sum(1).tolist() == [16000, 12000, 8000]


def test_the_peak_is_seen_where_it_is_over_again():
    with encode.Peak() as peak:
        held = bytearray(600 * 2**20)  # more than other tests leave to be freed meanwhile
        time.sleep(0.2)
        del held
        time.sleep(0.1)
    assert peak.most - peak.start > 0.25


@pytest.mark.parametrize("options", [["--clips", "0"], ["--seconds", "0"], ["--repeats", "0"]])
def test_sizes_that_measure_nothing(options, capsys):
    with pytest.raises(SystemExit):
        encode.main(options)
    assert "must be at least" in capsys.readouterr().err
