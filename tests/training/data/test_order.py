"""The order of the clips: each once, mixed by weight, streamed, shared out, and entered at any section."""

import json
import tarfile
from collections import Counter

import datasets
import numpy as np
import pytest
from clip_streams import NUM_CLIPS, after, as_source, assert_same, loader, numbers, take, write_clips
from datasets import Dataset, load_dataset
from pyarrow.parquet import ParquetFile

from training.data.arguments import DataArguments
from training.data.batches import BatchStream
from training.data.order import ClipIndex, ClipStream, DataPosition, Position, SourcePlace
from training.data.sources import Source, open_source


ARGS = DataArguments(["noise"], batch_seconds=2.0, bucket_buffer_size=20, max_seconds=1.0, min_seconds=0.1)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def items(corpus, epoch, reader=0, num_readers=1, size=7):
    """Keys and items of one reader's epoch, section by section."""
    at, found = Position(epoch), []
    while True:
        pairs, cursor = corpus.section(at, reader, num_readers, size)
        if not pairs:
            return found
        found += pairs
        at = Position(epoch, at.section + 1, 0, cursor)


def counted(*sizes):
    return [Source("test", range(size)) for size in sizes]


@pytest.mark.parametrize("num_readers", [1, 3, 8])
def test_an_epoch_is_every_clip_once(num_readers):
    index = ClipIndex(counted(50, 1, 120), None, 0)
    for epoch in range(2):
        shares = [items(index, epoch, reader, num_readers) for reader in range(num_readers)]
        assert sorted(item for share in shares for _, item in share) == list(range(171))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_weights_and_each_clip_before_any_again():
    index = ClipIndex(counted(40, 9000), [1.0, 3.0], 0)
    shares = [items(index, 1, reader, 2, size=1000) for reader in range(2)]
    pairs = shares[0] + shares[1]
    assert len(pairs) == 9040
    assert 0.23 < sum(item < 40 for _, item in pairs) / len(pairs) < 0.27
    counts = Counter(item for _, item in pairs)
    small = [count for item, count in counts.items() if item < 40]
    assert max(small) - min(small) <= 1
    assert max(count for item, count in counts.items() if item >= 40) == 1
    assert len({key for key, _ in pairs}) == 9040, "a repetition has a key of its own"


def test_a_first_place_leaves_out_what_was_read():
    index = ClipIndex(counted(100), None, 0)
    before = [item for reader in range(4) for _, item in index.section(Position(2), reader, 4, 10)[0]]
    later = ClipIndex(counted(100), None, 0)
    later.first_epoch, later.first_place = 2, 40
    rest = [item for reader in range(3) for _, item in items(later, 2, reader, 3)]
    assert sorted(before + rest) == list(range(100))
    assert sorted(item for _, item in items(later, 3)) == list(range(100))


def streamed(paths: list[str], num_shards: int) -> Source:
    dataset = Dataset.from_dict({"audio": [{"path": path, "bytes": None} for path in paths]})
    return Source("test", dataset.to_iterable_dataset(num_shards=num_shards), "audio")


# One reader, and others: fewer than shards, as many and more.
@pytest.mark.parametrize(
    ("num_shards", "num_processes", "num_workers"),
    [(1, 1, 0), (1, 3, 2), (5, 1, 2), (5, 3, 0), (5, 3, 2), (20, 1, 0), (20, 2, 2)],
)
def test_a_streamed_epoch_is_every_clip_once_too(clips, num_shards, num_processes, num_workers):
    corpus = ClipStream([streamed(clips[:40], num_shards), as_source(clips[40:])], None, 0, buffer_size=10)
    seen = []
    for process_index in range(num_processes):
        batches = BatchStream(
            corpus, ARGS, process_index=process_index, num_processes=num_processes, max_epochs=2, seed=0
        )
        seen += [number for batch in loader(batches, num_workers) for number in numbers(batch)]
    assert sorted(seen) == sorted(2 * list(range(NUM_CLIPS)))


@pytest.mark.parametrize(
    ("num_shards", "weights", "num_workers"), [(1, None, 0), (1, None, 2), (5, [1.0, 0.5], 0), (20, None, 2)]
)
def test_a_stream_continues_where_a_run_stopped(clips, num_shards, weights, num_workers):
    def corpus():
        return ClipStream([streamed(clips[:40], num_shards), as_source(clips[40:])], weights, 0, buffer_size=10)

    whole = take(loader(BatchStream(corpus(), ARGS, seed=0), num_workers), 30)
    assert whole[0]["position"].epoch == 0 and (weights or whole[-1]["position"].epoch >= 2)
    for start in (3, 8, 17):
        resumed = BatchStream(corpus(), ARGS, position=after(whole[:start]), seed=0)
        assert_same(whole[start:], take(loader(resumed, num_workers), 30 - start))


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
@pytest.mark.parametrize(("num_processes", "num_workers"), [(1, 0), (2, 2), (3, 2)])
def test_files_of_shards_are_read_once_an_epoch(tmp_path, clips, kind, num_processes, num_workers):
    files = []
    for number in range(9):
        own = clips[number::9]
        files.append(str(tmp_path / f"{number}.{'parquet' if kind == 'parquet' else 'tar'}"))
        if kind == "parquet":
            cells = [{"path": path, "bytes": open(path, "rb").read()} for path in own]
            Dataset.from_dict({"audio": cells}).to_parquet(files[-1])
        else:
            with tarfile.open(files[-1], "w") as archive:
                for path in own:
                    archive.add(path, arcname=path.split("/")[-1])
    corpus = ClipStream(
        [open_source(f"{tmp_path}/*.{'parquet' if kind == 'parquet' else 'tar'}", streaming=True)], None, 0, 10
    )
    seen = []
    for process_index in range(num_processes):
        batches = BatchStream(
            corpus, ARGS, process_index=process_index, num_processes=num_processes, max_epochs=1, seed=0
        )
        seen += [number for batch in loader(batches, num_workers) for number in numbers(batch)]
    assert sorted(seen) == list(range(NUM_CLIPS))


@pytest.mark.parametrize("fault", ["cut off", "in the middle"])
def test_a_file_that_breaks_off_counts_as_the_clips_that_it_held(tmp_path, clips, fault):
    for number in range(3):
        cells = [{"path": path, "bytes": open(path, "rb").read()} for path in clips[number::3]]
        Dataset.from_dict({"audio": cells}).to_parquet(str(tmp_path / f"{number}.parquet"), batch_size=5)
    torn = tmp_path / "1.parquet"
    whole = bytearray(torn.read_bytes())
    if fault == "cut off":
        torn.write_bytes(whole[: len(whole) // 2])
    else:
        start = ParquetFile(torn).metadata.row_group(2).column(0).data_page_offset
        whole[start : start + 100] = b"\xff" * 100
        torn.write_bytes(whole)
    files = [str(tmp_path / f"{number}.parquet") for number in range(3)]
    features = datasets.Features({"audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    dataset = load_dataset("parquet", data_files=files, split="train", streaming=True, features=features)
    batches = list(BatchStream(ClipStream([Source("s", dataset, "audio")], None, 0, 10), ARGS, max_epochs=1, seed=0))
    seen = [n for batch in batches for n in numbers(batch)]
    assert set(range(0, NUM_CLIPS, 3)) | set(range(2, NUM_CLIPS, 3)) <= set(seen)
    skipped = [entry for batch in batches for entry in batch["skipped"]]
    assert len(seen) + len(skipped) == NUM_CLIPS
    ((name, reason),) = set(skipped)
    assert name.startswith(f"{torn} after row ") and reason == "corrupt"


def test_a_stream_is_shuffled_across_shards_and_epochs(clips):
    corpus = ClipStream([streamed(clips, 9)], None, 0, buffer_size=8)
    orders = [[clips.index(clip.name) for _, clip in items(corpus, epoch)] for epoch in range(3)]
    assert all(sorted(order) == list(range(NUM_CLIPS)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    for order in orders:
        assert len({number // 5 for number in order[:10]}) > 4  # shards of 5 clips
        assert np.mean(np.abs(np.diff(order)) == 1) < 0.2


def test_streamed_sources_with_weights(clips):
    corpus = ClipStream([streamed(clips[:5], 1), streamed(clips[5:], 2)], [1.0, 1.0], 0, buffer_size=10)
    drawn = [clip.name for _, clip in items(corpus, 0)]
    assert set(drawn) == set(clips)
    assert 0.3 < np.mean([name in clips[:5] for name in drawn]) < 0.7


@pytest.mark.parametrize(("num_readers", "num_shards"), [(3, 3), (4, 1)])
def test_small_streamed_sources_are_given_by_their_weight(clips, num_readers, num_shards):
    small, large = streamed(clips[:3], num_shards), streamed(clips[3:], 1)
    corpus = ClipStream([small, large], [3.0, 1.0], 0, buffer_size=10)
    for reader in range(num_readers):
        drawn = [clip.name in clips[:3] for epoch in range(4) for _, clip in items(corpus, epoch, reader, num_readers)]
        assert np.mean(drawn) == pytest.approx(0.75 if reader < 3 else 0, abs=0.08), reader
        assert len(drawn) - sum(drawn) >= 4 * ((NUM_CLIPS - 3) // num_readers), "the large one is read once an epoch"


def test_a_section_of_many_passes_goes_on_where_the_last_one_stopped(clips):
    def corpus():
        return ClipStream([streamed(clips[:3], 2), streamed(clips[3:], 9)], [3.0, 1.0], 0, buffer_size=10)

    whole, at = corpus(), Position()
    while (section := whole.section(at, 1, 2, 7))[0]:
        pairs, cursor = corpus().section(at, 1, 2, 7)
        assert cursor == section[1]
        assert [(key, clip.name) for key, clip in pairs] == [(key, clip.name) for key, clip in section[0]]
        at = Position(0, at.section + 1, 0, cursor)
    assert at.cursor[0].passes > 5


def test_a_stream_with_fewer_clips_than_readers_is_an_error(clips):
    corpus = ClipStream([streamed(clips[:1], 1)], None, 0, buffer_size=10)
    with pytest.raises(RuntimeError, match="lower num_workers"):
        next(iter(BatchStream(corpus, ARGS, process_index=1, num_processes=2, seed=0)))


def test_a_position_is_lists_of_numbers_in_json_and_comes_back():
    saved = '{"0": [1, 2, 3, [[4, 5, 6, 7]]]}'
    place = SourcePlace(passes=4, chapter=5, given=6, given_in_epoch=7)
    position = DataPosition(1, positions={0: Position(1, 2, 3, (place,))})
    values = json.loads(json.dumps(position.to_dict()))
    assert json.dumps(values["positions"]) == saved
    (found,) = DataPosition.from_dict(values).positions[0].cursor
    assert DataPosition.from_dict(values) == position and found.given_in_epoch == 7
