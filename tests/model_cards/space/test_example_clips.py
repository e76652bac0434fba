"""Clips to try the page with: of a folder, or the one that comes with it."""

import numpy as np
import pytest
from example_clips import find_examples
from listening import read_clip


def test_clips_to_try(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (own,) = find_examples(None)
    clip = read_clip(str(own))
    assert 5 < clip.seconds < 6 and 0.1 < np.abs(clip.samples).max() < 1
    folder = tmp_path / "clips" / "v1"
    folder.mkdir(parents=True)
    for number in range(20):
        (folder / f"{number:02d}.flac").touch()
    assert [path.name for path in find_examples("clips")] == [f"{number:02d}.flac" for number in range(0, 16, 2)]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    for name in ("mine", "nowhere"):
        with pytest.raises(ValueError, match=f"`examples` {name} is not a folder with audio"):
            find_examples(name)
    (tmp_path / "mine" / "A.WAV").touch()
    assert [path.name for path in find_examples("mine")] == ["A.WAV"]
