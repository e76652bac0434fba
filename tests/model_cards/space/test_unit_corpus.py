"""A corpus of units beside the page: each unit where the model hears it; sentences for what cannot be played."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import unit_corpus
from listening import Listener, read_clip
from segments import cut
from unit_corpus import UnitCorpus

from training import units


@pytest.fixture
def corpus(unit_folder) -> UnitCorpus:
    return UnitCorpus(str(unit_folder.parent / "units"))


def test_every_segment_is_one_that_the_model_hears(corpus, unit_folder, pretrained):
    listener = Listener(pretrained[0], like=corpus.settings)
    clips = {str(path): read_clip(str(path)).samples for path in sorted(unit_folder.glob("*.wav"))}
    heard = {name: listener.hear(samples).runs for name, samples in clips.items()}
    assert corpus.num_clips == len(heard) == 4 and listener.clusters == "prediction"
    for unit in range(10):
        all_runs = {name: [run for run in runs if run.unit == unit] for name, runs in heard.items()}
        having = {name: runs for name, runs in all_runs.items() if runs}
        assert corpus.count(unit) == (sum(map(len, having.values())), len(having))
        found = corpus.segments(unit)
        assert [segment.name for segment in found] == sorted(
            {s.name for s in found}, key=[s.name for s in found].index
        )
        assert {segment.name for segment in found} == having.keys()
        assert list(found) == sorted(found, key=lambda segment: -segment.seconds)
        for segment in found:
            longest = max(having[segment.name], key=lambda run: run.duration)
            assert segment.seconds == pytest.approx(longest.duration)
            assert segment.start in [pytest.approx(run.start, abs=1e-3) for run in having[segment.name]]
            again = cut(segment.name, clips[segment.name], segment.start, segment.seconds)
            assert np.array_equal(segment.samples, again.samples)
    assert sum(corpus.count(unit)[0] for unit in range(10)) == sum(map(len, heard.values())) > 20


def test_a_shard_without_a_usable_clip_is_passed_over(pretrained, unit_folder, tmp_path):
    clips, folder = tmp_path / "clips", tmp_path / "units"
    shutil.copytree(unit_folder, clips)
    (clips / "0.wav").write_text("This is no sound.")
    make = [pretrained[0], "--data", str(clips), "--clusters", "prediction", "--output", str(folder)]
    units.main([*make, "--clips_per_shard", "1"])
    corpus, whole = UnitCorpus(str(folder)), UnitCorpus(str(unit_folder.parent / "units"))
    assert corpus.num_clips == 3
    for unit in range(10):
        rest = [segment.seconds for segment in whole.segments(unit) if not segment.name.endswith("0.wav")]
        assert [segment.seconds for segment in corpus.segments(unit)] == rest


def test_clips_lie_in_the_column_that_the_units_were_made_of(pretrained, unit_folder, tmp_path):
    folder, table = tmp_path / "units", tmp_path / "clips.parquet"
    audio = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(unit_folder.glob("*.wav"))]
    pq.write_table(pa.table({"quiet": [{"bytes": b"", "path": ""}] * 4, "speech": audio}), table)
    make = [pretrained[0], "--data", str(table), "--clusters", "prediction", "--output", str(folder)]
    units.main([*make, "--audio_column", "speech"])
    record = json.loads((folder / "corpus.json").read_text())
    record["settings"]["audio_column"] = "speech"
    (folder / "corpus.json").write_text(json.dumps(record))
    corpus = UnitCorpus(str(folder))
    assert sum(len(corpus.segments(unit)) for unit in range(10)) > 0


def test_audio_that_is_gone(pretrained, unit_folder, tmp_path, monkeypatch):
    clips, folder = tmp_path / "clips", tmp_path / "units"
    shutil.copytree(unit_folder, clips)
    make = [pretrained[0], "--data", str(clips), "--clusters", "prediction", "--output", str(folder)]
    units.main(make)
    corpus = UnitCorpus(str(folder))
    common = max(range(10), key=lambda unit: corpus.count(unit)[1])
    found = corpus.segments(common)
    (clips / found[0].name.rpartition("/")[2]).unlink()
    assert [s.name for s in corpus.segments(common)] == [s.name for s in found[1:]] != []
    monkeypatch.setattr(unit_corpus, "MOST", 2)
    assert [s.name for s in corpus.segments(common)] == [s.name for s in found[1:3]], "two of the three that are left"
    with pytest.raises(ValueError, match="units of .*clips.* are not as they were, or can only be read from front"):
        UnitCorpus(str(folder))
    shutil.rmtree(clips)
    with pytest.raises(ValueError, match="units holds units of cannot be opened: .*clips"):
        UnitCorpus(str(folder))
    streamed = SimpleNamespace(size=None, settings=corpus.settings)
    monkeypatch.setattr(unit_corpus, "Corpus", lambda *_, **__: streamed)
    with pytest.raises(ValueError, match="can only be read from front to back"):
        UnitCorpus(str(folder))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"what": "features"}, "holds features, not units"),
        ({"format": "text"}, "is text: the page reads --format parquet"),
        ({"clusters": "fitted"}, "are of fitted clusters"),
        ({"complete": False}, "is not whole"),
        (None, "holds no corpus of units: python -m training.units writes one"),
    ],
)
def test_what_is_no_corpus_gets_a_sentence(change, sentence, unit_folder, tmp_path):
    if change is not None:
        record = json.loads((unit_folder.parent / "units" / "corpus.json").read_text())
        record["complete"] = change.get("complete", True)
        record["settings"] |= change
        (tmp_path / "corpus.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"`units` .*{sentence}"):
        UnitCorpus(str(tmp_path))
