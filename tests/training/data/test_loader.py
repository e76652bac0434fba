"""Every kind of source opens, gives its clips, and says in one sentence what is wrong with it."""

import csv
import json
import os
import shutil
import signal
import time
from collections import Counter
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from source_files import write_clip, write_parquet

import training.data.sources
from sjepa_hf.frames import SAMPLING_RATE
from training.data.arguments import DataArguments
from training.data.bad_audio import BadAudioMonitor
from training.data.loader import build_loader
from training.data.masking import SpanMask
from training.data.order import DataPosition
from training.data.waveforms import read_audio


def test_empty_manifest_and_too_few_clips(tmp_path, monkeypatch):
    manifest = tmp_path / "list.jsonl"
    manifest.write_text("\n")
    with pytest.raises(ValueError, match="list.jsonl names no clip"):
        build_loader(DataArguments(train_data=[str(manifest)]))
    empty = datasets.Dataset.from_dict({"audio": []}, features=datasets.Features({"audio": datasets.Audio()}))
    monkeypatch.setattr(training.data.sources, "load_dataset", lambda *what, **options: empty)
    with pytest.raises(ValueError, match="org/none' holds no clip"):
        build_loader(DataArguments(train_data=["org/none"]))
    manifest.write_text('{"wav_path": "a.wav"}\n' * 3)
    with pytest.raises(ValueError, match="3 clips for 8 readers.*lower num_workers"):
        build_loader(DataArguments(train_data=[str(manifest)], num_workers=4), num_processes=2)


def test_loader_leaves_the_global_generator_alone(tmp_path):
    write_clip(tmp_path / "in" / "1.wav", 1)
    state = torch.get_rng_state()
    next(iter(build_loader(DataArguments(train_data=[str(tmp_path / "in")], num_workers=1))))
    assert torch.equal(state, torch.get_rng_state())


def test_seed_and_arguments_reach_the_batches(tmp_path):
    for number in range(1, 20):
        write_clip(tmp_path / "in" / f"{number}.wav", number)

    def first(seed: int, **options) -> dict:
        args = DataArguments(train_data=[str(tmp_path / "in")], num_workers=0, batch_seconds=1.0, max_seconds=0.2)
        return next(iter(build_loader(args, seed=seed, **options)))

    one, same, other = first(0), first(0), first(1)
    assert torch.equal(one["input_values"], same["input_values"])
    assert torch.equal(one["masked_positions"], same["masked_positions"])
    assert not torch.equal(one["input_values"], other["input_values"])
    assert not torch.equal(one["mask_time_indices"], other["mask_time_indices"])
    assert one["input_values"].shape == (5, 3200)
    less = first(0, mask=SpanMask(0.2, 1))
    assert torch.equal(one["input_values"], less["input_values"])
    assert less["masked_positions"].numel() == 5 * 2 and one["masked_positions"].numel() >= 5 * 6  # of 9 frames


def test_a_single_pass_goes_on_from_a_position_too(tmp_path):
    for number in range(1, 20):
        write_clip(tmp_path / "in" / f"{number}.wav", number)
    args = DataArguments(train_data=[str(tmp_path / "in")], num_workers=0, batch_seconds=1.0, max_seconds=0.2)
    batches = list(build_loader(args, max_epochs=1))
    assert len(batches) == 4
    loader = build_loader(args, max_epochs=1)
    position = loader.dataset.position
    position.positions[batches[1]["reader"]], position.batches = batches[1]["position"], 2
    rest = list(build_loader(args, max_epochs=1, position=position))
    assert numbers(rest) == numbers(batches[2:])


def numbers(batches) -> list[int]:
    return [n for batch in batches for n in (batch["input_values"][:, 0] * 100).round().int().tolist()]


def consume(args: DataArguments, count: int, num_processes: int, position: DataPosition | None):
    """`count` batches of each process, and the position after them, by way of JSON."""
    loaders = [
        build_loader(args, process_index=r, num_processes=num_processes, position=position)
        for r in range(num_processes)
    ]
    batches = [batch for loader in loaders for batch, _ in zip(loader, range(count))]
    start = loaders[0].dataset.position
    ends = {batch["reader"]: batch["position"] for batch in batches}
    end = replace(start, positions=start.positions | ends, batches=start.batches + count * num_processes)
    return batches, DataPosition.from_dict(json.loads(json.dumps(end.to_dict())))


def test_another_number_of_readers_loses_no_clip_of_the_pass(tmp_path, caplog):
    for number in range(90):
        write_clip(tmp_path / "in" / f"{number}.wav", number)
    args = DataArguments(
        train_data=[str(tmp_path / "in")], num_workers=0, batch_seconds=1.0, max_seconds=0.5, bucket_buffer_size=8
    )
    first, position = consume(args, 5, 2, None)  # 10 batches of 4 clips: sections 0 and 1 of 2 x 8 clips, 2 begun
    second, position = consume(args, 4, 3, position)
    assert "no clip is left out, at most 16 come again" in caplog.text
    assert position.first == (0, 32)
    rest = [build_loader(args, process_index=r, num_processes=3, position=position) for r in range(3)]
    last = [list(takewhile(lambda batch: batch["position"].epoch == 0, loader)) for loader in rest]
    seen = Counter(numbers(first) + numbers(second) + [n for part in last for n in numbers(part)])
    assert sorted(seen) == list(range(90)) and seen.total() <= 90 + 16


def test_a_reader_that_is_a_pass_ahead_counts_among_the_clips_that_come_again(tmp_path, caplog):
    for number in range(90):
        write_clip(tmp_path / "in" / f"{number}.wav", number)
    args = DataArguments(
        train_data=[str(tmp_path / "in")], num_workers=0, batch_seconds=1.0, max_seconds=0.5, bucket_buffer_size=8
    )
    ends = []
    for reader, count in enumerate((13, 3)):  # batches of 4: 6 sections of 8 and one begun; one and one begun
        loader = build_loader(args, process_index=reader, num_processes=2)
        ends += [batch["position"] for batch, _ in zip(loader, range(count))][-1:]
    assert [(at.epoch, at.section) for at in ends] == [(1, 0), (0, 1)]
    build_loader(args, position=replace(loader.dataset.position, positions=dict(enumerate(ends))))
    assert "no clip is left out, at most 56 come again" in caplog.text


def test_more_readers_than_clips_left_of_the_pass_go_on_with_the_next(tmp_path):
    for number in range(20):
        write_clip(tmp_path / "in" / f"{number}.wav", number)
    args = DataArguments(
        train_data=[str(tmp_path / "in")], num_workers=0, batch_seconds=0.25, max_seconds=0.25, bucket_buffer_size=6
    )
    first, position = consume(args, 19, 1, None)  # 18 places read by all; four readers for the other two
    second, position = consume(args, 2, 4, position)
    rest = [batch for batch in second if batch["position"].epoch == 0]
    assert sorted(numbers(first[:18] + rest)) == list(range(20))
    assert [batch["reader"] for batch in rest] == [0, 1], "readers 2 and 3 begin with the next pass"
    consume(args, 2, 8, position)  # and once more from there


def test_other_data_or_a_stream_begin_a_new_pass(tmp_path, caplog):
    for number in range(20):
        write_clip(tmp_path / "in" / f"{number}.wav", number)
    args = DataArguments(train_data=[str(tmp_path / "in")], num_workers=0, batch_seconds=1.0, max_seconds=0.5)
    _, position = consume(args, 3, 1, None)
    write_clip(tmp_path / "in" / "20.wav", 20)
    loader = build_loader(args, position=position)
    assert (
        loader.dataset.position.first == (1, 0)
        and "the contents of source 1 of train_data have changed" in caplog.text
    )
    assert next(iter(loader))["position"].epoch == 1


def test_another_audio_column_is_told(tmp_path, caplog):
    write_parquet(tmp_path / "in" / "x.parquet", range(20))
    options = {"num_workers": 0, "batch_seconds": 1.0, "max_seconds": 0.5}
    args = DataArguments(train_data=[str(tmp_path / "in" / "x.parquet")], **options)
    _, position = consume(args, 3, 1, None)
    build_loader(args, position=position)
    assert "a data setting is another" not in caplog.text
    build_loader(replace(args, audio_column="audio"), position=position)
    assert "a data setting is another: this pass over the data goes on in its order" in caplog.text


def test_one_pass_can_be_gone_on_with(tmp_path):
    for number in range(30):
        write_clip(tmp_path / "in" / f"{number}.wav", number)
    args = DataArguments(
        train_data=[str(tmp_path / "in")], num_workers=0, batch_seconds=1.0, max_seconds=0.5, bucket_buffer_size=8
    )
    first, position = consume(args, 4, 1, None)
    rest = list(build_loader(args, position=position, max_epochs=1))
    assert sorted(numbers(first) + numbers(rest)) == list(range(30))


@pytest.mark.parametrize("folder", ["keywords", "digits_8khz", "librispeech_251_speakers"])
def test_real_speech_is_little_padded_and_read_once(speech, folder, capsys):
    args = DataArguments(train_data=[str(speech / folder)], batch_seconds=60.0, num_workers=0)
    with open(speech / folder / "metadata.csv", newline="") as file:
        seconds = [min(float(row["duration"]), args.max_seconds) for row in csv.DictReader(file)]
    real, padded, clips = 0.0, 0.0, 0
    monitor = BadAudioMonitor()
    for batch in build_loader(args, max_epochs=1, seed=1):
        assert batch["input_values"].numel() <= 60.0 * SAMPLING_RATE
        monitor.update(len(batch["lengths"]), batch["skipped"])
        clips += len(batch["lengths"])
        real, padded = real + batch["seconds"], padded + batch["input_values"].numel() / SAMPLING_RATE
        if folder != "digits_8khz" and real > 600:  # decoding all of the others takes longer
            break
    else:
        assert monitor.seen == len(seconds)
        assert real == pytest.approx(sum(seconds), rel=1e-3)
    assert monitor.skipped == 0
    with capsys.disabled():
        print(f"\n{folder}: {clips} clips, {real:.0f} s, padded share {1 - real / padded:.1%}")
    assert 1 - real / padded < (0.2 if folder == "digits_8khz" else 0.06)


def test_real_bad_files_are_reported(speech, tmp_path):
    good = sorted((speech / "keywords" / "alexa").glob("*.opus"))[:5]
    for path in good:
        shutil.copyfile(path, tmp_path / path.name)
    (tmp_path / "cut.opus").write_bytes(good[0].read_bytes()[:100])
    (tmp_path / "no.opus").write_bytes(b"")
    batch = next(iter(build_loader(DataArguments(train_data=[str(tmp_path)], num_workers=0))))
    assert sorted((Path(name).name, reason) for name, reason in batch["skipped"]) == [
        ("cut.opus", "corrupt"),
        ("no.opus", "empty"),
    ]
    peaks = sorted(np.abs(read_audio(path)).max() for path in good)
    assert np.allclose(sorted(batch["input_values"].abs().amax(dim=1).tolist()), peaks)


def test_a_signal_that_comes_while_workers_start_does_not_end_them(tmp_path, monkeypatch):
    """As a batch system sends it to the whole group: the training process decides, and its readers go on."""
    for number in range(8):
        write_clip(tmp_path / f"{number}.wav", number + 1)
    loader = build_loader(DataArguments([str(tmp_path)], num_workers=2), max_epochs=1)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: time.sleep(0.5))  # a worker's first act
    batches = iter(loader)
    for worker in batches._workers:
        os.kill(worker.pid, signal.SIGTERM)
    assert sum(len(batch["lengths"]) for batch in batches) == 8
