"""The loop over shards: each process its own, clips that cannot be used counted, the sentence at the end."""

import logging
from types import SimpleNamespace

import pytest
from source_files import write_clip

from training.corpus.output import OutputFolder
from training.corpus.reading import Corpus
from training.corpus.shards import CorpusProgress, Shard, is_due, print_totals, write_shards
from training.data.bad_audio import BadAudioError


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    """Seven clips in shards of two."""
    for number in range(7):
        write_clip(tmp_path / "clips" / f"{number}.wav", number)
    return Corpus([str(tmp_path / "clips")], 2)


def process(index: int, of: int) -> SimpleNamespace:
    return SimpleNamespace(process_index=index, num_processes=of)


def shard_of(number, rows) -> Shard:
    """The numbers of its clips as a text; the clip 5 cannot be used."""
    good = [row.number for row in rows if row.number != 5]
    bad = [(row.clip.name, "odd") for row in rows if row.number == 5]
    facts = {"clips": len(good), "seconds": 10.0 * len(good)}
    return Shard(facts, bad, lambda folder: (folder / f"{number}.txt").write_text(str(good)))


def test_processes_share_the_shards(corpus, tmp_path, capsys, caplog):
    settings = corpus.settings
    assert settings["clips_per_shard"] == 2 and settings["data"] == [str(tmp_path / "clips")]
    found = []
    for index in (0, 1):
        output, state = OutputFolder(tmp_path / "out", settings, index), process(index, 2)
        assert [n for n in range(4) if is_due(n, output, state)] == [index, index + 2]
        found.append(write_shards(corpus, output, state, 0.5, shard_of))
        assert not any(is_due(n, output, state) for n in range(4))
    assert found[0] is None and (found[1]["clips"], found[1]["seconds"]) == (6, 60.0)
    texts = [(tmp_path / "out" / f"{number}.txt").read_text() for number in range(4)]
    assert texts == ["[0, 1]", "[2, 3]", "[4]", "[6]"]
    with caplog.at_level(logging.INFO):
        print_totals("out", found[0], lambda totals: "")
    assert "others are not" in caplog.text and capsys.readouterr().out == ""
    print_totals("out", found[1], lambda totals: f" and {totals['clips']} more")
    said = capsys.readouterr().out
    assert said.startswith("out: 6 clips, ") and " and 6 more; 1 could not be used {'odd': 1}" in said


def test_progress_counts_what_is_left_to_this_process(corpus, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("training.common.progress.SILENCE", 0)
    output = OutputFolder(tmp_path / "out", corpus.settings)
    with output.shard(0, {}):
        pass
    with caplog.at_level(logging.INFO):
        CorpusProgress("Work", corpus, output, process(0, 2))(1, 5.0)
        CorpusProgress("Work", corpus, output, process(0, 1))(5, 5.0)
        progress = CorpusProgress("Work", corpus, output, process(0, 1))
        progress.began -= 9000  # seconds
        for clips in (1, 2, 9):  # of streams and data that grow there may be more
            progress(clips, 450_000.0)
    one, two, _, three, more = (record.getMessage() for record in caplog.records)
    assert one.startswith("Work: 1 clips, ") and "; of 2, about " in one  # shard 2 of 0 and 2
    assert "; of 5, about 0" in two
    assert three.startswith("Work: 3 clips, 250 hours, 100 times real time; of 5, about 1 h 40 min left")
    assert more.endswith("of 5, about 0 seconds left.")


def test_too_many_clips_that_cannot_be_used_end_the_run(corpus, tmp_path):
    def make(number, rows) -> Shard:
        return Shard({"clips": 25, "seconds": 1.0}, 5 * number * [("x.wav", "odd")], lambda folder: None)

    output = OutputFolder(tmp_path / "out", corpus.settings)
    with pytest.raises(BadAudioError, match="odd"):
        write_shards(corpus, output, process(0, 1), 0.03, make)  # 0 of 25, 5 of 55, 15 of 90
    assert output.is_done(1) and not output.is_done(2)


def test_too_many_of_the_whole_corpus_are_an_error_in_every_run(corpus, tmp_path):
    def make(number, rows) -> Shard:
        return Shard({"clips": 25, "seconds": 1.0}, number * [("x.wav", "odd")], lambda folder: None)

    def run(index: int, max_bad_fraction: float) -> dict | None:
        output = OutputFolder(tmp_path / "out", corpus.settings, index)
        return write_shards(corpus, output, process(index, 2), max_bad_fraction, make)

    assert run(0, 0.04) is None
    for _ in range(2):
        with pytest.raises(BadAudioError, match=r"6 of 106 clips were skipped \(6 odd\), more than"):
            run(1, 0.04)
    assert run(1, 0.06)["clips"] == 100


def test_a_corpus_without_a_usable_clip_is_an_error_in_every_run(corpus, tmp_path):
    def make(number, rows) -> Shard:
        return Shard({"clips": 0, "seconds": 0.0}, [(row.clip.name, "odd") for row in rows], lambda folder: None)

    for _ in range(2):  # the second has nothing left to do
        output = OutputFolder(tmp_path / "out", corpus.settings)
        with pytest.raises(BadAudioError, match=r"No clip .* {'odd': 7}: .*corpus.json names them"):
            write_shards(corpus, output, process(0, 1), 1.0, make)
