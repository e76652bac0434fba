"""Clusters of any encoder by the command, and units by them."""

import json
import tracemalloc

import pyarrow.parquet as pq
import pytest
from clip_streams import EndlessList, write_clips

from training import fit_units, units
from training.corpus.extraction import unit_extractor
from training.data.sources import Source


def test_fitted_clusters_make_units(corpus_folder, clustered, tmp_path):
    fit = [clustered, "--data", str(corpus_folder), "--layers", "1", "3", "--components", "6", "--frames", "500"]
    (tmp_path / "fitted" / ".incomplete-node7-1").mkdir(parents=True)  # of a fit that was killed
    fit_units.main([*fit, "--output", str(tmp_path / "fitted")])
    described = json.loads((tmp_path / "fitted" / "units.json").read_text())
    assert (described["layers"], described["num_components"], described["method"]) == ([1, 3], 6, "kmeans")
    out = ["--data", str(corpus_folder), "--output", str(tmp_path / "out"), "--max_bad_fraction", "1"]
    with pytest.raises(SystemExit, match="`clusters` is 'mixture', but those of .*fitted were fitted: leave it out"):
        units.main([str(tmp_path / "fitted"), *out, "--clusters", "mixture"])
    units.main([str(tmp_path / "fitted"), *out])
    found = pq.read_table(tmp_path / "out" / "units-00000.parquet").column("units").to_pylist()
    described_units = unit_extractor(str(tmp_path / "fitted"), None, 0, "cpu").description
    assert described_units["encoder weights"] == described["weights"] and described_units["layers"] == [1, 3]
    assert len(found) == 11 and {unit for clip in found for unit in clip} == set(range(6))
    with pytest.raises(SystemExit, match="is there already"):
        fit_units.main([*fit, "--output", str(tmp_path / "fitted")])


def test_fewer_frames_than_clusters_are_refused_at_once():
    with pytest.raises(ValueError, match="`frames` is 100: 500 `components` need at least as many"):
        fit_units.FitArguments(["a"], [1], "out", components=500, frames=100)
    assert fit_units.FitArguments(["a"], [1], "out", components=100, frames=100).frames == 100
    with pytest.raises(ValueError, match=r"`max_seconds` must be at least 0.025 \(one frame\)"):
        fit_units.FitArguments(["a"], [1], "out", max_seconds=0.02)


def test_why_nothing_can_be_fitted_is_said(clustered, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.wav").write_bytes(b"no audio")
    with pytest.raises(SystemExit, match=r"no usable clip: 3 of 3 clips were skipped \(3 corrupt\)"):
        fit_units.main([clustered, "--data", str(tmp_path / "in"), "--layers", "1", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_clips_of_a_long_list_are_drawn_in_little_memory(corpus_folder, monkeypatch):
    endless = Source("list", EndlessList(str(corpus_folder / "00.wav")))
    monkeypatch.setattr(fit_units, "open_source", lambda spec, **options: endless)
    tracemalloc.start()
    try:
        drawn = fit_units.waveforms(fit_units.FitArguments(["list"], [1], "out"))
        assert len(next(drawn)) == len(next(drawn)) == 1600
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_clips_of_all_sources_come_once_in_an_order_of_the_seed(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, count, first in zip(folders, (5, 8), (0, 5)):
        folder.mkdir()
        write_clips(folder, count, first)

    def order(seed):
        arguments = fit_units.FitArguments(list(map(str, folders)), [1], "out", seed=seed)
        return [round(float(samples[0]) * 1000) for samples in fit_units.waveforms(arguments)]

    assert sorted(order(0)) == list(range(13)) and order(0) == order(0) != order(1)


def test_bad_clips_are_looked_at_as_they_come(tmp_path, monkeypatch):
    """Not once all are read: of a long list that would be late, and never where enough frames come first."""

    class Told(Exception):
        pass

    class Monitor(fit_units.BadAudioMonitor):
        def check(self, **options):
            raise Told(options)

    monkeypatch.setattr(fit_units, "BadAudioMonitor", Monitor)
    for number in range(3):
        (tmp_path / f"{number}.wav").write_bytes(b"no audio")
    with pytest.raises(Told, match="^{}$"):
        next(fit_units.waveforms(fit_units.FitArguments([str(tmp_path)], [1], "out")))
