"""Clips to try the page with: of a folder, of the demo, or five vowels."""

import numpy as np
import pytest
from example_clips import find_examples
from listening import read_clip


def test_clips_to_try(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (vowels,) = find_examples(None)
    clip = read_clip(str(vowels))
    assert vowels.name == "vowels.wav" and clip.seconds == 2.5 and 0.3 < np.abs(clip.samples).max() < 0.7
    spectra = [np.abs(np.fft.rfft(part)) for part in np.split(clip.samples, 5)]
    centres = [(s * np.arange(len(s))).sum() / s.sum() for s in spectra]
    assert centres[0] > 1.5 * centres[4], "heed is brighter than who'd"
    demo = tmp_path / "demo-output" / "speech-2min-seed0" / "test" / "v1"
    demo.mkdir(parents=True)
    for number in range(20):
        (demo / f"{number:02d}.flac").touch()
    assert [path.name for path in find_examples(None)] == [f"{number:02d}.flac" for number in range(0, 16, 2)]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    for folder in ("mine", "nowhere"):
        with pytest.raises(ValueError, match=f"`examples` {folder} is no folder with audio"):
            find_examples(folder)
    (tmp_path / "mine" / "A.WAV").touch()
    assert [path.name for path in find_examples("mine")] == ["A.WAV"]
