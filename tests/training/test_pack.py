"""The command: packed data read as any other, and every clip accounted for."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from training import pack
from training.corpus.reading import Corpus


def test_what_was_packed_reads_back_bit_for_bit(corpus_folder, tmp_path, capsys):
    options = ["--columns", "speaker", "--clips_per_shard", "5", "--max_bad_fraction", "1"]
    pack.main(["--data", str(corpus_folder), "--output", str(tmp_path / "packed"), *options])
    assert "11 clips" in capsys.readouterr().out
    record = json.loads((tmp_path / "packed" / "corpus.json").read_text())
    assert (record["clips"], record["exact"], record["shards"]) == (11, 11, 3) and len(record["bad"]) == 2
    before = [row for _, rows in Corpus([str(corpus_folder)], 99, ("speaker",)).shards() for row in rows]
    before = [row for row in before if row.number not in (4, 9)]
    after = [row for _, rows in Corpus([str(tmp_path / "packed")], 99, ("speaker",)).shards() for row in rows]
    assert [row.labels for row in before] == [row.labels for row in after]
    for old, new in zip(before, after, strict=True):
        assert np.array_equal(old.clip.read(), new.clip.read())
    options = ["--codec", "opus", "--columns", "name"]
    pack.main(["--data", str(tmp_path / "packed"), "--output", str(tmp_path / "opus"), *options])
    assert "lossy; signal to noise" in capsys.readouterr().out
    (again,) = (tmp_path / "opus").glob("*.parquet")
    assert pq.read_table(again)["name"].to_pylist() == [row.clip.name for row in before]


def test_clips_beyond_full_scale_are_counted_and_named(tmp_path, capsys, caplog):
    (tmp_path / "in").mkdir()
    for name, peak in (("loud", 1.5), ("soft", 0.5)):
        soundfile.write(tmp_path / "in" / f"{name}.wav", np.tile([peak, -peak], 8000), 16000, subtype="FLOAT")
    pack.main(["--data", str(tmp_path / "in"), "--output", str(tmp_path / "packed")])
    assert "1 sample for sample, the others rounded; 1 pass full scale and were clipped" in capsys.readouterr().out
    assert "Clipped at full scale, 1 of shard 0: " in caplog.text and "loud.wav" in caplog.text


def test_other_settings_are_refused(corpus_folder, tmp_path):
    arguments = ["--data", str(corpus_folder), "--output", str(tmp_path / "packed"), "--max_bad_fraction", "1"]
    pack.main([*arguments, "--format", "tar"])
    with pytest.raises(SystemExit, match='made with `format` "tar", now it is "parquet"'):
        pack.main(arguments)
    with pytest.raises(SystemExit, match="`kbits` must lie between 6 and 256"):
        pack.main([*arguments, "--codec", "opus", "--kbits", "3"])
    with pytest.raises(SystemExit, match="`kbits` is of Opus: take --codec opus, or leave it out"):
        pack.main([*arguments, "--kbits", "32"])
    for name in ("audio", "seconds"):
        with pytest.raises(SystemExit, match=f"`columns` has '{name}', but audio, .* are the output's own"):
            pack.main([*arguments, "--columns", name])
