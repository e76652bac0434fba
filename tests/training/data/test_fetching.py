"""Audio behind URLs: only remote storage is asked, and no answer fills the memory or hangs."""

import itertools
import json
import logging
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile

import training.data.fetching
from training.data.arguments import DataArguments
from training.data.fetching import NAMED, fetch
from training.data.loader import build_loader
from training.data.sources import Source
from training.data.waveforms import BadAudio, read_audio


class Server(BaseHTTPRequestHandler):
    """`/clip.wav` and its like; `/endless`, `/drip`, `/silent`, `/huge`, `/loop`, `/to-file`: hosts that do harm."""

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer()

    def answer(self, with_body: bool = True):
        self.server.asked.append(self.path)
        files, name = self.server.files, self.path.partition("?")[0]
        if name in files:
            start, end = 0, len(files[name]) - 1
            if wanted := self.headers.get("Range"):
                start, end = (int(x or end) for x in wanted.removeprefix("bytes=").split("-"))
                end = min(end, len(files[name]) - 1)
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(end + 1 - start))
            self.send_header("Accept-Ranges", "bytes")
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{end}/{len(files[name])}")
            self.end_headers()
            if with_body:
                self.wfile.write(files[name][start : end + 1])
        elif name in ("/loop", "/to-file"):
            self.send_response(302)
            self.send_header("Location", "/loop" if name == "/loop" else "file:///etc/passwd")
            self.end_headers()
        elif name in ("/endless", "/drip", "/silent", "/huge"):
            self.send_response(200)
            if name == "/huge":
                self.send_header("Content-Length", str(1 << 62))
            self.end_headers()
            try:
                while with_body and not self.server.over.is_set():
                    if name != "/silent":
                        self.wfile.write(b"RIFF" if name == "/drip" else bytes(1 << 16))
                    if name in ("/drip", "/silent"):
                        self.server.over.wait(0.1)
            except OSError:
                pass
        else:
            self.send_error(404)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)
    soundfile.write(tmp_path / "clip.wav", samples, 16000)
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        archive.write(tmp_path / "clip.wav", "a/clip.wav")
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        running.daemon_threads = True
        running.files = {f"/{name}": (tmp_path / name).read_bytes() for name in ("clip.wav", "clips.zip")}
        running.asked, running.over = [], threading.Event()
        threading.Thread(target=running.serve_forever, daemon=True).start()
        running.url = f"http://127.0.0.1:{running.server_port}"
        yield running
        running.over.set()
        running.shutdown()


def test_what_a_url_leads_to_is_fetched_with_one_request(server):
    assert fetch(f"{server.url}/clip.wav?download=true&name=a::b") == server.files["/clip.wav"]
    assert len(server.asked) == 1
    assert len(read_audio(fetch(f"{server.url}/clip.wav"))) == 16000
    assert fetch(f"zip://a/clip.wav::{server.url}/clips.zip") == server.files["/clip.wav"]


@pytest.mark.parametrize(
    "audio", ["a.wav", "/data/a.wav", b"RIFF", b"http://host/a.wav", "C:\\a.wav", "a::b", BadAudio("missing")]
)
def test_paths_and_bytes_stay_as_they_are(audio):
    assert fetch(audio) == audio


@pytest.mark.parametrize(
    "url",
    [
        "file:///dev/zero",
        "FILE:///dev/zero",
        "local:///dev/zero",
        "memory://a.wav",
        "data://audio/wav;base64,UklGRg==",
        "simplecache::file:///dev/zero",
        "filecache::local:///dev/zero",
        "blockcache::http://127.0.0.1/a.wav",
        "zip://a.wav::file:///tmp/a.zip",
        "zip://a.wav::/tmp/a.zip",
        "zip://a.wav::zip://b.zip::http://127.0.0.1/a.zip",
        "tar://a.wav::http://127.0.0.1/a.tar",
        "reference://::file:///tmp/a.json",
        "sftp://host/a.wav",
        "github://org:repo@main/a.wav",
        "jupyter://host/a.wav",
        "dir::file:///tmp",
        "ftp://host/a.wav",
        " file:///dev/zero",
        "nothing-of-the-kind://a",
    ],
)
def test_nothing_but_remote_storage_is_asked(url, monkeypatch):
    monkeypatch.setattr(training.data.fetching.fsspec, "filesystem", lambda *given, **more: pytest.fail("was asked"))
    found = fetch(url)
    assert isinstance(found, BadAudio) and found.reason == "missing" and "local files go by their path" in found.detail


def test_a_chain_hidden_in_a_url_is_not_followed(server):
    """What fsspec would take for a chain of file systems is asked of the host as it stands."""
    found = fetch(f"{server.url}/absent::file:///etc/passwd")
    assert isinstance(found, BadAudio) and len(server.asked) == 1 and server.asked[0].startswith("/absent::file:")


@pytest.mark.parametrize("path", ["/endless", "/huge"])
def test_an_answer_without_end_is_cut(server, path, monkeypatch):
    monkeypatch.setattr(training.data.fetching, "LARGEST", 5 << 20)
    found = fetch(server.url + path)
    assert isinstance(found, BadAudio) and found.detail == "more than 5,242,880 bytes"


@pytest.mark.parametrize("path", ["/drip", "/silent"])
def test_an_answer_that_drips_is_given_up(server, path, monkeypatch):
    monkeypatch.setattr(training.data.fetching, "LONGEST", 0.5)
    found = fetch(server.url + path)
    assert isinstance(found, BadAudio) and found.detail == "not all of it came within 0.5 s"
    readers = [thread for thread in threading.enumerate() if thread.name == "fetch"]
    server.over.set()
    for thread in readers:
        thread.join(10)
        assert not thread.is_alive(), "what is left behind ends with the answer"


@pytest.mark.parametrize("path", ["/absent.wav", "/loop", "/to-file"])
def test_hosts_that_do_not_have_it(server, path):
    found = fetch(server.url + path)
    assert isinstance(found, BadAudio) and found.reason == "missing" and found.detail
    assert len(server.asked) < 20


def test_failures_are_told_without_signatures_and_not_without_end(server, monkeypatch, caplog):
    monkeypatch.setattr(training.data.fetching, "_failures", itertools.count(1))
    with caplog.at_level(logging.INFO):
        found = [fetch(f"{server.url}/absent{number}.wav?signature=secret") for number in range(NAMED + 2)]
    assert all(error.detail and "secret" not in error.detail for error in found)
    told = [record.getMessage() for record in caplog.records if record.name == "training.data.fetching"]
    assert len(told) == NAMED and told[0].startswith(f"Could not fetch {server.url}/absent0.wav: ")
    assert not any("secret" in line for line in told)


def test_no_host_at_all():
    for url in ("http://127.0.0.1:9/a.wav", "http://", "https://[::1", "zip://a::http://127.0.0.1:9/a.zip"):
        start = time.monotonic()
        assert fetch(url).reason == "missing", url
        assert time.monotonic() - start < 60


def test_what_a_list_says_the_length_of_is_fetched_once(server, tmp_path):
    line = {"wav_path": f"{server.url}/clip.wav"}
    for times, durations in ((1, {"duration": 1.0}), (2, {})):  # without, also for its header
        server.asked.clear()
        (tmp_path / f"{times}.jsonl").write_text(json.dumps(line | durations))
        loader = build_loader(
            DataArguments(train_data=[str(tmp_path / f"{times}.jsonl")], num_workers=0), max_epochs=1
        )
        assert server.asked == []
        assert len(list(loader)) == 1 and server.asked == ["/clip.wav"] * times


def test_sources_name_what_could_not_be_fetched(server, tmp_path):
    lines = [f"{server.url}/clip.wav", f"{server.url}/absent.wav", "file:///dev/zero"]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps({"wav_path": line}) for line in lines))
    (batch,) = build_loader(DataArguments(train_data=[str(tmp_path / "list.jsonl")], num_workers=0), max_epochs=1)
    assert batch["lengths"].tolist() == [16000]
    assert sorted(batch["skipped"]) == [(line, "missing") for line in sorted(lines[1:])]
    for audio in (
        "file:///dev/zero",
        {"path": "file:///dev/zero", "bytes": None},
        {"path": "/dev/zero", "bytes": None},
    ):
        with pytest.raises(BadAudio, match="missing"):
            Source("rows", [], "audio").clip({"audio": audio}, 0).read()
