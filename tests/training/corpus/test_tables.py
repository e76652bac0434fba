"""Tables of units and features, read back."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from training.corpus.extraction import Extracted
from training.corpus.reading import Row
from training.corpus.tables import write_features, write_units
from training.data.clips import Clip


ROWS = [Row(7 + i, "source", Clip(f"{i}.wav", ""), {"speaker": "ä"}) for i in range(3)]


def units() -> Extracted:
    found = {}
    for place, values in ((0, [3, 3, 1]), (2, [2])):
        top = torch.tensor([[value, 9] for value in values], dtype=torch.int32)
        posteriors = torch.tensor([[0.75, 0.25]] * len(values)).half()
        found[place] = {"units": torch.tensor(values).int(), "top_units": top, "posteriors": posteriors}
    return Extracted(found, {0: 0.0725, 2: 0.03}, {1: ("1.wav", "empty")})


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_units_come_back_with_runs_and_columns(tmp_path, kind):
    write_units(tmp_path, "units-00000", kind, ROWS, units(), ["speaker"], top_k=2)
    path = tmp_path / f"units-00000.{kind}"
    rows = pq.read_table(path).to_pylist() if kind == "parquet" else list(map(json.loads, path.open(encoding="utf-8")))
    first, second = rows
    assert (first["number"], second["number"], second["name"], second["speaker"]) == (7, 9, "2.wav", "ä")
    assert (first["source"], first["seconds"], second["seconds"]) == ("source", 0.0725, 0.03)
    assert first["units"] == [3, 3, 1] and second["units"] == [2]
    assert (first["run_units"], second["run_units"]) == ([3, 1], [2])
    np.testing.assert_allclose(first["run_starts"], [0.0025, 0.0425], rtol=1e-6)
    np.testing.assert_allclose(first["run_seconds"], [0.04, 0.02], rtol=1e-6)
    assert kind == "parquet" or (first["run_starts"], first["run_seconds"]) == ([0.0025, 0.0425], [0.04, 0.02])
    assert first["top_units"] == [[3, 9], [3, 9], [1, 9]] and second["posteriors"] == [[0.75, 0.25]]


def test_a_name_of_the_data_stands_in_the_place_of_the_clip_s(tmp_path):
    rows = [row._replace(labels={"name": f"first called {row.number}"}) for row in ROWS]
    write_units(tmp_path, "units-00000", "parquet", rows, units(), ["name"], top_k=0)
    assert pq.read_table(tmp_path / "units-00000.parquet")["name"].to_pylist() == ["first called 7", "first called 9"]


def test_text_has_a_line_a_clip_an_empty_one_where_it_could_not_be_used(tmp_path):
    write_units(tmp_path, "units-00000", "text", ROWS, units(), [], top_k=0)
    assert (tmp_path / "units-00000.txt").read_text() == "3 1\n\n2\n"


@pytest.mark.parametrize(
    ("kind", "dtype"), [("npy", torch.float16), ("safetensors", torch.bfloat16), ("parquet", torch.float16)]
)
def test_features_come_back(tmp_path, kind, dtype):
    values = {0: torch.randn(4, 2, 3).to(dtype), 2: torch.randn(5, 2, 3).to(dtype)}
    extracted = Extracted({p: {"features": v} for p, v in values.items()}, {0: 0.1, 2: 0.2}, {})
    write_features(tmp_path, "features-00000", kind, ROWS, extracted, ["speaker"], str(dtype).removeprefix("torch."))
    if kind == "parquet":
        rows = pq.read_table(tmp_path / "features-00000.parquet").to_pylist()
        found = [torch.tensor(row["features"], dtype=dtype).view(row["shape"]) for row in rows]
    else:
        rows = pq.read_table(tmp_path / "features-00000.index.parquet").to_pylist()
        if kind == "npy":
            whole = torch.from_numpy(np.load(tmp_path / "features-00000.npy"))
        else:
            whole = load_file(tmp_path / "features-00000.safetensors")["features"]
        found = [whole[row["first"] : row["first"] + row["rows"]] for row in rows]
    assert all(a.equal(b) and a.dtype == dtype for a, b in zip(found, values.values()))
    assert [row["speaker"] for row in rows] == ["ä", "ä"]


NONE = Extracted({}, {}, {0: ("0.wav", "empty")})


@pytest.mark.parametrize("kind", ["parquet", "npy", "safetensors"])
def test_a_shard_without_a_usable_clip_has_the_columns_of_the_others(tmp_path, kind):
    """Whichever comes first: all shards are read as one table."""
    some = Extracted({0: {"features": torch.ones(4, 2, 3).half()}}, {0: 0.1}, {})
    for number, extracted in enumerate((NONE, some)):
        write_features(tmp_path, f"features-{number}", kind, ROWS, extracted, ["speaker"], "float16")
    index = sorted(tmp_path.glob("features-*.parquet"))
    assert pq.read_schema(index[0]) == pq.read_schema(index[1])
    assert pq.read_table(index)["speaker"].to_pylist() == ["ä"]
    arrays = sorted(path.name for path in tmp_path.iterdir() if path not in index)
    assert arrays == ([] if kind == "parquet" else [f"features-1.{kind}"])


@pytest.mark.parametrize("top_k", [0, 2])
def test_so_it_is_with_units(tmp_path, top_k):
    for number, extracted in enumerate((NONE, units())):
        write_units(tmp_path, f"units-{number}", "parquet", ROWS, extracted, ["speaker"], top_k)
    files = sorted(tmp_path.iterdir())
    assert pq.read_schema(files[0]) == pq.read_schema(files[1])
    table = pq.read_table(files)
    assert table["units"].to_pylist() == [[3, 3, 1], [2]]
    assert top_k == 0 or table["posteriors"].type.value_type.value_type == "float16"
    write_units(tmp_path, "units", "jsonl", ROWS, NONE, [], top_k)
    assert (tmp_path / "units.jsonl").read_text() == ""
