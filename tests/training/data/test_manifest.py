"""Manifests give the rows of a plain reading, whatever their lines look like, hold no list and name bad lines."""

import json
import os
import pickle

import numpy as np
import pytest
import soundfile
from source_files import found, write_clip

import training.data.manifest
import training.data.row_index
import training.data.sources
from sjepa_hf.frames import SAMPLING_RATE
from training.data.arguments import DataArguments
from training.data.clips import Clip
from training.data.labelled import open_labelled
from training.data.loader import build_loader
from training.data.manifest import JsonLines
from training.data.row_index import STRIDE
from training.data.sources import open_source
from training.data.waveforms import BadAudio, audio_length


def lines(number: int, **more) -> list[str]:
    entries = [{"wav_path": f"{n}.wav", "offset": n / 4, "duration": n + 1} | more for n in range(number)]
    return [json.dumps(entry, ensure_ascii=False) for entry in entries]


def numbers(manifest: JsonLines) -> list[int]:
    return [int(os.path.basename(clip.audio)[:-4]) for clip, _ in manifest]


def write(path, content: str | bytes) -> JsonLines:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return JsonLines(path)


def blanks(number: int) -> str:
    """Every kind of blank line, between, before and after the rows; some rows are indented."""
    between = ["\n", "\n\n", "\n \t\n", "\n\r\n\n", "\n   "]
    return "\n  \n" + "".join(line + between[n % 5] for n, line in enumerate(lines(number))) + "\n\n \n"


@pytest.mark.parametrize("number", [1, STRIDE - 1, STRIDE, STRIDE + 1, 5 * STRIDE, 200])
@pytest.mark.parametrize("block", [1, 64, 1 << 20])
@pytest.mark.parametrize(
    "form",
    {
        "plain": lambda number: "\n".join(lines(number)) + "\n",
        "no final newline": lambda number: "\n".join(lines(number)),
        "CRLF": lambda number: "\r\n".join(lines(number)) + "\r\n",
        "BOM": lambda number: "\ufeff" + "\n".join(lines(number)),
        "BOM and blank": lambda number: "\ufeff\r\n" + "\n".join(lines(number)),
        "blank lines": blanks,
        "unicode": lambda number: "\n".join(lines(number, text="día 日本語 \u2028\x85")),
        "long lines": lambda number: "\n".join(lines(number, text="x" * 3000)),
    }.items(),
    ids=lambda form: form[0],
)
def test_rows_are_those_of_a_plain_reading(tmp_path, monkeypatch, number, block, form):
    monkeypatch.setattr(training.data.row_index, "BLOCK", block)
    manifest = write(tmp_path / "list.jsonl", form[1](number))
    paths = [str(tmp_path / f"{n}.wav") for n in range(number)]
    expected = [(Clip(path, path, n / 4, n + 1.0), {}) for n, path in enumerate(paths)]
    assert len(manifest) == number
    assert list(manifest) == expected
    assert [manifest[i] for i in np.random.default_rng(0).permutation(number)] == [
        expected[i] for i in np.random.default_rng(0).permutation(number)
    ]
    assert manifest[-1] == expected[-1]
    for beyond in (number, -number - 1):
        with pytest.raises(IndexError):
            manifest[beyond]


def test_paths_and_missing_fields(tmp_path):
    samples = write(
        tmp_path / "list.jsonl",
        '{"audio_filepath": "a/b.wav", "text": "t"}\n{"wav_path": "/c.wav", "offset": 2, "duration": null}\n'
        '{"wav_path": "s3://d/e.wav"}',
    )
    assert [clip[1:] for clip, _ in samples] == [
        (str(tmp_path / "a/b.wav"), 0.0, None),
        ("/c.wav", 2.0, None),
        ("s3://d/e.wav", 0.0, None),
    ]


def test_labels_are_strings(tmp_path):
    path = tmp_path / "list.jsonl"
    entries = [{"wav_path": "a.wav", "text": "día", "speaker": 7}, {"wav_path": "b.wav", "speaker": None, "text": ""}]
    path.write_text("\n".join(json.dumps(entry) for entry in entries))
    samples = open_source(str(path), labels=["speaker", "text"]).samples()
    assert [labels for _, labels in samples] == [{"speaker": "7", "text": "día"}, {"speaker": None, "text": ""}]
    with pytest.raises(ValueError, match="line 1' has no column 'words'; it has wav_path, text, speaker"):
        JsonLines(path, ["words"])


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", '["A"]', '{"a": 1}', "true", "2.5", '"\\udc00"', "1" + "0" * 5000]
)
def test_what_is_no_label_is_a_bad_line(tmp_path, monkeypatch, value):
    path = tmp_path / "list.jsonl"
    path.write_text('{"wav_path": "a.wav", "text": "A"}\n{"wav_path": "b.wav", "text": ' + value + "}\n")
    with pytest.raises(ValueError, match="list.jsonl, line 2"):
        JsonLines(path, ["text"])
    if len(value) < 100:
        assert len(JsonLines(path)) == 2, "it is not asked for"
    monkeypatch.setattr(training.data.manifest, "CHECKED", 1)
    clip, labels = JsonLines(path, ["text"])[1]
    assert labels == {"text": None} and clip.audio.reason == "bad_line"


def test_labels_have_names_of_their_own(tmp_path):
    """A label may be called what a clip has: neither takes the other's place."""
    write_clip(tmp_path / "a.wav", 1, seconds=0.5)
    own = {"path": "b.wav", "bad_line": "no"}
    entry = {"wav_path": "a.wav", "offset": 0, "duration": 3} | own
    (tmp_path / "list.jsonl").write_text(json.dumps(entry))
    (tmp_path / "metadata.csv").write_text("file_name,path,duration,bad_line\na.wav,b.wav,3,no\n")
    for source in (tmp_path / "list.jsonl", tmp_path):
        clips = open_labelled([str(source)], ["path", "duration", "bad_line"])
        assert clips.clip(0).audio == str(tmp_path / "a.wav") and len(clips[0]["input_values"]) == 8000
        assert clips.labels == {"path": ["b.wav"], "duration": ["3"], "bad_line": ["no"]}


def test_home_and_windows_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "odd\\name.wav").touch()
    entries = [{"wav_path": name} for name in ("~/a.wav", "sub\\b.wav", "odd\\name.wav", "caf\udce9.wav")]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, entries)))
    found = [os.path.relpath(clip.audio, tmp_path) for clip, _ in JsonLines(tmp_path / "list.jsonl")]
    assert found == ["home/a.wav", "sub/b.wav", "odd\\name.wav", "caf\udce9.wav"]


def test_workers_get_little_and_read_by_themselves(tmp_path):
    content = "\n".join(lines(64 * STRIDE, text="x" * 1000))
    manifest = write(tmp_path / "list.jsonl", content)
    first = manifest[5]
    pickled = pickle.dumps(manifest)
    assert len(pickled) < len(content) / 1000
    assert pickle.loads(pickled)[5] == first
    child = os.fork()
    if not child:  # shares the open file with this process
        os._exit(0 if numbers(manifest) == list(range(len(manifest))) else 1)
    assert numbers(manifest) == list(range(len(manifest)))
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("opened", [True, False])
def test_a_changed_file_is_told(tmp_path, opened):
    path = tmp_path / "list.jsonl"
    manifest = write(path, "\n".join(lines(3)))
    if opened:
        manifest[0]
    with open(path, "a") as file:
        file.write("\n" + lines(1)[0])
    with pytest.raises(ValueError, match="list.jsonl has changed since it was opened"):
        manifest[0]
    assert len(JsonLines(path)) == 4


def test_a_replaced_file_is_read_as_it_was_or_told(tmp_path):
    manifest = write(tmp_path / "list.jsonl", "\n".join(lines(3)))
    manifest[0]
    write(tmp_path / "other.jsonl", "\n".join(lines(3)[::-1]))
    os.utime(tmp_path / "other.jsonl", ns=(0, 0))
    os.replace(tmp_path / "other.jsonl", tmp_path / "list.jsonl")
    assert numbers(manifest) == [0, 1, 2]
    with pytest.raises(ValueError, match="has changed"):
        pickle.loads(pickle.dumps(manifest))[0]


BAD = [
    '{"wav_path": "a.wav"',
    '{"path": "a.wav"}',
    '["a.wav"]',
    '{"wav_path": "a.wav", "offset": NaN}',
    '{"wav_path": "a.wav", "duration": 1' + "0" * 400 + "}",
    '{"wav_path": "a.wav", "duration": "2"}',
    b'{"wav_path": "\xff.wav"}',
    '{"wav_path": "a.wav", "more": ' + "[" * 20_000,
    '{"wav_path": "a.wav", "offset": ' + "[" * 900 + "]" * 900 + "}",
    '{"wav_path": "\\ud800.wav"}',
    '{"wav_path": "a.wav", "wav_path": "b.wav"}',
    '{"wav_path": "a.wav", "audio_filepath": "b.wav"}',
    '{"wav_path": "a.wav", "offset": true}',
    '{"wav_path": "a.wav", "duration": 1' + "0" * 5000 + "}",
]


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_line_far_down_is_a_bad_clip(tmp_path, monkeypatch, bad):
    soundfile.write(tmp_path / "0.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 16000), 16000)
    path = tmp_path / "list.jsonl"
    good = b'{"wav_path": "0.wav"}\n'
    path.write_bytes(good * 40 + b"\n" + (bad if isinstance(bad, bytes) else bad.encode()) + b"\n" + good)
    with pytest.raises(ValueError, match="list.jsonl, line 42") as caught:
        open_source(str(path))
    monkeypatch.setattr(training.data.manifest, "CHECKED", 40)
    source = open_source(str(path))
    clip = source.clip(source.dataset[40], 40)
    assert clip.name == f"{path}, line 42" and len(source.dataset) == 42
    for read in (clip.read, lambda: audio_length(clip.audio)):
        with pytest.raises(BadAudio) as told:
            read()
        assert told.value.reason == "bad_line" and str(caught.value) in str(told.value)
    assert len(source.clip(source.dataset[41], 41).read()) == 16000
    clips = open_labelled([str(path)], [])
    assert len(clips) == 41


def test_what_is_no_manifest_is_told(tmp_path, monkeypatch):
    for nothing in ("", "\n \r\n", "\ufeff"):
        with pytest.raises(ValueError, match="list.jsonl names no clip"):
            write(tmp_path / "list.jsonl", nothing)
    with pytest.raises(ValueError, match="line 1: the byte 0xff is not UTF-8: save"):
        write(tmp_path / "list.jsonl", "\n".join(lines(3)).encode("utf-16"))
    monkeypatch.setattr(training.data.row_index, "LONGEST_LINE", 1000)
    monkeypatch.setattr(training.data.row_index, "BLOCK", 100)
    with pytest.raises(ValueError, match="it is no JSONL manifest"):
        write(tmp_path / "list.jsonl", json.dumps([{"wav_path": "a.wav"}] * 100))


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
        clip, _ = open_source(str(manifest)).dataset[1]
        assert clip == Clip(str(tmp_path / "2.wav"), str(tmp_path / "2.wav"))
        assert found(str(manifest)) == list(range(1, last))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"wav_path": "a.wav"', "line 3 is not valid JSON"),
        ('{"path": "a.wav"}', "line 3 has neither wav_path nor audio_filepath"),
        ('["a.wav"]', "line 3 is not a JSON object"),
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
