"""Tar archives: whatever is wrong with one, the rest is read, and what is lost is named and counted."""

import gzip
import io
import struct
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

import training.data.archives
import training.data.order
from training.data.archives import TarArchives
from training.data.arguments import DataArguments
from training.data.bad_audio import BadAudioError, BadAudioMonitor
from training.data.batches import BatchStream
from training.data.clips import Clip
from training.data.manifest import MissingColumn
from training.data.order import ClipStream
from training.data.sources import open_source
from training.data.waveforms import BadAudio


def sound(number: int, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(number).uniform(-0.5, 0.5, 2000)
    soundfile.write(file, noise, 16000, format=kind)
    return file.getvalue()


def write(path: Path, members: dict[str, bytes], mode: str = "w", **options) -> Path:
    with tarfile.open(path, mode, **options) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def clips(*paths: Path, wanted: str | None = None) -> list[Clip]:
    archives = TarArchives(list(map(str, paths)), wanted)
    return [clip for shard in range(archives.num_shards) for clip in archives.clips(shard)]


def good(found: list[Clip]) -> list[str]:
    names = []
    for clip in found:
        try:
            clip.read()
        except BadAudio:
            continue
        names.append(clip.name.rpartition(".tar/")[2])
    return names


def bad(found: list[Clip]) -> Counter:
    reasons = Counter()
    for clip in found:
        try:
            clip.read()
        except BadAudio as error:
            reasons[clip.name, error.reason] += 1
    return reasons


@pytest.fixture
def ten(tmp_path):
    return write(tmp_path / "ten.tar", {f"{n}.wav": sound(n) for n in range(10)})


NAMES = [f"{n}.wav" for n in range(10)]


def test_members_in_their_order(ten):
    found = clips(ten)
    assert good(found) == NAMES and found[3].audio == sound(3)
    assert found[3].name == f"{ten}/3.wav"


@pytest.mark.parametrize("options", [{"format": tarfile.PAX_FORMAT}, {"format": tarfile.GNU_FORMAT}])
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_long_names_and_compression(tmp_path, mode, options):
    name = "é" * 90 + "/" + "x" * 150 + "/clip.flac"
    found = clips(
        write(tmp_path / "a.tar", {name: sound(1, "FLAC"), "b.txt": b"B", "c.wav": sound(2)}, mode, **options)
    )
    assert good(found) == [name, "c.wav"]


def test_what_is_no_clip_is_passed_over_and_what_should_be_one_is_named(tmp_path):
    with tarfile.open(tmp_path / "odd.tar", "w") as archive:
        for name, content in {
            "a/1.wav": sound(1),
            "a/1.txt": b"ONE",
            "a/1.json": b"{",
            "a/._1.wav": b"of a Mac",
            "nothing": b"x",
            ".wav": b"",
            "/absolute/2.WAV": sound(2),
            "../../3.wav": sound(3),
            "empty.wav": b"",
            "text.wav": b"not sound" * 99,
            "a/1.npy": b"\x93NUMPY",
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for kind, name in (
            (tarfile.SYMTYPE, "link.wav"),
            (tarfile.LNKTYPE, "hard.wav"),
            (tarfile.DIRTYPE, "folder.wav"),
            (tarfile.FIFOTYPE, "pipe.wav"),
            (tarfile.CHRTYPE, "device.wav"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        member = tarfile.TarInfo("last.wav")
        member.size = len(sound(4))
        archive.addfile(member, io.BytesIO(sound(4)))
    found = clips(tmp_path / "odd.tar")
    assert good(found) == ["a/1.wav", "/absolute/2.WAV", "../../3.wav", "last.wav"]
    names = {name.rpartition(".tar/")[2]: reason for name, reason in bad(found)}
    assert names == {"empty.wav": "empty", "text.wav": "corrupt", "link.wav": "missing", "hard.wav": "missing"}


def test_names_are_told_in_characters_that_any_terminal_takes(tmp_path):
    (tmp_path / "caf\udce9").mkdir()
    path = write(tmp_path / "caf\udce9" / "a.tar", {"line\nbreak.wav": sound(1), "b.wav": sound(2)})
    path.write_bytes(path.read_bytes()[:6000])
    names = [clip.name for clip in clips(path)]
    assert names[0] == f"{tmp_path}/caf\\udce9/a.tar/line\\nbreak.wav" and "caf\\udce9/a.tar: the rest" in names[1]


def test_a_name_twice_is_two_clips(tmp_path):
    with tarfile.open(tmp_path / "twice.tar", "w") as archive:
        for number in (1, 2):
            member = tarfile.TarInfo("a.wav")
            member.size = len(sound(number))
            archive.addfile(member, io.BytesIO(sound(number)))
    assert [clip.audio for clip in clips(tmp_path / "twice.tar")] == [sound(1), sound(2)]


def test_several_audio_files_of_a_sample_have_to_be_told_apart(tmp_path):
    write(tmp_path / "a.tar", {"1.near.wav": sound(1), "1.far.wav": sound(2), "2.near.wav": sound(3)})
    with pytest.raises(ValueError, match=r"several audio files \(far.wav, near.wav\): name one with audio_column"):
        open_source(f"{tmp_path}/a.tar", streaming=True)
    assert good(clips(tmp_path / "a.tar", wanted="near.wav")) == ["1.near.wav", "2.near.wav"]
    with pytest.raises(ValueError, match=r"a.tar': the tar archives hold no 'mid.wav' \(audio_column\); there is far"):
        open_source(f"{tmp_path}/a.tar", streaming=True, audio_column="mid.wav")


@pytest.mark.parametrize("content", [b"", bytes(512), bytes(20000), b"no archive " * 1000])
def test_an_archive_without_anything_does_not_end_the_run(tmp_path, ten, content):
    (tmp_path / "bad.tar").write_bytes(content)
    source = open_source(f"{tmp_path}/*.tar", streaming=True)
    found = [clip for shard in range(2) for clip in source.dataset.clips(shard)]
    assert good(found) == NAMES
    lost = bad(found)
    if content.strip(b"\0"):
        assert 9 <= sum(lost.values()) <= 11 and {reason for _, reason in lost} == {"corrupt"}
    (tmp_path / "ten.tar").unlink()
    with pytest.raises(ValueError, match=r"the tar archives hold no audio; there is nothing that can be read"):
        open_source(f"{tmp_path}/*.tar", streaming=True)


@pytest.mark.parametrize("compression", ["", ":gz", ":xz"])
@pytest.mark.parametrize("share", [0.25, 0.6, 0.9])
def test_of_an_archive_that_was_cut_off_the_rest_counts_as_lost(tmp_path, share, compression):
    members = {f"{n}.wav": sound(n) for n in range(40)}
    for name in "abc":
        write(tmp_path / f"{name}.tar", members, f"w{compression}")
    torn = tmp_path / "b.tar"
    torn.write_bytes(torn.read_bytes()[: round(share * torn.stat().st_size)])
    archives = TarArchives(sorted(map(str, tmp_path.glob("*.tar"))))
    found = list(archives.clips(1))
    here, ((name, reason), lost) = len(good(found)), *bad(found).items()
    assert here == pytest.approx(40 * share, abs=7 if compression else 2)
    assert here + lost == pytest.approx(40, abs=6 if compression else 2)
    assert reason == "corrupt" and name.startswith(f"{torn}: the rest after ")
    assert compression or "cut off" in name
    assert [clip.name for clip in found] == [clip.name for clip in archives.clips(1)]


def test_zeros_in_the_place_of_what_never_came_are_counted(tmp_path, ten, monkeypatch):
    whole = ten.read_bytes()
    (tmp_path / "half.tar").write_bytes(whole[: len(whole) // 2 // 512 * 512] + bytes(len(whole) // 2))
    assert bad(clips(ten, tmp_path / "half.tar")).total() <= 1, "an archive may end with some"
    monkeypatch.setattr(training.data.archives, "LONGEST_END", 10_240)
    found = clips(ten, tmp_path / "half.tar")
    assert good(found)[:10] == NAMES and len(found) == pytest.approx(20, abs=1)
    assert any("nothing but zeros" in name for name, _ in bad(found))


@pytest.mark.parametrize("place", [0, 3, 9])
def test_after_a_broken_header_reading_goes_on(tmp_path, ten, place):
    content = bytearray(ten.read_bytes())
    start = content.index(f"{place}.wav".encode() + b"\0")
    content[start + 130] ^= 4
    ten.write_bytes(content)
    found = clips(ten)
    assert good(found) == NAMES[:place] + NAMES[place + 1 :]
    (((name, reason), count),) = bad(found).items()
    assert "bytes" in name and reason == "corrupt" and count <= 2


def test_archives_put_together_and_without_an_end(tmp_path, ten):
    whole = ten.read_bytes()
    ten.write_bytes(whole + whole)
    assert good(clips(ten)) == 2 * NAMES
    ten.write_bytes(whole[: whole.rindex(sound(9)) + 4096])
    found = clips(ten)
    assert good(found) == NAMES and sum(bad(found).values()) == 1


def header(size: bytes, kind: bytes = b"0", name: bytes = b"big.wav") -> bytes:
    block = bytearray(512)
    block[: len(name)], block[124:136], block[156:157] = name, size.ljust(12, b"\0"), kind
    block[257:265] = b"ustar\00000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "first",
    [
        pytest.param(header(b"77777777777"), id="8 GiB"),
        pytest.param(header(b"\x80" + struct.pack(">Q", 1 << 62).rjust(11, b"\0")), id="4 EiB"),
        pytest.param(header(b"77777777777", b"x"), id="attributes of 8 GiB"),
        pytest.param(header(b"77777777777", b"L"), id="name of 8 GiB"),
        pytest.param(b"".join(header(b"1000", b"x") + bytes(512) for _ in range(3000)), id="3,000 times attributes"),
        pytest.param(header(b"1000", b"x") + b"22 GNU.sparse.major=1\n15 size=9999999".ljust(512, b"\0"), id="holes"),
        pytest.param(header(b"1000", b"S"), id="old holes"),
        pytest.param(header(b"-1000"), id="negative"),
        pytest.param(header(b"11003", b"x") + b"4611 size=".ljust(4610, b"9").ljust(5120, b"\n"), id="4,600 digits"),
    ],
)
def test_sizes_that_lie_take_no_memory_and_do_not_hang(tmp_path, first, compressed):
    whole = write(tmp_path / "good.tar", {f"{n}.wav": sound(n) for n in range(10)}).read_bytes()
    path = tmp_path / "lie.tar"
    path.write_bytes(gzip.compress(first + whole) if compressed else first + whole)
    archives = TarArchives([str(tmp_path / "good.tar"), str(path)])
    found = list(archives.clips(1))
    assert set(good(found)) <= set(NAMES)
    rest = len(first + whole) / (len(whole) / len(NAMES))  # in clips
    assert 10 <= len(found) <= rest + 10, "what is not read is counted"


def test_members_beyond_the_limit_are_bad_and_the_next_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(training.data.archives, "LARGEST", 10_000)
    path = write(
        tmp_path / "a.tar", {"1.wav": sound(1), "2.wav": bytes(20_000), "3.wav": sound(3), "n.bin": bytes(30_000)}
    )
    found = clips(path)
    assert good(found) == ["1.wav", "3.wav"]
    assert [reason for _, reason in bad(found)] == ["too_long"]


ARGS = DataArguments(["noise"], batch_seconds=2.0, bucket_buffer_size=20, max_seconds=1.0, min_seconds=0.1)


@pytest.mark.parametrize("num_readers", [1, 3])
def test_a_run_stops_when_torn_archives_lose_too_much(tmp_path, num_readers):
    for name in "abcd":
        write(tmp_path / f"{name}.tar", {f"{name}{n}.wav": sound(n) for n in range(40)})
    for name in "bc":
        torn = tmp_path / f"{name}.tar"
        torn.write_bytes(torn.read_bytes()[:30_000])
    corpus = ClipStream([open_source(f"{tmp_path}/*.tar", streaming=True)], None, 0, 10)
    monitor, seen = BadAudioMonitor(max_bad_fraction=0.05), 0
    for process_index in range(num_readers):
        for batch in BatchStream(
            corpus, ARGS, process_index=process_index, num_processes=num_readers, max_epochs=1, seed=0
        ):
            monitor.update(len(batch["lengths"]), batch["skipped"])
            seen += len(batch["lengths"])
    assert seen == 2 * 40 + 2 * 6
    assert monitor.skipped == pytest.approx(2 * 34, abs=6 if num_readers == 1 else 30)  # some after the last batch
    with pytest.raises(BadAudioError, match="corrupt.*max_bad_fraction"):
        monitor.check()


def labelled(path: Path, *labels: str) -> list[tuple[str, dict]]:
    archives = TarArchives([str(path)], labels=labels)
    return [(clip.name.rpartition("/")[2], found) for clip, found in archives.samples(0)]


def test_labels_are_read_from_beside_the_clip(tmp_path):
    """Before or after it, from JSON or as a text; a sample without them has none."""
    path = write(
        tmp_path / "a.tar",
        {
            "in/0.wav": sound(0),
            "in/0.json": b'{"speaker": 7, "more": 1.5}',
            "in/0.txt": "voilà".encode(),
            "in/1.json": b'{"speaker": "ada"}',
            "in/1.wav": sound(1),
            "in/2.wav": sound(2),
            "other/2.json": b'{"speaker": "not of in/2"}',
            "in/3.json": b'{"speaker": null}',
            "in/3.txt": b"three",
            "in/3.wav": sound(3),
        },
    )
    assert labelled(path, "speaker", "txt") == [
        ("0.wav", {"speaker": "7", "txt": "voilà"}),
        ("1.wav", {"speaker": "ada", "txt": None}),
        ("2.wav", {"speaker": None, "txt": None}),
        ("3.wav", {"speaker": None, "txt": "three"}),
    ]
    with pytest.raises(MissingColumn, match="no column 'speakers'; it has .*speaker"):
        open_source(str(path), streaming=True, labels=["speakers"])
    with pytest.raises(ValueError, match="training.pack"):
        open_source(str(path), labels=["speaker"])


def test_archives_without_labels_are_refused_by_their_first_samples(tmp_path, monkeypatch):
    archives = training.data.archives
    monkeypatch.setattr(archives, "LOOKED_AT", 3)
    bare = {f"{i}.wav": sound(1) for i in range(3)}
    paths = [str(write(tmp_path / f"{name}.tar", bare)) for name in "ab"]
    monkeypatch.setattr(TarArchives, "_look", lambda self: 1.0)
    opened, walk = [], archives._walk
    monkeypatch.setattr(archives, "_walk", lambda raw, wanted: opened.append(raw.name) or walk(raw, wanted))
    with pytest.raises(MissingColumn, match="no column 'speaker'; it has none"):
        TarArchives(paths, labels=["speaker"])
    assert opened == paths[:1]


def test_a_clip_whose_labels_cannot_be_read_is_bad_and_the_next_are_read(tmp_path):
    path = tmp_path / "a.tar"
    samples = {"0": b'{"speaker": "ada"}', "1": b'{"speaker": ', "2": b'{"speaker": 1.5}', "3": b'{"speaker": "bob"}'}
    write(path, {f"{n}.{kind}": c for n, text in samples.items() for kind, c in (("wav", sound(1)), ("json", text))})
    found = list(TarArchives([str(path)], labels=["speaker"]).samples(0))
    assert [labels["speaker"] for _, labels in found] == ["ada", None, None, "bob"]
    reasons = [clip.audio.reason for clip, _ in found if isinstance(clip.audio, BadAudio)]
    assert reasons == ["bad_line", "bad_line"]
    torn = bytearray(path.read_bytes())
    place = torn.index(b"3.wav")
    torn[place : place + 512] = bytes(range(256)) * 2  # the header of the last clip
    path.write_bytes(torn)
    assert [name for name, _ in labelled(path, "speaker")[:3]] == ["0.wav", "1.wav", "2.wav"]


def write_members(path: Path, *members: tuple[str, bytes]) -> Path:
    """As `write`, but a name may come again."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ("0.wav 0.txt 1.txt 2.wav 2.txt 1.wav", "sample 1 do"),
        ("0.wav 0.txt 1.wav 2.wav 2.txt 1.txt", "sample 1 do"),
        ("0.wav 0.txt in/1.wav 1.txt in/1.txt", "sample in/1 do"),
        ("0.wav 0.txt 1.wav 1.wav 1.txt 1.txt", "sample 1 do"),
        ("0.wav 0.txt 0.txt", "sample 0 do"),
    ],
)
def test_labels_that_stand_apart_from_their_clip_are_refused(tmp_path, order, said):
    path = write_members(
        tmp_path / "a.tar", *((name, sound(1) if name.endswith("wav") else b"text") for name in order.split())
    )
    source = open_source(str(path), streaming=True, labels=["txt"])
    with pytest.raises(ValueError, match=rf"a.tar: the files of the {said} not stand in a row.*tar --sort=name"):
        list(source.samples())
    assert len(clips(path)) == order.count("wav"), "without labels it is read"


@pytest.mark.parametrize(("looked_at", "said"), [(3, "has no column 'txt'; it has none"), (9, "0 do not stand")])
def test_where_no_label_stands_beside_a_clip_the_way_out_is_told(tmp_path, monkeypatch, looked_at, said):
    monkeypatch.setattr(training.data.archives, "LOOKED_AT", looked_at)
    members = {f"{n}.wav": sound(n) for n in range(5)} | {f"{n}.txt": b"text" for n in range(5)}
    write(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match=rf"a.tar.*{said}.*`tar --sort=name`"):
        open_source(f"{tmp_path}/a.tar", streaming=True, labels=["txt"])


def test_samples_of_one_name_keep_their_labels(tmp_path):
    texts = [f'{{"text": "{n}"}}'.encode() for n in range(3)]
    members = [(f"utt.{kind}", text if kind == "json" else sound(1)) for text in texts for kind in ("wav", "json")]
    path = write_members(tmp_path / "a.tar", *members)
    assert [found["text"] for _, found in labelled(path, "text")] == ["0", "1", "2"]


def test_samples_and_texts_of_one_name_may_stand_far_apart_where_they_are_whole(tmp_path):
    """As where archives that count from 0 were put together."""
    members = [("0.wav", sound(1)), ("0.txt", b"a"), ("README.txt", b"of all"), ("1.wav", sound(2)), ("1.txt", b"b")]
    members += [("0.lab", b"of another kind"), ("1.lab", b"of another kind")]
    path = write_members(tmp_path / "a.tar", *members, *members)
    assert [found["txt"] for _, found in labelled(path, "txt")] == ["a", "b", "a", "b"]


def test_texts_of_no_clip_and_hidden_files_stand_in_nobodys_way(tmp_path):
    path = write_members(
        tmp_path / "a.tar",
        ("README.txt", b"of all"),
        ("info.json", b"[1, 2]"),
        *(
            (f"{hidden}0.{kind}", sound(1) if kind == "wav" else b"0")
            for kind in ("wav", "txt")
            for hidden in ("._", "")
        ),
        ("1.wav", sound(1)),
        ("1.npy", b"x"),
    )
    assert labelled(path, "txt") == [("0.wav", {"txt": "0"}), ("1.wav", {"txt": None})]


def test_what_damage_tears_apart_does_not_end_the_reading(tmp_path):
    kinds = {"wav": sound(1), "npy": b"x", "txt": b"text"}
    path = write(tmp_path / "a.tar", {f"{n}.{kind}": kinds[kind] for n in range(3) for kind in kinds})
    content = bytearray(path.read_bytes())
    content[content.index(b"1.npy") + 130] ^= 4
    path.write_bytes(content)
    names = [(name.partition(":")[0], found["txt"]) for name, found in labelled(path, "txt")]
    assert names == [("0.wav", "text"), ("1.wav", None), ("a.tar", None), ("2.wav", "text")]


def test_large_clips_are_not_held_by_the_thousand(tmp_path, monkeypatch):
    paths = [write(tmp_path / f"{k}.tar", {f"{k}-{n}.wav": sound(n) for n in range(30)}) for k in range(2)]

    def order(limit: int) -> tuple[list[str], int]:
        monkeypatch.setattr(training.data.order, "LARGEST_BUFFER", limit)
        corpus, most, names = ClipStream([open_source(f"{tmp_path}/*.tar", streaming=True)], None, 0, 50), 0, []
        at = training.data.order.Position()
        while (section := corpus.section(at, 0, 1, 40))[0]:
            most = max(most, sum(len(clip.audio) for _, clip in section[0]))
            names += [clip.name for _, clip in section[0]]
            resumed = ClipStream(corpus.sources, None, 0, 50).section(at, 0, 1, 40)
            assert [clip.name for _, clip in resumed[0]] == [clip.name for _, clip in section[0]]
            at = training.data.order.Position(0, at.section + 1, 0, section[1])
        return names, most

    free, limited = order(1 << 31), order(20_000)
    assert sorted(free[0]) == sorted(limited[0]) and len(free[0]) == 60 and paths
    assert limited[1] <= 20_000 + 4044 < free[1]
