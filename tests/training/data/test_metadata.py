"""Labels of folders: what `datasets`' audiofolder reads is read alike, whatever leaves a doubt is refused by name."""

import json
import logging
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import ClassLabel, Dataset, Features, Value, load_dataset

from training.data.bad_audio import BadAudioError
from training.data.labelled import open_labelled
from training.data.manifest import MissingColumn
from training.data.sources import open_source


def write_clips(folder, *names):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 4000)
    for name in names:
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            soundfile.write(file, samples, 16000, format="WAV")
    return folder


@pytest.fixture
def folder(tmp_path):
    """Clips a.wav to f.wav, no metadata."""
    return write_clips(tmp_path / "clips", *(f"{name}.wav" for name in "abcdef"))


def texts(folder, label="text", **options) -> dict[str, str]:
    clips = open_labelled([str(folder)], [label], **options)
    return {os.path.relpath(clips.clip(i).name, folder): clips.labels[label][i] for i in range(len(clips))}


def refused(folder, content: str | bytes, name: str = "metadata.csv") -> str:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as caught:
        open_labelled([str(folder)], ["text"], classes=True)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_three_files_of_audiofolder_give_what_it_gives(folder, kind):
    said = ['He said "Yes, sir"', "two\nlines", "nan", " día 日本 ", "007"]
    rows = [{"file_name": f"{name}.wav", "text": text} for name, text in zip("abcde", said)]
    table = Dataset.from_list(rows)
    {"csv": table.to_csv, "jsonl": table.to_json, "parquet": table.to_parquet}[kind](folder / f"metadata.{kind}")
    if kind != "csv":  # pandas would take nan for nothing and 007 for a number
        theirs = load_dataset("audiofolder", data_dir=str(folder), split="train", streaming=True)
        assert [row["text"] for row in theirs.select_columns(["text"])] == said
    assert texts(folder) == {f"{name}.wav": text.strip() for name, text in zip("abcde", said)}
    (folder / f"metadata.{kind}").rename(folder / "table")
    other = Dataset.from_list([{"speech_file_name": row["file_name"], "text": row["text"]} for row in rows])
    {"csv": other.to_csv, "jsonl": other.to_json, "parquet": other.to_parquet}[kind](folder / f"metadata.{kind}")
    assert texts(folder)["e.wav"] == "007"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file_name;text\na.wav;A\n", "metadata.csv: columns must be separated by commas, but .* is file_name;text$"),
        ('"file_name";"text"\n"a.wav";"A"\n', "must be separated by commas"),
        ("file_name\ttext\na.wav\tA\n", "must be separated by commas, but .* is file_name.*text$"),
        ("path,text\na.wav,A\n", "no column file_name with the audio files; it has path, text"),
        ("path|text\na.wav|A\n", r"no column file_name with the audio files; it has path\|text"),
        ("file_name,text,text\na.wav,A,B\n", "several columns text"),
        ("near_file_name,far_file_name,text\na.wav,b.wav,A\n", "no column file_name"),
        ("file_name,sentence\na.wav,A\n", "no column 'text'; it has file_name, sentence"),
        ("file_name,text\n", "names no file"),
        ("", "no column file_name"),
        ("file_name,text\na.wav,A\nb.wav,WELL, HELLO, YES\n", "line 3 has 4 fields, the header 2"),
        ("file_name,text\na.wav,A\nb.wav\n", "line 3 has 1 fields, the header 2"),
        ('file_name,text\na.wav,"A\nb.wav,B\nc.wav,C\n', "lines 2 to 4: a quotation mark is unmatched"),
        ('file_name,text\na.wav,A\nb.wav,"B" and C\n', "line 3: a quotation mark is unmatched"),
        ('file_name,text\na.wav,"A\nb.wav,B\nc.wav,C"\nd.wav,D\n', "lines 2 to 4 are one row"),
        (
            "file_name,text\na.wav," + '"' + "A" * 140_000 + "\n",
            "line 2.*a quotation mark is unmatched .*field larger",
        ),
        ("file_name,text\na.wav,café\n".encode("latin-1"), "line 2: the byte 0xe9 is not UTF-8: save"),
        ("\ufefffile_name,text\na.wav,A\nb.wav,é\n".encode() + b"c.wav,\xff\n", "line 4: the byte 0xff"),
        ("file_name,text\na.wav,A\n".encode("utf-16"), "is UTF-16 or UTF-32: save it as UTF-8"),
        ("file_name,text\na.wav,A\n".encode("utf-16-le"), "is UTF-16 or UTF-32: save it as UTF-8"),
        ("file_name,text\na.wav,A\nb.wav,B\0B\n", "line 3 holds a NUL byte"),
        ("file_name,text\n../a.wav,A\n", "line 2: file_name ../a.wav leads out of the folder"),
        ("file_name,text\n/etc/a.wav,A\n", "line 2: file_name /etc/a.wav leads out"),
        ("file_name,text\nfile:///a.wav,A\n", "line 2: file_name file:///a.wav leads out"),
        ("file_name,text\na.wav,A\n./a.wav,B\n", "a.wav is listed twice, with text A and B"),
    ],
)
def test_a_csv_that_leaves_a_doubt_is_refused(folder, content, message):
    told = refused(folder, content)
    assert re.search(message, told), told


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "b.wav", "text": NaN}', "line 2: text must be text, a whole number or null, got nan"),
        ('{"file_name": "b.wav", "text": ["B"]}', "line 2: text must be .* got a list"),
        ('{"file_name": "b.wav", "text": true}', "line 2: text must be .* got True"),
        ('{"file_name": "b.wav", "text": 1.5}', "line 2: text must be .* got 1.5"),
        ('{"file_name": "b.wav", "text": "\\ud800"}', "line 2: text holds half a character"),
        ('{"file_name": "b.wav", "text": "B", "text": "C"}', "line 2 is not valid JSON: text is listed twice"),
        ('{"file_name": "b.wav", "text": ' + "[" * 20_000, "line 2 is not valid JSON"),
        ('{"file_name": "b.wav"}', "line 2' has no column 'text'"),
        ('{"file_name": ["b.wav"], "text": "B"}', "line 2: file_name must be a path, got a list"),
        ('["b.wav", "B"]', "line 2 is not a JSON object"),
    ],
)
def test_a_line_that_leaves_a_doubt_is_refused(folder, line, message):
    told = refused(folder, '{"file_name": "a.wav", "text": "A"}\n' + line + "\n", "metadata.jsonl")
    assert re.search(message, told), told


@pytest.mark.parametrize(
    "values", [[["A"], ["B"]], [1.0, float("nan")], [True, False], [{"x": 1}, None], [b"A", b"B"]]
)
def test_columns_of_parquet_that_are_no_labels_are_refused(folder, tmp_path, values):
    pq.write_table(pa.table({"file_name": ["a.wav", "b.wav"], "text": values}), folder / "metadata.parquet")
    with pytest.raises(ValueError, match="metadata.parquet: column 'text' holds .* not a label"):
        open_labelled([str(folder)], ["text"])
    audio = [{"bytes": None, "path": str(folder / f"{name}.wav")} for name in "ab"]
    pq.write_table(pa.table({"audio": audio, "text": values}), tmp_path / "clips.parquet")
    with pytest.raises(ValueError, match="clips.parquet': column 'text' holds .* not a label"):
        open_labelled([str(tmp_path / "clips.parquet")], ["text"])
    (folder / "metadata.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="metadata.parquet cannot be read as Parquet"):
        open_labelled([str(folder)], ["text"])


def test_numbers_and_classes_are_labels_and_what_lacks_one_is_counted(folder, caplog):
    features = Features({"file_name": Value("string"), "text": ClassLabel(names=["no", "yes"]), "n": Value("int8")})
    rows = [{"file_name": f"{name}.wav", "text": number, "n": 5} for name, number in zip("abc", (1, 0, -1))]
    Dataset.from_list(rows, features=features).to_parquet(folder / "metadata.parquet")
    assert texts(folder, max_bad_fraction=0.5) == {"a.wav": "yes", "b.wav": "no"}
    assert "c.wav: no text" in caplog.text
    assert set(texts(folder, "n").values()) == {"5"}


def test_rows_that_name_nothing_are_bad_clips(folder, caplog):
    (folder / "metadata.csv").write_text(
        "file_name,text\na.wav,A\n,B\nabsent.wav,C\n,,\n\nd.wav,\n".replace(",,", ",")
    )
    assert texts(folder, max_bad_fraction=0.9) == {"a.wav": "A"}
    assert "metadata.csv, line 3: bad_line" in caplog.text and "absent.wav: missing" in caplog.text
    assert "d.wav: no text" in caplog.text
    (folder / "metadata.csv").write_text("file_name,text\n" + "absent.wav,C\n" * 60)
    with pytest.raises(BadAudioError, match="60 of 60|50 of 50"):
        open_labelled([str(folder)], ["text"])


def test_odd_paths_in_a_list_are_found(folder):
    write_clips(folder, "sub/g.wav", "back\\slash.wav", "new\nline.wav", "caf\udce9.wav", "~x.wav")
    names = ["sub\\g.wav", "back\\slash.wav", "new\nline.wav", "~x.wav", str(folder / "a.wav")]
    lines = [json.dumps({"file_name": name, "text": str(n)}) for n, name in enumerate([*names, "caf\udce9.wav"])]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    expected = ["sub/g.wav", "back\\slash.wav", "new\\nline.wav", "~x.wav", "a.wav", "caf\\udce9.wav"]
    assert texts(folder) == {name: str(n) for n, name in enumerate(expected)}
    (folder / "list.jsonl").write_text("\n".join(lines).replace("file_name", "audio_filepath"))
    clips = open_labelled([str(folder / "list.jsonl")], ["text"])
    assert clips.labels["text"] == list("012345")


def test_spaces_after_commas_are_no_text(folder):
    (folder / "metadata.csv").write_text('file_name, text\na.wav, "Yes, sir"\nb.wav, "No"\nc.wav,say "it"\n')
    assert texts(folder) == {"a.wav": "Yes, sir", "b.wav": "No", "c.wav": 'say "it"'}


def test_marks_within_a_field_are_text(folder):
    (folder / "metadata.csv").write_text('file_name,text\na.wav,a 5" disc\nb.wav,"a 5"" disc"\nc.wav,B "and C\n')
    assert texts(folder) == {"a.wav": 'a 5" disc', "b.wav": 'a 5" disc', "c.wav": 'B "and C'}


def test_a_file_of_parquet_has_one_label(folder, tmp_path):
    audio = [{"bytes": None, "path": str(folder / f"{name}.wav")} for name in "aba"]
    pq.write_table(pa.table({"audio": audio, "text": ["A", "B", "A"]}), tmp_path / "clips.parquet")
    clips = open_labelled([str(tmp_path / "clips.parquet")], ["text"])
    assert clips.groups().tolist() == [0, 1, 0]
    pq.write_table(pa.table({"audio": audio, "text": ["A", "B", "C"]}), tmp_path / "clips.parquet")
    with pytest.raises(ValueError, match="a.wav is listed twice, with text A and C"):
        open_labelled([str(tmp_path / "clips.parquet")], ["text"])


def test_several_lists_are_refused(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "a.wav", "text": "A"}\n')
    assert "holds metadata.csv and metadata.jsonl: keep the one" in refused(folder, "file_name,text\na.wav,A\n")


# Folders of folders


def test_lists_of_subfolders_are_read_but_not_those_of_splits(tmp_path, caplog):
    write_clips(tmp_path, "anna/a.wav", "bert/deep/b.wav", "carl/c.wav")
    (tmp_path / "anna" / "metadata.csv").write_text("file_name,text\na.wav,A\n")
    (tmp_path / "bert" / "metadata.jsonl").write_text('{"text": "B", "file_name": "deep/b.wav"}\n')
    assert texts(tmp_path) == {"anna/a.wav": "A", "bert/deep/b.wav": "B"}
    assert "1 audio files lie in folders without metadata and are left out" in caplog.text
    (tmp_path / "anna").rename(tmp_path / "train-clean")
    (tmp_path / "bert").rename(tmp_path / "test")
    with pytest.raises(ValueError, match="holds the parts train-clean, test of a data set: name each by itself"):
        open_labelled([str(tmp_path)], ["text"], classes=True)
    assert len(open_source(str(tmp_path)).dataset) == 3, "without labels it is just audio"
    (tmp_path / "metadata.csv").write_text("file_name,text\ntrain-clean/a.wav,X\ntest/deep/b.wav,Y\n")
    assert texts(tmp_path) == {"train-clean/a.wav": "X", "test/deep/b.wav": "Y"}
    assert "metadata.csv names files in train-clean, test: all are used alike" in caplog.text
    assert f"To take one alone, name it: {tmp_path}/train-clean." in caplog.text
    assert "is the list: the metadata of" in caplog.text


def test_a_part_of_a_data_set_is_read_from_the_list_above_it(tmp_path, monkeypatch):
    write_clips(tmp_path, "train/a.wav", "train/yes/b.wav", "test/c.wav", "other/d.wav")
    rows = "train/a.wav,A\ntrain/yes/b.wav,B\ntest/c.wav,C\nother/d.wav,D\n"
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + rows)
    assert texts(tmp_path / "train") == {"a.wav": "A", "yes/b.wav": "B"}
    monkeypatch.chdir(tmp_path / "test")
    assert [open_labelled([name], ["text"]).labels["text"] for name in (".", "../test/")] == [["C"], ["C"]]
    with pytest.raises(MissingColumn, match="metadata.csv' has no column 'label'; it has file_name, text"):
        open_labelled([str(tmp_path / "train")], ["label"], classes=True)
    with pytest.raises(ValueError, match="other has no metadata.csv"):  # its name says nothing
        texts(tmp_path / "other")
    (tmp_path / "metadata.csv").write_text("LJ001|some text\n")
    with pytest.raises(ValueError, match="train has no metadata.csv"):
        texts(tmp_path / "train")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/a.wav", "test/b.wav"], "parts train, test"),
        (["Train/yes/a.wav", "Train/no/a.wav", "dev/yes/b.wav"], "parts Train, dev of a data set"),
        (["data/train/a.wav", "data/valid_2/b.wav"], "parts data/train, data/valid_2"),
        (["a.wav", "yes/b.wav"], "nor a subfolder for each label"),
        (["yes/a.wav", "no/anna/b.wav"], "all equally deep"),
        (["train/a.wav", "train_2/b.wav"], "nor a subfolder"),
        (["yes/a.wav"], "nor a subfolder"),
        (["a.wav", "b.wav"], "It has audio in the folder itself\\."),
    ],
)
def test_folder_names_that_are_no_classes(tmp_path, names, message):
    write_clips(tmp_path, *names)
    with pytest.raises(ValueError, match=message):
        open_labelled([str(tmp_path)], ["label"], classes=True)
    assert len(open_source(str(tmp_path)).dataset) == len(names)


def test_folder_names_are_classes_only_where_these_are_asked_for(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_clips(tmp_path, "train/a.wav", "car/b.wav", "caf\udce9/c.wav")
    assert sorted(texts(tmp_path, "label", classes=True).values()) == ["caf\\udce9", "car", "train"]
    assert "names of its 3 folders of audio are each file's label" in caplog.text
    with pytest.raises(ValueError, match="no metadata.csv .* columns file_name and text: write one"):
        open_labelled([str(tmp_path)], ["text"])
    for name in ("metadata.tsv", "Metadata.CSV"):
        (tmp_path / name).write_text("file_name\tlabel\ntrain/a.wav\tx\n")
        with pytest.raises(ValueError, match=f"it has {name}.*must have one of the names metadata.csv"):
            open_labelled([str(tmp_path)], ["label"], classes=True)
        (tmp_path / name).unlink()


def test_pretraining_takes_all_audio_beside_another_kind_of_list(folder, caplog):
    (folder / "metadata.csv").write_text("LJ001|some text, and more\n")
    assert len(open_source(str(folder)).dataset) == 6 and "All audio files of the folder are used" in caplog.text
    (folder / "metadata.csv").write_text("file_name;text\na.wav;A\n")
    with pytest.raises(ValueError, match="separated by commas"):
        open_source(str(folder))
    with pytest.raises(MissingColumn):
        (folder / "metadata.csv").write_text("file_name,words\na.wav,A\n")
        open_source(str(folder), labels=["text"])


def test_classes_that_look_alike_are_one(folder):
    rows = ["a.wav,caf\u00e9", "b.wav,cafe\u0301", "c.wav,\ufeffcaf\u00e9\u200b ", "d.wav,\u00a0caf\u00e9"]
    (folder / "metadata.csv").write_text("file_name,text\n" + "\n".join(rows))
    assert set(texts(folder).values()) == {"caf\u00e9"}
