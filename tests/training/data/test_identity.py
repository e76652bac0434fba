"""Identity of data: told by their contents."""

from datasets import Dataset

from training.data.identity import identity
from training.data.sources import open_source


def test_what_data_are_is_told_by_their_contents(tmp_path):
    def folder(name: str, **contents: bytes) -> str:
        for file, content in contents.items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{file}.wav").write_bytes(content)
        return identity(str(tmp_path / name), open_source(str(tmp_path / name)))

    first = folder("a", x=b"1", y=b"22")
    assert folder("b", x=b"1", y=b"22") == first, "a copy is the same"
    assert len({first, folder("c", x=b"1", z=b"22"), folder("d", x=b"1", y=b"223"), folder("e", x=b"1")}) == 4
    shards = []
    for order in ([0, 1, 2, 3], [0, 2, 1, 3]):
        rows = [{"audio": {"path": f"{n}.wav", "bytes": bytes([n]) * 5000}} for n in order]
        path = tmp_path / f"{order[1]}" / "part.parquet"
        path.parent.mkdir()
        Dataset.from_list(rows).to_parquet(str(path))
        shards.append(identity(str(path), open_source(str(path), streaming=True)))
    assert shards[0] != shards[1]
