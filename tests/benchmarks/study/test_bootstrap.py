"""Errors of two recognisers, clip by clip: the figures of a case by hand, and what is no pair of results."""

import json

import numpy as np
import pytest
from voices import write_voices

from benchmarks.study import bootstrap


@pytest.fixture(autouse=True)
def few_resamplings(monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLINGS", 2000)


def write_result(folder, heard: dict[str, str], data="dev"):
    """Transcripts of clips that all say "aaaa", by the clips' names."""
    folder.mkdir(exist_ok=True)
    rows = ({"data": data, "clip": name, "reference": "aaaa", "greedy": text} for name, text in heard.items())
    (folder / "transcripts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_half_the_errors_in_every_clip_are_half_of_them_in_each_resampling(tmp_path, capsys, monkeypatch):
    voices = write_voices(tmp_path / "voices")  # the fourth clip has none
    names = [str(voices / f"{i}.wav") for i in range(16) if i != 3]
    first = write_result(tmp_path / "a", dict.fromkeys(names, "bbbb"))
    second = write_result(tmp_path / "b", dict.fromkeys(names, "aabb"))
    bootstrap.main([first, second, "--data", str(voices), "--speaker_column", "voice"])
    said = capsys.readouterr().out
    assert "dev, 15 clips: CER 1.0000 and 0.5000; 50.0% fewer errors (50.0% to 50.0% over clips, 50.0% to" in said
    assert "fewer in 100% of the clips, more in 0%" in said
    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "interval", lambda first, second, groups: f"{len(set(groups))} drawn")
        bootstrap.main([first, second, "--data", str(voices), "--speaker_column", "voice"])
    assert "(15 drawn over clips, 3 drawn over speakers)" in capsys.readouterr().out
    write_result(tmp_path / "b", dict.fromkeys(names, "aabb") | {names[0]: "bbbbb", names[1]: "bbbb"})
    for folder in "ab":  # and another source
        write_result(tmp_path / "more", {"x": "abab", "y": "abba"}, data="test")
        with (tmp_path / folder / "transcripts.jsonl").open("a") as file:
            file.write((tmp_path / "more" / "transcripts.jsonl").read_text())
    bootstrap.main([first, second])
    assert "15 clips: CER 1.0000 and 0.5833; 41.7% fewer errors" in (said := capsys.readouterr().out)
    assert "fewer in 87% of the clips, more in 7%" in said and "speakers" not in said
    assert "test, 2 clips: CER 0.5000 and 0.5000; 0.0% fewer errors (0.0% to 0.0% over clips);" in said


def test_the_interval_is_as_wide_as_what_is_drawn():
    one, other = np.full(100, 4), np.array([0, 4] * 50)
    low, high = (float(end.rstrip("%")) for end in bootstrap.interval(one, other, list(range(100))).split(" to "))
    assert (low, high) == pytest.approx((40, 60), abs=1.5), "two deviations of the binomial of 100"
    assert bootstrap.interval(one, other, [0, 1] * 50) == "0.0% to 100.0%", "two speakers"
    with pytest.raises(ValueError, match="1 clips or speakers with 400 errors are too few"):
        bootstrap.interval(one, other, [0] * 100)


def test_what_cannot_be_compared_gets_a_sentence(tmp_path):
    first, second = (write_result(tmp_path / name, {f"{name}.wav": "b", "x.wav": "b"}) for name in "ab")
    silent = write_result(tmp_path / "c", {"x.wav": "aaaa", "y.wav": "aaaa"})
    voices = write_voices(tmp_path / "voices")
    for arguments, message in {
        (first, str(tmp_path)): "transcripts.jsonl holds no transcripts of .*FileNotFoundError",
        (first, second): "2 clips or references are in one result alone",
        (silent, silent): "2 clips or speakers with 0 errors are too few",
        (first, first, "--data", str(voices), "--speaker_column", "voice"): "--data has no clip a.wav",
    }.items():
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            bootstrap.main([*arguments])
