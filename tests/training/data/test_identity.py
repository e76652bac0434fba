"""Identity of data: told by their contents."""

from datasets import Dataset, Features, IterableDataset, Value, concatenate_datasets
from source_files import write_clip

from training.data.sources import Source, open_source


def test_what_data_are_is_told_by_their_contents(tmp_path):
    def folder(name: str, **contents: bytes) -> str:
        for file, content in contents.items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{file}.wav").write_bytes(content)
        return open_source(str(tmp_path / name)).identity

    first = folder("a", x=b"1", y=b"22")
    assert folder("b", x=b"1", y=b"22") == first, "a copy is the same"
    assert len({first, folder("c", x=b"1", z=b"22"), folder("d", x=b"1", y=b"223"), folder("e", x=b"1")}) == 4
    shards = []
    for order in ([0, 1, 2, 3], [0, 2, 1, 3]):
        rows = [{"audio": {"path": f"{n}.wav", "bytes": bytes([n]) * 5000}} for n in order]
        path = tmp_path / f"{order[1]}" / "part.parquet"
        path.parent.mkdir()
        Dataset.from_list(rows).to_parquet(str(path))
        shards.append(open_source(str(path), streaming=True).identity)
    assert shards[0] != shards[1]


def test_an_opened_source_stays_what_it_was(tmp_path):
    """Its files are looked at once: a run that goes on after one has gone says so when it reads it."""
    for number in (1, 2):
        write_clip(tmp_path / "in" / f"{number}.wav", number)
    source = open_source(str(tmp_path / "in"))
    before = source.identity
    (tmp_path / "in" / "2.wav").unlink()
    assert (source.identity, source.size) == (before, 2)
    assert open_source(str(tmp_path / "in")).identity != before


def test_labels_count_where_they_are_read(tmp_path):
    write_clip(tmp_path / "in" / "a.wav", 1)
    found = []
    for text in ("right", "wrong", "right"):
        (tmp_path / "in" / "metadata.csv").write_text(f"file_name,text\na.wav,{text}\n")
        found.append([open_source(str(tmp_path / "in"), labels=labels).identity for labels in ((), ("text",))])
    (bare, right), (bare_too, wrong), again = found
    assert bare == bare_too and len({bare, right, wrong}) == 3 and again == found[0]


def test_brackets_in_a_folder_of_shards_are_no_pattern(tmp_path):
    spec, found = str(tmp_path / "[set 1]" / "*.parquet"), []
    for content in (b"1", b"2"):
        (tmp_path / "[set 1]").mkdir(exist_ok=True)
        Dataset.from_list([{"audio": {"path": "a.wav", "bytes": content}}]).to_parquet(
            str(tmp_path / "[set 1]" / "part.parquet")
        )
        found.append(open_source(spec, streaming=True).identity)
    assert found[0] != found[1]


def revised(tmp_path, commit: str) -> tuple[Source, Source]:
    """A data set of the Hub as `datasets` holds it: an Arrow copy, and a stream of two splits."""
    folder = tmp_path / "org___name" / "default" / "0.0.0" / commit
    Dataset.from_dict({"audio": ["a.wav"], "text": ["A"]}).save_to_disk(folder)
    copy = Dataset.from_file(str(folder / "data-00000-of-00001.arrow"))

    def rows(files):
        yield from ({"audio": "a.wav"} for _ in files)

    files = [f"hf://datasets/org/name@{commit}/{number}.parquet" for number in range(2)]
    parts = [
        IterableDataset.from_generator(rows, Features({"audio": Value("string")}), {"files": [file]}) for file in files
    ]
    stream = concatenate_datasets(parts).select_columns(["audio"])
    return tuple(
        Source("org/name", dataset, "audio", "org/name") for dataset in (copy.select_columns(["audio"]), stream)
    )


def test_another_revision_on_the_hub_is_other_data(tmp_path):
    first, second = "1" * 40, "abcdef0123" * 4
    assert [source.identity for source in revised(tmp_path, first)] == [first, first]
    assert [source.identity for source in revised(tmp_path, second)] == [second, second]
