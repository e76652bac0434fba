"""Every kind of source opens, gives its clips, and says in one sentence what is wrong with it."""

import csv
import json
import os
import shutil
import signal
import sys
import tarfile
import time
from collections import Counter
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from transformers import HfArgumentParser

import training.data.sources
from sjepa_hf.frames import SAMPLING_RATE
from training.data.bad_audio import BadAudioMonitor
from training.data.loader import DataArguments, build_loader, start_reading
from training.data.masking import SpanMask
from training.data.order import DataPosition
from training.data.sources import open_source
from training.data.waveforms import read_audio


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write_clip(path: Path, number: int, seconds: float = 0.25, rate: int = SAMPLING_RATE) -> Path:
    """A clip whose peak, its first sample, is its number / 100."""
    samples = np.random.default_rng(number).uniform(-0.001, 0.001, round(seconds * rate)).astype(np.float32)
    samples[0] = number / 100
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)
    return path


def found(*specs: str, **options) -> list[int]:
    """Numbers of all clips that an epoch gives."""
    options = {"num_workers": 0, "batch_seconds": 16.0} | options
    loader = build_loader(DataArguments(train_data=list(specs), **options), max_epochs=1)
    return sorted(n for batch in loader for n in (batch["input_values"][:, 0] * 100).round().int().tolist())


def write_parquet(path: Path, numbers: range, column: str = "audio", hf: bool = True, by_path: bool = False) -> None:
    """A Parquet file as `datasets` writes it (`hf`), or bare; with the audio inside or by path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clips = [write_clip(path.parent.with_name("clips") / f"{n}.flac", n) for n in numbers]
    cells = [{"bytes": None if by_path else clip.read_bytes(), "path": str(clip)} for clip in clips]
    columns = {"speaker": ["a"] * len(cells), column: cells}
    table = pa.table(columns)
    if hf:
        features = {"speaker": datasets.Value("string"), column: datasets.Audio()}
        table = table.cast(datasets.Features(features).arrow_schema)
    pq.write_table(table, path)


def test_folder_is_searched_for_every_format(tmp_path):
    for number, name in enumerate(["a.wav", "b/c.flac", "b/c/d.WAV", "e.ogg", "f.mp3"], start=10):
        write_clip(tmp_path / "in" / name, number)
    (tmp_path / "in" / "notes.txt").write_text("no audio")
    write_clip(tmp_path / "in" / "._a.wav", 30)  # what macOS leaves behind
    os.symlink(tmp_path / "in", tmp_path / "in" / "b" / "circle")
    clips = open_source(str(tmp_path / "in"))
    assert [Path(row["path"]).name for row in clips.dataset] == ["a.wav", "c.flac", "d.WAV", "e.ogg", "f.mp3"]
    assert len(found(str(tmp_path / "in"))) == 5


def test_brackets_in_names_are_no_patterns(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "my [old] clips? *"
    write_clip(folder / "audio" / "1.wav", 1)
    assert found(str(folder / "audio")) == [1]
    (folder / "list[1].jsonl").write_text(json.dumps({"wav_path": "audio/1.wav"}))
    assert found(str(folder / "list[1].jsonl")) == [1]
    write_parquet(folder / "data" / "a[0].parquet", range(2, 4))
    write_parquet(folder / "data" / "b.parquet", range(4, 5))
    shutil.rmtree(folder / "data" / "clips", ignore_errors=True)
    for streaming in (False, True):
        assert found(str(folder / "data" / "a[0].parquet"), streaming=streaming) == [2, 3]
        assert found(str(folder / "data" / "*.parquet"), streaming=streaming) == [2, 3, 4]
        assert found(str(folder / "data"), streaming=streaming) == [2, 3, 4]
    with tarfile.open(folder / "x[1].tar", "w") as archive:
        archive.add(folder / "audio" / "1.wav", "1.wav")
    assert found(str(folder / "x[1].tar"), streaming=True) == found(str(folder / "x*.tar"), streaming=True) == [1]
    with pytest.raises(ValueError, match="matches 0 files"):
        open_source(str(folder / "c*.parquet"))


def test_file_names_that_are_not_utf8_are_read(tmp_path, caplog):
    for number, name in enumerate([b"caf\xe9.wav", b"day\nlight.wav", b"\xff\xfe.wav"], start=1):
        path = write_clip(tmp_path / "plain.wav", number)
        (tmp_path / "in").mkdir(exist_ok=True)
        os.rename(path, os.path.join(os.fsencode(tmp_path / "in"), name))
    (tmp_path / "in" / "bad.wav").touch()
    os.rename(tmp_path / "in" / "bad.wav", os.path.join(os.fsencode(tmp_path / "in"), b"bad\xe9.wav"))
    source = open_source(str(tmp_path / "in"))
    names = [Path(source.clip(row, n).name).name for n, row in enumerate(source.dataset)]
    assert sorted(names) == ["\\udcff\\udcfe.wav", "bad\\udce9.wav", "caf\\udce9.wav", "day\\nlight.wav"]
    assert found(str(tmp_path / "in")) == [1, 2, 3]
    with pytest.raises(ValueError, match="is a table: name the folder"):
        (tmp_path / "list.csv").write_text("file_name\n")
        open_source(str(tmp_path / "list.csv"))


def test_metadata_csv_is_the_list(tmp_path):
    for number in range(1, 5):
        write_clip(tmp_path / "sub" / f"{number}.wav", number)
    rows = "transcription,file_name\none,sub/1.wav\n,sub/3.wav\n"
    (tmp_path / "metadata.csv").write_text(rows)
    assert found(str(tmp_path)) == [1, 3]
    (tmp_path / "metadata.csv").write_text("LJ001|some text, and more\n")  # another project's metadata
    assert found(str(tmp_path)) == [1, 2, 3, 4]


def test_manifest_takes_relative_paths_and_segments(tmp_path):
    write_clip(tmp_path / "in" / "1.wav", 1)
    write_clip(tmp_path / "2.flac", 2, rate=8000)
    ramp = np.arange(1, 64001) / 2**17
    soundfile.write(tmp_path / "in" / "ramp.wav", ramp, SAMPLING_RATE, subtype="FLOAT")
    entries = [
        {"wav_path": "1.wav", "text": "one", "duration": 0.25},
        {"audio_filepath": str(tmp_path / "2.flac"), "text": 2, "more": {"x": []}},
        {"audio_filepath": "ramp.wav", "offset": 1.5, "duration": 0.5},
        {"audio_filepath": "ramp.wav", "offset": 2, "duration": None},
    ]
    manifest = tmp_path / "in" / "list.jsonl"
    manifest.write_text("\n\n".join(json.dumps(entry) for entry in entries) + "\n")
    batches = list(build_loader(DataArguments(train_data=[str(manifest)], num_workers=0), max_epochs=1))
    rows = {n: row[:n].numpy() for b in batches for row, n in zip(b["input_values"], b["lengths"].tolist())}
    assert sorted(len(row) for row in rows.values()) == [4000, 8000, 32000]
    assert sum(len(batch["lengths"]) for batch in batches) == 4
    np.testing.assert_allclose(rows[8000], ramp[24000:32000], atol=1e-6)
    np.testing.assert_allclose(rows[32000], ramp[32000:], atol=1e-6)


def test_manifest_is_not_copied_and_follows_changes(tmp_path):
    manifest = tmp_path / "list.jsonl"
    for last in (3, 5):
        entries = [{"wav_path": str(write_clip(tmp_path / f"{n}.wav", n)), "text": "t"} for n in range(1, last)]
        manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        row = open_source(str(manifest)).dataset[1]
        assert row == {"path": str(tmp_path / "2.wav"), "offset": None, "duration": None}
        assert found(str(manifest)) == list(range(1, last))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("hf", "by_path"), [(True, False), (True, True), (False, False), (False, True)])
def test_parquet_file_folder_and_glob(tmp_path, streaming, hf, by_path):
    write_parquet(tmp_path / "data" / "part-0.parquet", range(1, 4), hf=hf, by_path=by_path)
    write_parquet(tmp_path / "data" / "part-1.parquet", range(4, 6), hf=hf, by_path=by_path)
    assert found(str(tmp_path / "data" / "part-0.parquet"), streaming=streaming) == [1, 2, 3]
    assert found(str(tmp_path / "data" / "*.parquet"), streaming=streaming) == [1, 2, 3, 4, 5]
    if not by_path:
        assert found(str(tmp_path / "data"), streaming=streaming) == [1, 2, 3, 4, 5]


def test_parquet_folder_keeps_splits_apart(tmp_path):
    for number, split in enumerate(["train", "validation"], start=1):
        write_parquet(tmp_path / "in" / "data" / f"{split}-00000-of-00001.parquet", range(number, number + 1))
    shutil.rmtree(tmp_path / "in" / "clips")
    assert found(str(tmp_path / "in")) == [1]
    assert found(f"{tmp_path}/in::::validation") == [2]
    with pytest.raises(ValueError, match=r"in::::tset.*tset"):
        open_source(f"{tmp_path}/in::::tset")


def test_audio_column_is_found_or_named(tmp_path):
    write_parquet(tmp_path / "speech.parquet", range(1, 4), column="speech")
    assert found(str(tmp_path / "speech.parquet")) == [1, 2, 3]
    write_parquet(tmp_path / "bare.parquet", range(1, 4), column="speech", hf=False)
    with pytest.raises(ValueError, match="no audio column among speaker, speech: name it with audio_column"):
        open_source(str(tmp_path / "bare.parquet"))
    assert found(str(tmp_path / "bare.parquet"), audio_column="speech") == [1, 2, 3]
    with pytest.raises(ValueError, match="no column 'wave'"):
        open_source(str(tmp_path / "bare.parquet"), audio_column="wave")
    schema = datasets.Features({name: datasets.Audio() for name in ("near", "far")}).arrow_schema
    pq.write_table(pa.table({"near": [None], "far": [None]}).cast(schema), tmp_path / "two.parquet")
    with pytest.raises(ValueError, match="several audio columns among near, far"):
        open_source(str(tmp_path / "two.parquet"))
    pq.write_table(pa.table({"audio": [[0.1, 0.2]]}), tmp_path / "numbers.parquet")
    with pytest.raises(ValueError, match="column 'audio' holds .*, not audio files"):
        open_source(str(tmp_path / "numbers.parquet"))


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_name_config_and_split_are_handed_on(tmp_path, monkeypatch, streaming):
    write_parquet(tmp_path / "speech.parquet", range(1, 4), column="speech")
    asked = []

    def load_dataset(*what, **options):
        asked.append((*what, options["split"], options["streaming"]))
        return datasets.load_dataset(
            "parquet", data_files=str(tmp_path / "speech.parquet"), split="train", streaming=options["streaming"]
        )

    monkeypatch.setattr(training.data.sources, "load_dataset", load_dataset)
    assert found("org/name::clean::train.100", streaming=streaming) == [1, 2, 3]
    assert found("org/name", streaming=streaming) == [1, 2, 3]
    assert asked == [("org/name", "clean", "train.100", streaming), ("org/name", None, "train", streaming)]


def test_a_data_set_that_is_a_script_gets_a_sentence(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("Dataset scripts are no longer supported, but found superb.py")

    monkeypatch.setattr(training.data.sources, "load_dataset", refuse)
    with pytest.raises(ValueError, match="'some/superb::ks' cannot be opened .*scripts are no longer supported"):
        open_source("some/superb::ks")


def test_streamed_folders_and_archives_of_the_hub_need_no_torchcodec(tmp_path, monkeypatch):
    for number in range(1, 4):
        write_clip(tmp_path / "in" / f"{number}.wav", number)
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for path in sorted((tmp_path / "in").iterdir()):
            archive.add(path, path.name)
    builders = {
        "org/folder": {"path": "audiofolder", "data_dir": str(tmp_path / "in")},
        "org/archive": {"path": "webdataset", "data_files": str(tmp_path / "in.tar")},
    }
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setattr(
        training.data.sources,
        "load_dataset",
        lambda name, config, **kwargs: datasets.load_dataset(**builders[name], **kwargs),
    )
    for name in builders:
        assert found(name, streaming=True) == [1, 2, 3]
        with pytest.raises(ValueError, match=f"'{name}' is not Parquet: set streaming"):
            open_source(name)


def test_sources_of_all_kinds_together(tmp_path):
    write_clip(tmp_path / "folder" / "1.wav", 1)
    write_clip(tmp_path / "2.wav", 2)
    (tmp_path / "list.jsonl").write_text(json.dumps({"wav_path": "2.wav"}))
    write_parquet(tmp_path / "data" / "x.parquet", range(3, 6))
    specs = [str(tmp_path / "folder"), str(tmp_path / "list.jsonl"), str(tmp_path / "data" / "x.parquet")]
    assert found(*specs) == [1, 2, 3, 4, 5]
    assert found(*specs, streaming=True) == [1, 2, 3, 4, 5]
    assert len(found(*specs, train_data_weights=[1, 1, 2])) == 5


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{tmp}/absent", "there is no file or folder"),
        ("./absent.jsonl", "there is no file or folder"),
        ("{tmp}/empty", "the folder has no audio"),
        ("{tmp}/*.parquet", "matches 0 files"),
        ("{tmp}/full/*", "must match Parquet files or tar archives only"),
        ("{tmp}/full/1.wav", "single audio file"),
        ("{tmp}/full::clean", "no configs or splits"),
        ("{tmp}/full::::test", "no configs or splits"),
        ("a::b::c::d", "not of the form"),
        ("", "not of the form"),
        ("org/absent-data-set", "cannot be opened as a local path or on the Hub"),
        ("{tmp}/bad.parquet", "cannot be opened as Parquet"),
    ],
)
def test_what_cannot_be_opened_is_named(tmp_path, spec, message):
    (tmp_path / "empty").mkdir()
    write_clip(tmp_path / "full" / "1.wav", 1)
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    if "bad" in spec:
        spec = "{tmp}/bad.parquet"
    elif "*.parquet" in spec:
        (tmp_path / "bad.parquet").unlink()
    with pytest.raises(ValueError, match=message) as caught:
        open_source(spec.format(tmp=tmp_path))
    assert spec.format(tmp=tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"wav_path": "a.wav"', "line 3 is not valid JSON"),
        ('{"path": "a.wav"}', "line 3 has neither wav_path nor audio_filepath"),
        ('["a.wav"]', "line 3 has neither"),
        ('{"wav_path": "a.wav", "offset": "1"}', "line 3: offset must be seconds"),
        ('{"wav_path": "a.wav", "duration": -1}', "line 3: duration must be seconds"),
    ],
)
def test_bad_manifest_line_is_named(tmp_path, line, message):
    manifest = tmp_path / "list.jsonl"
    manifest.write_text('{"wav_path": "a.wav"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=message) as caught:
        open_source(str(manifest))
    assert str(manifest) in str(caught.value)


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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_data": []}, "train_data is empty"),
        ({"train_data_weights": [1.0, 2.0]}, "2 values for 1 sources"),
        ({"train_data_weights": [0.0]}, "`train_data_weights` must be above 0"),
        ({"train_data_weights": [float("nan")]}, "`train_data_weights` must be above 0, got nan"),
        ({"min_seconds": 0.02}, "min_seconds must be at least 0.025"),
        ({"max_seconds": 400.0}, "batch_seconds"),
        ({"bucket_buffer_size": 0}, "`bucket_buffer_size` must be at least 1"),
        ({"num_workers": -1}, "`num_workers` must be at least 0"),
        ({"batch_seconds": float("inf")}, "`batch_seconds` must be finite"),
        ({"cache_gb": 1.0, "streaming": True}, "cache_gb has no use with streaming"),
        ({"max_bad_fraction": 2.0}, "`max_bad_fraction` must lie between 0 and 1"),
    ],
)
def test_bad_arguments_name_the_field(values, message):
    with pytest.raises(ValueError, match=message):
        DataArguments(**({"train_data": ["a"]} | values))


def test_arguments_parse_and_are_documented(tmp_path):
    line = "--train_data a b::c --train_data_weights 1 2.5 --streaming --max_seconds 10 --audio_column speech"
    (args,) = HfArgumentParser(DataArguments).parse_args_into_dataclasses(line.split())
    assert args.train_data == ["a", "b::c"] and args.train_data_weights == [1.0, 2.5]
    assert args.streaming and args.max_seconds == 10.0 and args.audio_column == "speech"
    assert all(field.metadata["help"] for field in DataArguments.__dataclass_fields__.values())


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
    batches = start_reading(loader)
    for worker in batches._workers:
        os.kill(worker.pid, signal.SIGTERM)
    assert sum(len(batch["lengths"]) for batch in batches) == 8
