"""The index of a large manifest is made once, kept for whoever opens it next, and never taken for another's."""

import json
import multiprocessing
import os
import pickle
import time

import datasets
import pytest

import training.data.row_index
from training.data.manifest import JsonLines
from training.data.row_index import STRIDE, index_rows


@pytest.fixture
def manifest(tmp_path, monkeypatch):
    """One that counts as large."""
    monkeypatch.setattr(training.data.row_index, "KEPT_FROM", 0)
    path = tmp_path / "list.jsonl"
    path.write_text(rows(3 * STRIDE + 5))
    return path


@pytest.fixture
def scanned(monkeypatch):
    """Paths that were scanned."""
    found, scan = [], training.data.row_index._scan
    monkeypatch.setattr(training.data.row_index, "_scan", lambda file, path: found.append(path) or scan(file, path))
    return found


def rows(count: int, name: str = "a") -> str:
    return "".join(json.dumps({"wav_path": f"{name}{n}.wav"}) + "\n" * (1 + n % 2) for n in range(count))


def paths(manifest: JsonLines) -> list[str]:
    return [os.path.basename(manifest[index][0].audio) for index in range(len(manifest))]


def kept() -> list[str]:
    return sorted(path.name for path in (datasets.config.HF_DATASETS_CACHE / "rows").glob("*.npy"))


def test_a_large_manifest_is_scanned_once(manifest, scanned, caplog):
    caplog.set_level("INFO")
    expected = [f"a{n}.wav" for n in range(3 * STRIDE + 5)]
    assert paths(JsonLines(manifest)) == paths(JsonLines(manifest)) == expected
    assert scanned == [str(manifest)] and len(kept()) == 1
    assert caplog.text.count("searched for rows, once") == 1


def test_a_small_manifest_leaves_nothing_behind(manifest, monkeypatch):
    monkeypatch.setattr(training.data.row_index, "KEPT_FROM", 1 << 20)
    assert len(paths(JsonLines(manifest))) == 3 * STRIDE + 5 and kept() == []


def test_whoever_changes_the_manifest_changes_the_index(manifest, scanned):
    JsonLines(manifest)
    before, status = kept(), manifest.stat()
    manifest.write_text(rows(3 * STRIDE + 5, "b"))  # of the same size, and then of the same time
    os.utime(manifest, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert manifest.stat().st_size == status.st_size
    assert paths(JsonLines(manifest)) == [f"b{n}.wav" for n in range(3 * STRIDE + 5)]
    assert len(scanned) == 2 and len(kept()) == 1 and kept() != before


def test_workers_get_the_place_of_the_index(manifest):
    opened = JsonLines(manifest)
    assert len(pickle.dumps(opened)) < 1000
    assert paths(pickle.loads(pickle.dumps(opened))) == paths(opened)
    pickled = pickle.dumps(opened)
    (datasets.config.HF_DATASETS_CACHE / "rows" / kept()[0]).unlink()
    assert len(paths(opened)) == 3 * STRIDE + 5
    with pytest.raises(ValueError, match="has gone: start again"):
        pickle.loads(pickled)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"no index"])
def test_a_damaged_index_is_made_anew(manifest, scanned, content):
    expected = paths(JsonLines(manifest))
    (datasets.config.HF_DATASETS_CACHE / "rows" / kept()[0]).write_bytes(content)
    assert paths(JsonLines(manifest)) == expected and len(scanned) == 2
    assert paths(JsonLines(manifest)) == expected and len(scanned) == 2


def test_without_a_place_to_keep_it_each_process_scans(manifest, scanned, caplog):
    datasets.config.HF_DATASETS_CACHE.write_text("no folder")
    for times in (1, 2):
        assert len(paths(JsonLines(manifest))) == 3 * STRIDE + 5 and len(scanned) == times
    assert "cannot be kept for other processes" in caplog.text


def test_of_processes_that_come_at_once_one_scans(manifest, monkeypatch, tmp_path):
    scan = training.data.row_index._scan

    def slow(file, path):
        (tmp_path / f"scanned by {os.getpid()}").touch()
        time.sleep(0.5)
        return scan(file, path)

    def opened() -> None:
        with open(manifest, "rb") as file:
            assert index_rows(file, str(manifest)).size == 3 * STRIDE + 5

    monkeypatch.setattr(training.data.row_index, "_scan", slow)
    processes = [multiprocessing.get_context("fork").Process(target=opened) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(tmp_path.glob("scanned by *"))) == 1
