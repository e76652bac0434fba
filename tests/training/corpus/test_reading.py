"""Shards of the clips of any source, in their order."""

from dataclasses import replace

import pytest
from source_files import write_clip, write_parquet

from training.corpus.reading import Corpus, CorpusArguments, check_names


def numbers(corpus: Corpus) -> list[list[int]]:
    """Peaks of the clips of each shard, which are their numbers."""
    return [[round(float(row.clip.read()[0] * 100)) for row in rows] for _, rows in corpus.shards()]


def test_shards_run_over_all_sources_and_say_what_is_what(tmp_path):
    for number in range(5):
        write_clip(tmp_path / "a" / f"{number}.wav", number + 1)
    write_parquet(tmp_path / "b" / "train.parquet", range(10, 14))
    specs = [str(tmp_path / "a"), str(tmp_path / "b")]
    corpus = Corpus(specs, clips_per_shard=4)
    assert corpus.size == 9 and numbers(corpus) == [[1, 2, 3, 4], [5, 10, 11, 12], [13]]
    (_, _), (_, rows), (_, _) = corpus.shards()
    rows = list(rows)
    assert [row.number for row in rows] == [4, 5, 6, 7]
    assert [row.source for row in rows] == [specs[0], *[specs[1]] * 3]
    corpus.sources[1] = replace(corpus.sources[1], dataset=[{"audio": b"no path"}] * 4)
    assert corpus.row(6).clip.name == f"{specs[1]}[1]"


def test_streams_have_the_same_shards(tmp_path):
    write_parquet(tmp_path / "b" / "train.parquet", range(10, 17))
    spec = [str(tmp_path / "b")]
    write_clip(tmp_path / "a" / "0.wav", 1)
    both = Corpus([str(tmp_path / "a"), *spec], clips_per_shard=5, streaming=True)
    assert both.size is None and numbers(both) == [[1, 10, 11, 12, 13], [14, 15, 16]]
    streamed = Corpus(spec, clips_per_shard=3, columns=("speaker",), streaming=True)
    assert streamed.size is None and numbers(streamed) == numbers(Corpus(spec, clips_per_shard=3))
    shards = {number: list(rows) for number, rows in streamed.shards()}
    assert [row.number for row in shards[1]] == [3, 4, 5]
    assert [(row.number, row.labels) for row in shards[2]] == [(6, {"speaker": "a"})]


def test_a_stream_without_a_clip_gets_a_sentence(tmp_path):
    write_parquet(tmp_path / "b" / "train.parquet", range(1))
    corpus = Corpus([str(tmp_path / "b")], clips_per_shard=3, streaming=True)
    corpus.sources[0] = replace(corpus.sources[0], dataset=corpus.sources[0].dataset.take(0))
    with pytest.raises(ValueError, match="b holds no clip"):
        list(corpus.shards())


def test_a_stream_that_breaks_off_says_after_which_row(tmp_path):
    def broken():
        for number in range(2):
            yield {"audio": {"path": None, "bytes": f"clip {number}".encode()}}
        raise KeyError("torn")

    write_parquet(tmp_path / "b" / "train.parquet", range(1))
    corpus = Corpus([str(tmp_path / "b")], clips_per_shard=3, streaming=True)
    corpus.sources[0] = replace(corpus.sources[0], dataset=broken())
    with pytest.raises(ValueError, match="b' cannot be read any further after row 2: 'torn'"):
        list(corpus.shards())


def test_names_that_the_output_has_anyway_are_refused_but_for_those_of_packed_data():
    check_names(["speaker", "name", "source"], ["name", "source", "seconds"])
    with pytest.raises(ValueError, match="`columns` has 'seconds', but seconds are the output's own"):
        check_names(["name", "seconds"], ["name", "source", "seconds"])


def test_what_is_read_and_how_it_is_cut_are_settings(tmp_path):
    write_parquet(tmp_path / "b" / "train.parquet", range(2))
    spec = str(tmp_path / "b")
    corpus = CorpusArguments([spec], "out", columns=["speaker"], streaming=True, clips_per_shard=3).open()
    assert corpus.size is None and corpus.settings.pop("data as it was") == [corpus.sources[0].identity]
    known = {"data": [spec], "audio_column": None, "columns": ["speaker"], "clips_per_shard": 3}
    assert known.items() <= corpus.settings.items()
    with pytest.raises(ValueError, match="`max_bad_fraction`"):
        CorpusArguments([spec], "out", max_bad_fraction=1.5)


def test_the_column_with_the_audio_is_a_setting(tmp_path):
    write_parquet(tmp_path / "b" / "train.parquet", range(2))
    columns = (None, "audio")
    settings = [CorpusArguments([str(tmp_path / "b")], "", audio_column=each).open().settings for each in columns]
    assert [found.pop("audio_column") for found in settings] == [None, "audio"] and settings[0] == settings[1]


def test_what_is_written_of_a_folder_whose_name_is_not_utf8_is(tmp_path):
    write_clip(tmp_path / "in" / "1.wav", 1)
    folder = (tmp_path / "in").rename(tmp_path / "caf\udce9")
    corpus = Corpus([str(folder)], 3)
    row, told = corpus.row(0), f"{tmp_path}/caf\\udce9"
    assert (row.source, row.clip.name, corpus.settings["data"]) == (told, f"{told}/1.wav", [told])


def test_a_column_that_is_not_there_gets_a_sentence(tmp_path):
    write_parquet(tmp_path / "b" / "train.parquet", range(2))
    with pytest.raises(ValueError, match="has no column 'speakers'"):
        Corpus([str(tmp_path / "b")], 3, columns=("speakers",))
