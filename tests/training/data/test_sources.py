"""Sources of every kind open, give their clips, and say in one sentence what is wrong with them."""

import errno
import json
import shutil
import sys
import tarfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import found, write_clip, write_parquet

import training.data.sources
from training.data.sources import Source, open_source


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


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_of_a_folder_that_is_not_read_is_named(tmp_path, caplog, streaming):
    folder = tmp_path / "p[a]ck"
    for name in ("train-0", "train-1"):
        write_parquet(folder / f"{name}.parquet", range(1))
    open_source(str(folder), streaming=streaming)
    assert not caplog.records
    for name in ("test-0", "more/extra"):
        write_parquet(folder / f"{name}.parquet", range(1))
    shutil.rmtree(folder / "clips")
    open_source(str(folder), streaming=streaming)
    open_source(f"{folder}::::test", streaming=streaming)
    first, second = (record.getMessage().partition(": not read is ") for record in caplog.records)
    assert first[0] == f"{folder} is read as the split 'train', by the names of its Parquet files"
    assert first[2].startswith(f"{folder}/more/extra.parquet, {folder}/test-0.parquet. To take that too, name it")
    assert second[2].startswith(f"{folder}/more/extra.parquet. To"), "another split is one that was not asked for"


def test_audio_is_copied_to_disk_once_whatever_is_read_beside_it(tmp_path):
    rows = {"audio": [{"bytes": bytes(100_000), "path": None}] * 20, "speaker": range(20), "kind": [0, 1] * 10}
    features = {
        "audio": datasets.Audio(),
        "speaker": datasets.Value("int64"),
        "kind": datasets.ClassLabel(names=list("ab")),
    }
    pq.write_table(pa.table(rows).cast(datasets.Features(features).arrow_schema), tmp_path / "x.parquet")
    dataset = open_source(str(tmp_path / "x.parquet"), labels=["kind", "speaker"]).dataset
    assert (dataset[3]["kind"], dataset[3]["speaker"], len(dataset[3]["audio"]["bytes"])) == ("b", "3", 100_000)
    copies = [path.stat().st_size for path in datasets.config.HF_DATASETS_CACHE.rglob("*.arrow")]
    assert 2_000_000 < sum(copies) < 2_100_000


@pytest.mark.parametrize(
    ("number", "why"), [(errno.ENOSPC, "is on a disk that is full"), (errno.EROFS, "cannot"), (errno.EACCES, "cannot")]
)
def test_a_folder_of_copies_that_takes_none_is_named_with_the_way_out(monkeypatch, number, why):
    def fail(*_, **__):
        place = datasets.config.HF_DATASETS_CACHE.parent if number != errno.ENOSPC else None
        raise datasets.exceptions.DatasetGenerationError("An error") from OSError(number, "no", place)

    monkeypatch.setattr(training.data.sources, "load_dataset", fail)
    with pytest.raises(
        ValueError, match=f"cache, where an Arrow copy is made, {why}.*: set streaming, or HF_DATASETS_C"
    ):
        open_source("org/name")


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
def test_the_audio_is_no_label_and_a_label_is_read_once(tmp_path, streaming):
    pq.write_table(pa.table({"path": ["a.wav"], "text": ["A"]}), tmp_path / "x.parquet")
    options = {"streaming": streaming, "audio_column": "path"}
    with pytest.raises(ValueError, match="column 'path' holds the audio"):
        open_source(str(tmp_path / "x.parquet"), labels=["path"], **options)
    ((clip, labels),) = open_source(str(tmp_path / "x.parquet"), labels=["text", "text"], **options).samples()
    assert (clip.audio, labels) == ("a.wav", {"text": "A"})


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


def test_what_lies_beside_the_kind_that_is_read_is_named(tmp_path, caplog):
    write_clip(tmp_path / "a.wav", 30)
    (tmp_path / "metadata.csv").write_text("file_name,text\na.wav,hello\n")
    write_parquet(tmp_path / "more" / "b.parquet", range(1))
    for labels in ((), ("text",)):
        caplog.clear()
        assert len(open_source(str(tmp_path), labels=labels).dataset) == 1
        (said,) = (record.getMessage() for record in caplog.records)
        assert said.startswith(f"{tmp_path} is read as a folder of audio files: not read is {tmp_path}/more/b.parquet")
    archives = tmp_path / "archives"
    archives.mkdir()
    with tarfile.open(archives / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.wav", "a.wav")
    caplog.clear()
    open_source(str(archives), streaming=True)
    assert not caplog.records
    write_parquet(archives / "b.parquet", range(1))
    open_source(str(archives), streaming=True)
    assert "is read as a folder of tar archives: not read is" in caplog.text


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{tmp}/absent", "there is no file or folder"),
        ("./absent.jsonl", "there is no file or folder"),
        ("{tmp}/empty", "the folder has no audio"),
        ("{tmp}/*.parquet", "matches 0 files"),
        ("{tmp}/full/*", "must match Parquet files or tar archives only"),
        ("{tmp}/full/1.wav", "single audio file"),
        ("{tmp}/clips.zip", "is not a file that can be read: .*, or a JSONL manifest of any other name"),
        ("{tmp}/full::clean", "no configs or splits"),
        ("{tmp}/full::::test", "no configs or splits"),
        ("{tmp}/shards::clean::train", "a folder of Parquet has no configs; name the subfolder"),
        ("{tmp}/archives::::validation", "no configs or splits"),
        ("{tmp}/archives::clean", "no configs or splits"),
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
    (tmp_path / "clips.zip").write_bytes(b"PK")
    write_parquet(tmp_path / "shards" / "train.parquet", range(1, 2))
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / "train.tar").touch()
    if "bad" in spec:
        spec = "{tmp}/bad.parquet"
    elif "*.parquet" in spec:
        (tmp_path / "bad.parquet").unlink()
    with pytest.raises(ValueError, match=message) as caught:
        open_source(spec.format(tmp=tmp_path))
    assert spec.format(tmp=tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "audio, name",
    [
        ({"path": "a.wav", "bytes": b"RIFF"}, "a.wav"),
        ({"path": None, "bytes": b"RIFF"}, "corpus[7]"),
        (b"RIFF", "corpus[7]"),
        ("b.wav", "b.wav"),
        ({"path": "line\nbreak.wav", "bytes": b"RIFF"}, r"line\nbreak.wav"),
    ],
)
def test_a_row_of_a_column_has_bytes_or_a_path(audio, name):
    clip, labels = Source("corpus", [], "audio").sample({"audio": audio, "path": "a label"}, 7)
    assert clip.name == name and clip.audio == ("b.wav" if audio == "b.wav" else b"RIFF")
    assert labels == {"path": "a label"}
