"""Batches: bounded, little padded, each clip once, the same again from the seed or from the middle."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from clip_streams import NUM_CLIPS, EndlessList, after, as_source, assert_same, loader, numbers, take, write_clips
from noise_batches import collate

from sjepa_hf.frames import SAMPLING_RATE
from training.data.arguments import DataArguments
from training.data.bad_audio import BadAudioMonitor
from training.data.batches import BatchStream, attention_mask, batches_by_length, cut_batches
from training.data.clips import Clip
from training.data.masking import SpanMask
from training.data.order import ClipIndex
from training.data.sources import Source


CUT = {"batch_seconds": 2.0, "bucket_buffer_size": 20, "max_seconds": 1.0, "min_seconds": 0.1}


def stream(paths, *, weights=None, **options) -> BatchStream:
    """Batches over files, or over several sources as lists of files."""
    sources = [as_source(part) for part in (paths if isinstance(paths[0], list) else [paths])]
    cut = {name: options.pop(name) for name in CUT if name in options}
    seed = options.pop("seed", 0)
    return BatchStream(ClipIndex(sources, weights, seed), DataArguments(["noise"], **CUT | cut), seed=seed, **options)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.mark.parametrize("seed", range(6))
def test_cut_batches_are_a_partition_within_the_bound(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1600, 240000, 1000)
    batches = cut_batches(lengths, 1_400_000, rng)
    assert sorted(np.concatenate(batches)) == list(range(1000))
    sizes = sorted(len(batch) * lengths[batch].max() for batch in batches)
    assert sizes[-1] <= 1_400_000
    assert np.mean(sizes[1:]) > 0.8 * 1_400_000  # all batches but one are full
    assert lengths.sum() / sum(sizes) > 0.95  # of similar lengths
    means = [lengths[batch].mean() for batch in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.6  # and not in the order of length


def test_cut_batches_mixes_clips_of_equal_length():
    lengths = np.full(64, 16000)
    groups = [
        {frozenset(batch.tolist()) for batch in cut_batches(lengths, 8 * 16000, np.random.default_rng(seed))}
        for seed in range(2)
    ]
    assert not groups[0] & groups[1]


@pytest.mark.parametrize("lengths", [[500], [500, 800]])
def test_cut_batches_keeps_what_does_not_fill_a_batch(lengths):
    (batch,) = cut_batches(np.array(lengths, dtype=np.int64), 1600, np.random.default_rng(0))
    assert sorted(batch.tolist()) == list(range(len(lengths)))


def test_batches_by_length_hold_every_clip_once_within_their_bound():
    lengths = dict(enumerate(np.random.default_rng(0).integers(400, 160_000, 50).tolist()))
    found = batches_by_length(lengths, batch_seconds=20)
    assert sorted(number for batch in found for number in batch) == sorted(lengths)
    assert all(len(batch) * max(lengths[number] for number in batch) <= 20 * 16000 for batch in found)
    assert [len(batch) for batch in batches_by_length({0: 10**6, 1: 400}, 1)] == [1, 1]


def test_masked_and_visible_frames_of_padded_clips_are_told_apart():
    rng = np.random.default_rng(0)
    samples = [rng.standard_normal(length).astype(np.float32) for length in (16000, 400, 9000, 1679, 1680)]
    batch = collate(samples, SpanMask(0.65, 10), torch.Generator().manual_seed(0))
    assert batch["lengths"].tolist() == [16000, 400, 9000, 1679, 1680]
    for row, mask, clip in zip(batch["input_values"], batch["attention_mask"], samples):
        np.testing.assert_array_equal(row[: len(clip)], clip)
        assert not row[len(clip) :].any()
        assert mask.tolist() == [1] * len(clip) + [0] * (16000 - len(clip))
    frames = torch.tensor([49, 1, 27, 4, 5])
    masked = batch["mask_time_indices"]
    assert masked.shape == (5, 49) and masked.dtype == torch.bool
    flat = torch.cat([batch["masked_positions"], batch["visible_positions"]])
    real = torch.cat([i * 49 + torch.arange(n) for i, n in enumerate(frames.tolist())])
    assert torch.equal(flat.sort().values, real)
    assert masked.flatten()[batch["masked_positions"]].all()
    assert not masked.flatten()[batch["visible_positions"]].any()
    for key in ("masked_positions", "visible_positions"):
        assert batch[key].dtype == torch.int64 and (batch[key].diff() > 0).all()
    assert 0.5 < masked[0].float().mean() < 0.9


def test_there_is_an_attention_mask_only_where_something_is_padded():
    assert attention_mask(torch.tensor([800])) is None and attention_mask(torch.tensor([800, 800])) is None
    assert attention_mask(torch.tensor([3, 4, 1])).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    samples = [np.ones(8000, np.float32)] * 3
    masks = [
        collate(part, SpanMask(0.65, 10), torch.Generator())["attention_mask"]
        for part in (samples, [*samples, samples[0][:-1]])
    ]
    assert masks[0] is None
    assert masks[1].dtype == torch.bool and masks[1].sum(1).tolist() == [8000] * 3 + [7999]


def test_a_batch_holds_whole_clips_within_the_bound(clips):
    for batch in loader(stream(clips, max_epochs=1)):
        assert batch["input_values"].numel() <= 2.0 * SAMPLING_RATE
        assert batch["seconds"] == pytest.approx(batch["lengths"].sum().item() / SAMPLING_RATE)
        assert batch["skipped"] == []
        for number, row, length in zip(numbers(batch), batch["input_values"], batch["lengths"].tolist()):
            np.testing.assert_array_equal(row[:length], soundfile.read(clips[number], dtype="float32")[0])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_an_epoch_is_every_clip_once_over_processes_and_workers(clips, num_processes, num_workers):
    seen = []
    for process_index in range(num_processes):
        batches = stream(clips, process_index=process_index, num_processes=num_processes, max_epochs=2)
        seen += [number for batch in loader(batches, num_workers) for number in numbers(batch)]
    assert sorted(seen) == sorted(2 * list(range(NUM_CLIPS)))


def test_seed_decides_and_epochs_differ(clips):
    first = take(stream(clips), 30)
    assert_same(first, take(stream(clips), 30))
    assert [numbers(batch) for batch in first] != [numbers(batch) for batch in take(stream(clips, seed=1), 30)]
    per_epoch = len(list(stream(clips, max_epochs=1)))
    epochs = [first[:per_epoch], first[per_epoch : 2 * per_epoch]]
    assert {frozenset(numbers(batch)) for batch in epochs[0]} != {frozenset(numbers(batch)) for batch in epochs[1]}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_positions_continue_where_a_run_stopped(tmp_path, clips, num_workers):
    # Crops (max_seconds) and bad clips must come out as in the uninterrupted run.
    bad = str(tmp_path / "bad.wav")
    soundfile.write(bad, np.zeros(5000), SAMPLING_RATE)
    options = {"max_seconds": 0.25, "batch_seconds": 0.8, "process_index": 1, "num_processes": 2}
    options["bucket_buffer_size"] = 8
    paths = clips + [bad, str(tmp_path / "absent.wav")]
    whole = take(loader(stream(paths, **options), num_workers), 40)
    assert {batch["position"].epoch for batch in whole} >= {0, 1, 2}
    assert {batch["position"].section for batch in whole} >= {0, 1}
    for start in (1, 2, 7, 24, 33):
        position = after(whole[:start], num_processes=2)
        resumed = take(loader(stream(paths, position=position, **options), num_workers), 40 - start)
        assert_same(whole[start:], resumed)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0]])
def test_processes_and_workers_only_decide_who_reads(clips, weights):
    """Micro-batch m of all processes is the same for 1 x 4, 2 x 2 and 4 x 1 processes and workers."""
    paths = [clips[:10], clips[10:]]
    together = take(loader(stream(paths, weights=weights), 4), 24)
    for num_processes, num_workers in ((2, 2), (4, 0)):
        streams = [
            take(
                loader(stream(paths, weights=weights, process_index=r, num_processes=num_processes), num_workers),
                24 // num_processes,
            )
            for r in range(num_processes)
        ]
        assert_same(together, [batch for step in zip(*streams) for batch in step])


def test_crops_are_random_each_epoch_and_masks_each_batch(tmp_path):
    samples = np.arange(1, 32001, dtype=np.float32) / 2**18
    soundfile.write(tmp_path / "ramp.wav", samples, SAMPLING_RATE, subtype="FLOAT")
    batches = take(stream([str(tmp_path / "ramp.wav")]), 12)
    starts = {batch["input_values"][0, 0].item() for batch in batches}
    assert all(batch["lengths"].tolist() == [16000] for batch in batches) and len(starts) > 10
    assert len({tuple(batch["masked_positions"].tolist()) for batch in batches}) == 12


def test_a_clip_whose_crop_is_silent_is_left_out(tmp_path):
    samples = np.zeros(30000)
    samples[15000:] = np.random.default_rng(0).uniform(-0.1, 0.1, 15000)
    soundfile.write(tmp_path / "late.wav", samples, SAMPLING_RATE)
    paths = write_clips(tmp_path, 1) + [str(tmp_path / "late.wav")]
    batches = list(stream(paths, max_seconds=0.5, max_epochs=40))
    skipped = sum(len(batch["skipped"]) for batch in batches)
    assert 5 < skipped < 35 and sum(len(batch["lengths"]) for batch in batches) == 80 - skipped
    assert all((batch["input_values"].abs().amax(dim=1) > 0.01).all() for batch in batches)


def test_header_decides_the_length_in_the_batch(tmp_path, clips, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Clip, "length", lambda self: 2000)  # files may hold more than they say
        batches = list(stream(clips, max_epochs=1))
    assert all(batch["input_values"].shape[1] <= 2000 and batch["input_values"].numel() <= 32000 for batch in batches)
    paths = write_clips(tmp_path, 1)
    for number in range(3):
        paths.append(str(tmp_path / f"short{number}.wav"))
        soundfile.write(paths[-1], np.full(1599, 0.1) * np.arange(1599), SAMPLING_RATE)
    (batch,) = stream(paths, max_epochs=1, batch_seconds=0.5, max_seconds=0.5)  # short clips do not make batches
    assert numbers(batch) == [0] and len(batch["skipped"]) == 3


def test_headers_are_read_once_and_not_where_the_duration_is_given(clips, monkeypatch):
    read, length = [], Clip.length
    monkeypatch.setattr(Clip, "length", lambda self: read.append(self.name) or length(self))
    without = list(stream(clips, max_epochs=3))
    assert sorted(read) == sorted(clips)
    read.clear()
    seconds = [soundfile.info(path).duration for path in clips]
    samples = [(Clip(path, path, 0.0, duration), {}) for path, duration in zip(clips, seconds)]
    corpus = ClipIndex([Source("test", samples)], None, 0)
    given = list(BatchStream(corpus, DataArguments(["noise"], **CUT), seed=0, max_epochs=3))
    assert read == []
    assert_same(without, given)


def test_memory_does_not_grow_with_a_list_that_gives_durations(clips):
    corpus = ClipIndex([Source("test", EndlessList(clips[0]))], None, 0)
    batches = BatchStream(corpus, DataArguments(["noise"], **CUT), seed=0)
    tracemalloc.start()
    try:
        assert len(take(batches, 5)) == 5
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_bad_clips_are_reported_once_an_epoch_and_left_out(tmp_path, clips):
    silent, absent, short = (str(tmp_path / f"{name}.wav") for name in ("silent", "absent", "short"))
    soundfile.write(silent, np.zeros(5000), SAMPLING_RATE)
    soundfile.write(short, np.ones(1000), SAMPLING_RATE)
    batches = list(stream(clips + [silent, absent, short], max_epochs=2))
    skipped = sorted(entry for batch in batches for entry in batch["skipped"])
    assert skipped == sorted(2 * [(silent, "silent"), (absent, "missing"), (short, "too_short")])
    assert sorted(n for batch in batches for n in numbers(batch)) == sorted(2 * list(range(NUM_CLIPS)))


def test_bad_clips_are_told_with_the_usable_ones_they_stood_among(clips):
    """From the first batch on, and over every batch at which a run may have gone on."""
    samples = [(Clip(clips[0], clips[0], 0.0, 0.02 if n % 25 == 0 else 0.1 + n / 5000), {}) for n in range(500)]

    def stream_from(position=None) -> BatchStream:
        corpus = ClipIndex([Source("test", samples)], None, 0)
        args = DataArguments(["noise"], **CUT | {"bucket_buffer_size": 500})
        return BatchStream(corpus, args, seed=0, max_epochs=2, position=position)

    whole, seen, bad = list(stream_from()), 0, 0
    for batch in whole:
        seen, bad = seen + len(batch["lengths"]) + len(batch["skipped"]), bad + len(batch["skipped"])
        assert bad == pytest.approx(0.04 * seen, abs=1)
    assert (seen, bad) == (1000, 40)
    for start in range(1, len(whole), 9):
        assert_same(whole[start:], list(stream_from(after(whole[:start]))))


@pytest.mark.parametrize("num_processes", [1, 4])
def test_healthy_data_are_not_taken_for_bad(clips, num_processes):
    samples = [(Clip(clips[0], clips[0], 0.0, 0.02 if n % 33 == 0 else 0.1), {}) for n in range(1000)]
    for seed in range(2):
        corpus = ClipIndex([Source("test", samples)], None, seed)
        for index in range(num_processes):
            monitor = BadAudioMonitor(max_bad_fraction=0.05)
            args = DataArguments(["noise"], **CUT | {"bucket_buffer_size": 1024})
            options = {"process_index": index, "num_processes": num_processes, "max_epochs": 1}
            for batch in BatchStream(corpus, args, seed=seed, **options):
                monitor.update(len(batch["lengths"]), batch["skipped"])
                monitor.check()
            assert monitor.seen == 1000 / num_processes


def test_a_batch_of_bad_clips_alone_is_left_out_and_told_once(tmp_path):
    # Each silent clip fills a planned batch of its own.
    paths = write_clips(tmp_path, 5)
    for number in range(5):
        paths.append(str(tmp_path / f"silent{number}.wav"))
        soundfile.write(paths[-1], np.zeros(8000), SAMPLING_RATE)
    options = {"batch_seconds": 0.5, "max_seconds": 0.5, "min_seconds": 0.1}
    whole = take(stream(paths, **options), 40)
    assert all(len(batch["lengths"]) > 0 for batch in whole)
    for start in range(1, 12):
        resumed = take(stream(paths, position=after(whole[:start]), **options), 20)
        assert_same(whole[start : start + 20], resumed)


@pytest.mark.parametrize("kind", ["absent", "silent"])
@pytest.mark.parametrize(("count", "workers", "max_epochs"), [(3, 1, None), (60, 1, 1), (6, 2, None), (130, 2, 1)])
def test_nothing_usable_ends_the_run(tmp_path, monkeypatch, kind, count, workers, max_epochs):
    paths = [str(tmp_path / f"{number}.wav") for number in range(count)]
    for path in paths if kind == "silent" else []:
        soundfile.write(path, np.zeros(2000), SAMPLING_RATE)
    # As the worker sees it: a loader whose worker raised takes ten seconds to let go of the others.
    monkeypatch.setattr("training.data.batches.get_worker_info", lambda: SimpleNamespace(num_workers=workers, id=0))
    with pytest.raises(RuntimeError, match="no usable clip"):
        next(iter(stream(paths, max_epochs=max_epochs)))


def test_a_usable_clip_among_many_bad_ones_keeps_the_run_going(tmp_path, caplog):
    paths = write_clips(tmp_path, 1) + [str(tmp_path / f"absent{number}.wav") for number in range(100)]
    batches = take(stream(paths, bucket_buffer_size=1), 6)
    assert [numbers(batch) for batch in batches] == [[0]] * 6


def test_weights_decide_how_often_a_source_comes(tmp_path):
    small, large = write_clips(tmp_path, 6), write_clips(tmp_path, 60, first=100, max_samples=1700)
    drawn = [n for batch in stream([small, large], weights=[1.0, 3.0], max_epochs=8) for n in numbers(batch)]
    assert len(drawn) == 8 * 66
    share = np.mean(np.array(drawn) < 100)
    assert 0.19 < share < 0.31
    counts = np.bincount([n for n in drawn if n < 100], minlength=6)
    assert counts.max() - counts.min() <= 8  # each once before any again, in each epoch


def test_repetitions_within_a_weighted_epoch_are_cropped_anew(tmp_path):
    soundfile.write(tmp_path / "ramp.wav", np.arange(1, 64001) / 2**18, SAMPLING_RATE, subtype="FLOAT")
    small, large = [str(tmp_path / "ramp.wav")], write_clips(tmp_path, 30, max_samples=1700)
    batches = stream([small, large], weights=[1.0, 1.0], max_epochs=1)
    starts = [row[0].item() for b in batches for row, n in zip(b["input_values"], b["lengths"].tolist()) if n == 16000]
    assert len(starts) > 8 and len(set(starts)) == len(starts)
