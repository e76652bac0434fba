"""Words among noise: noise as far below a word as is said, and features of the word's own frames alone."""

import json

import numpy as np
import pytest
import torch

from benchmarks.study import noise
from benchmarks.study.noise import LEAD, Noises, conditions, vectors
from sjepa_hf.frames import SAMPLING_RATE


@pytest.fixture
def noises() -> Noises:
    rng = np.random.default_rng(1)
    return Noises([rng.standard_normal(6 * SAMPLING_RATE) * loud for loud in (0.01, 1.0)])


def word(seed: int = 0, seconds: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(round(seconds * SAMPLING_RATE))).astype(np.float32)


def test_noise_is_as_far_below_the_word_as_its_name_says(noises):
    clean, disturbances = word(), conditions(noises)
    for name, decibels in {"20 dB": 20, "10 dB": 10, "0 dB": 0}.items():
        added = disturbances[name](clean, np.random.default_rng(2)) - clean
        assert 10 * np.log10(np.mean(clean**2) / np.mean(added**2)) == pytest.approx(decibels, abs=0.01)
    lead = round(LEAD * SAMPLING_RATE)
    for name, decibels in {"2 s of noise 30 dB below before": 30, "2 s of hiss before": 40}.items():
        heard = disturbances[name](clean, np.random.default_rng(2))
        np.testing.assert_array_equal(heard[lead:], clean)
        assert 10 * np.log10(np.mean(clean**2) / np.mean(heard[:lead] ** 2)) == pytest.approx(decibels, abs=0.2)


def test_only_the_words_own_frames_are_read(noises):
    """MFCC are local but for their slopes: within a word, noise before it moves nothing but the first frames."""
    words = [word(seed, seconds) for seed, seconds in ((0, 1.0), (1, 0.61))]
    disturb = conditions(noises)["2 s of hiss before"]

    class Loudness:
        """A layer that says in each frame how loud it is, and in which it stands."""

        def __call__(self, waveforms):
            frames = [torch.from_numpy(waveform).unfold(0, 400, 320) for waveform in waveforms]
            return [torch.stack([f.std(1), torch.arange(len(f)).float()], dim=1)[None] for f in frames]

    alone, among = (vectors(Loudness(), words, how) for how in (noise.unchanged, disturb))
    np.testing.assert_allclose(among[:, [0, 2]], alone[:, [0, 2]], rtol=1e-5)
    np.testing.assert_allclose(among[:, 1], alone[:, 1] + LEAD * 50)


def test_command(monkeypatch, tmp_path, checkpoint, capsys):
    rows = {
        part: [{"audio_filepath": f"{label}{number}", "keyword": label} for number in range(4) for label in ("a", "b")]
        for part in ("train", "test")
    }
    monkeypatch.setattr(noise, "manifest_rows", lambda speech, folder, part: rows[part])

    def read(path) -> np.ndarray:
        if str(path).endswith(".opus"):
            return word(9, 6.0)
        label, number = str(path)
        tone = np.sin(2 * np.pi * (300 if label == "a" else 2500) * np.arange(SAMPLING_RATE) / SAMPLING_RATE)
        return (0.1 * tone).astype(np.float32) + word(int(number)) * 0.01

    monkeypatch.setattr(noise, "read_audio", read)
    monkeypatch.setattr(noise, "among_coloured", None)  # nobody asks for noisy copies
    output = tmp_path / "noise.json"
    noise.main([str(checkpoint), "--speech", str(tmp_path), "--output", str(output)])
    found = json.loads(output.read_text())
    assert list(found) == ["mfcc", f"untrained:{checkpoint}", str(checkpoint)]
    assert all(scores["clean"] == 1.0 for scores in found.values()), "two tones are told apart"
    table = capsys.readouterr().out
    assert "| MFCC | 1.000 |" in table and "2 s of hiss before" in table


def test_noisy_copies_are_fitted_to_beside_the_clean_ones():
    clean, copies = word(), [noise.unchanged, noise.among_coloured]
    first, second = (noise.among_coloured(clean, np.random.default_rng(seed)) for seed in (1, 2))
    assert not np.allclose(first, second)
    ratios = [10 * np.log10(np.mean(clean**2) / np.mean((noisy - clean) ** 2)) for noisy in (first, second)]
    assert all(0 <= ratio <= 25 for ratio in ratios) and abs(ratios[0] - ratios[1]) > 1

    fitted = []

    class Loudness:
        def __call__(self, waveforms):
            fitted.extend(waveforms)
            return [torch.from_numpy(waveform).unfold(0, 400, 320).std(1)[None, :, None] for waveform in waveforms]

    words = [word(seed) * (1, 9)[seed % 2] for seed in range(4)]
    parts = {"train": (words, ["a", "b"] * 2), "test": (words, ["b", "a", "b", "b"])}
    found = noise.accuracies(Loudness(), parts, {"clean": noise.unchanged}, copies)
    assert found == {"clean": 0.25}, "of the test part, by its own labels"
    as_they_are = [any(np.array_equal(heard, clean) for clean in parts["train"][0]) for heard in fitted]
    assert as_they_are == [True] * 4 + [False] * 4 + [True] * 4


def test_the_collection_has_to_be_named(monkeypatch, checkpoint, tmp_path):
    monkeypatch.delenv("SJEPA_SPEECH", raising=False)
    with pytest.raises(SystemExit, match="--speech"):
        noise.main([str(checkpoint), "--output", str(tmp_path / "noise.json")])
