"""The page: its answers as HTML, what it is given, and what a Space needs."""

import base64
import io
import re
import runpy
import shutil
import socket
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from checkpoints import save
from huggingface_hub import RepoCard
from listening import Clip, Heard, Listener, Word, read_clip
from PIL import Image
from processes import run_python
from tones import speechlike, write_two_hours
from transformers import BertConfig
from unit_corpus import UnitCorpus

from sjepa_hf import SJepaForCTC, SJepaForPreTraining


pytest.importorskip("gradio", reason="the page needs gradio")

import app


BLANK = app.Picture(b"", 1.0, (0.0, 0.0, 1.0, 1.0))


def images(page: str) -> list[np.ndarray]:
    """The pictures of an answer, `(height, width, 3)` each."""
    found = re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB")) for image in found]


def text_of(page: str) -> str:
    return re.sub(r"<[^>]*>", " ", page)


def test_bad_files_get_a_notice(bad_files, pretrained):
    listener = Listener(pretrained[0])
    for path, sentence in bad_files.items():
        page = app.show_clip(listener, str(path))
        assert 'class="notice"' in page and not images(page)
        assert re.search(sentence, page) and re.search(sentence, app.show_pair(listener, str(path), str(path), 1))


def test_the_page_runs_from_what_a_space_is_given(space, tmp_path, clip_path):
    """From the files that README.md uploads, without the rest of the package."""
    root = space.parents[1]
    uploads = re.findall(r"^hf upload NAME/\S+ (\S+) (\S+) (.*)$", (space / "README.md").read_text(), re.MULTILINE)
    assert len(uploads) == 3
    for source, target, options in uploads:
        included = re.findall(r"--include (\S+)", options)
        for file in (root / source).rglob("*.*"):
            name = file.relative_to(root / source)
            if file.is_file() and (not included or name.as_posix() in included):
                (tmp_path / target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, tmp_path / target / name)
    code = f"""
import runpy, sys
sys.path.insert(0, {str(tmp_path)!r})
import listening, segments, training.data.waveforms
assert listening.read_clip({clip_path!r}).seconds == 1.5
assert training.data.waveforms.__file__ == {str(tmp_path / "training" / "data" / "waveforms.py")!r}
assert "training.data.clips" not in sys.modules
sys.argv = ["app.py", "--help"]
runpy.run_path("app.py", run_name="__main__")
"""
    assert "usage: app.py" in run_python(code, folder=tmp_path).output


def test_of_two_hours_the_first_minute_is_shown(tmp_path, pretrained):
    write_two_hours(tmp_path / "long.wav")
    page = app.show_clip(Listener(pretrained[0]), str(tmp_path / "long.wav"))
    assert "its first 60 s are shown" in text_of(page)
    picture = images(page)[0]
    assert picture.shape[1] > 5 * picture.shape[0]  # wide enough to see the sounds


def test_the_page_of_a_pretrained_checkpoint(pretrained, clip_path):
    page = app.show_clip(Listener(pretrained[0]), clip_path)
    pictures_of_page = images(page)
    assert len(pictures_of_page) == 2 and all(picture.std() > 20 for picture in pictures_of_page)
    assert "74 frames of 25 ms" in page and "of 10 clusters" in page and "bits" in page
    assert "notice" not in page and "transcript" not in page
    audio = re.search(r'src="data:audio/wav;base64,([^"]+)"', page)[1]
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(audio)))
    assert rate == 16000 and samples == pytest.approx(read_clip(clip_path).samples, abs=1e-4)


def test_the_page_of_a_fine_tuned_checkpoint_says_what_is_absent(fine_tuned, clip_path):
    page = app.show_clip(Listener(fine_tuned[0]), clip_path)
    assert "this checkpoint has no cluster head of pretraining" in page
    assert 'class="transcript"' in page and len(images(page)) == 2 and "clusters are" not in page


def test_a_second_checkpoint_adds_the_transcript(pretrained, fine_tuned, clip_path):
    alone = images(app.show_clip(Listener(pretrained[0]), clip_path))[0]
    listener = Listener(pretrained[0], asr=fine_tuned[0])
    listener.recogniser = lambda samples: [Word("<b>", 0.1, 0.2)]
    page = app.show_clip(listener, clip_path)
    assert '<p class="transcript">&lt;b&gt;</p>' in page and "<b>" not in page
    assert "of 10 clusters" in page and "notice" not in page
    assert images(page)[0].shape[0] > alone.shape[0]  # a row of words
    millions = sum(p.numel() for p in pretrained[1].sjepa.parameters()) / 1e6
    encoder = f"encoder of {millions:.1f}M parameters, 3 layers"
    words = f"transcripts by `{fine_tuned[0]}`"
    assert app.describe(listener) == f"`{pretrained[0]}` · {encoder} · 10 clusters · {words}"
    assert app.describe(Listener(fine_tuned[0])) == f"`{fine_tuned[0]}` · {encoder} · transcripts"


def test_what_is_seen_is_said():
    posteriors = np.array([[0.5, 0.5, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0.25] * 4, [0, 0, 1, 0]], np.float32)
    heard = Heard([np.zeros((5, 3))] * 3, posteriors, posteriors.argmax(1), None)
    frames, clusters, entropy, ranks = app.facts(Clip(np.zeros(8000), 0.5), heard, [2.0, 9.0, 4.0])
    assert frames.startswith("5 frames of 25 ms")
    assert clusters.startswith("2 of 4 clusters") and "changes 2 times a second" in clusters
    assert entropy.startswith("Mean entropy 0.60 bits: as undecided as between 1.5 equal") and "In 60% of" in entropy
    assert ranks == "Most directions are in use in layer 1 (9), in the top layer 4."
    assert "at the input of the Transformer (9)" in app.facts(Clip(np.zeros(8000), 0.5), heard, [9.0, 2.0])[-1]


def test_two_clips(pretrained, clip_path, tmp_path):
    listener = Listener(pretrained[0])
    soundfile.write(tmp_path / "other.wav", speechlike(0.7), 16000)
    pages = [app.show_pair(listener, clip_path, str(tmp_path / "other.wav"), layer) for layer in (0, 3)]
    assert all(page.count("<audio") == 2 and len(images(page)) == 1 for page in pages)
    assert not np.array_equal(images(pages[0])[0], images(pages[1])[0])
    assert re.findall(r'data-axis="(.)" data-seconds="([\d.]+)"', pages[0]) == [("y", "1.5"), ("x", "0.7")]
    assert 'class="hint"' in app.show_pair(listener, clip_path, None, 1)
    assert "Clip B: This file is not there" in app.show_pair(listener, clip_path, str(tmp_path / "gone.wav"), 1)


def test_each_clip_has_its_name_and_its_axis_of_the_matrix(pretrained, clip_path, tmp_path, monkeypatch):
    listener, drawn = Listener(pretrained[0]), []
    monkeypatch.setattr(app, "draw_similarity", lambda *told: drawn.append(told) or BLANK)
    soundfile.write(tmp_path / "other.wav", speechlike(0.7), 16000)
    page = app.show_pair(listener, clip_path, str(tmp_path / "other.wav"), 3)
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["A: clip.wav", "B: other.wav"]
    ((first, second, matrix, layer),) = drawn
    assert (first.seconds, second.seconds, layer) == (1.5, 0.7, 3) and matrix.shape == (74, 34)


def test_a_rank_can_be_as_high_as_one_less_than_the_frames(pretrained, tmp_path, monkeypatch):
    """Of the few that are centred, or as the dimensions."""
    listener, told = Listener(pretrained[0]), []
    monkeypatch.setattr(app, "draw_ranks", lambda ranks, most: told.append(most) or BLANK)
    monkeypatch.setattr(app, "draw_clip", lambda *_: BLANK)
    for seconds in (0.5, 1.5):
        soundfile.write(tmp_path / "clip.wav", speechlike(seconds), 16000)
        app.show_clip(listener, str(tmp_path / "clip.wav"))
    assert told == [23, 48]


def test_the_page_lets_choose_among_all_layers_and_begins_with_the_middle_one(pretrained):
    parts = [part["props"] for part in app.build(Listener(pretrained[0])).config["components"]]
    (layer,) = [part for part in parts if part.get("elem_id") == "layer"]
    assert [value for _, value in layer["choices"]] == [0, 1, 2, 3] and layer["value"] == 1


def test_the_page_is_served_as_the_command_says(pretrained, tmp_path, monkeypatch):
    served, built = [], []
    page = SimpleNamespace(launch=lambda **told: served.append(told))
    monkeypatch.setattr(app, "build", lambda *told: built.append(told) or page)
    monkeypatch.setattr(app, "check_address", lambda host, port: built.append((host, port)))
    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    soundfile.write(tmp_path / "mine.wav", speechlike(0.5), 16000)
    for options in ([], ["--port", "65535", "--host", "0.0.0.0", "--share"]):
        app.main(["--checkpoint", pretrained[0], "--examples", str(tmp_path), *options])
    names = ("server_name", "server_port", "share", "max_file_size")
    assert [tuple(told[name] for name in names) for told in served] == [
        (None, None, False, "2gb"),
        ("0.0.0.0", 65535, True, "2gb"),
    ]
    (_, examples, corpus), address, _ = built
    assert [path.name for path in examples] == ["mine.wav"] and corpus is None and address == ("0.0.0.0", 65535)


def buttons(page: str, kind: str) -> list[dict[str, str]]:
    """What the buttons of a class say of themselves."""
    return [
        dict(re.findall(r'data-(\w+)="([^"]*)"', found)) for found in re.findall(f'<button class="{kind}"[^>]*>', page)
    ]


def sound(page: str) -> np.ndarray:
    """The samples of the first sound of an answer."""
    return soundfile.read(io.BytesIO(base64.b64decode(re.search(r'src="data:audio/wav;base64,([^"]+)"', page)[1])))[0]


def test_a_click_on_a_unit_plays_its_other_segments_of_the_clip(pretrained, clip_path):
    listener = Listener(pretrained[0])
    runs = listener.hear(read_clip(clip_path).samples).runs
    page = app.show_clip(listener, clip_path)
    found = buttons(page, "unit")
    assert [int(button["unit"]) for button in found] == [run.unit for run in runs] and len(found) > 10
    assert f"unit {runs[1].unit}: {runs[1].start:.2f} to {runs[1].start + runs[1].duration:.2f} s" in page
    picture = app.draw_clip(read_clip(clip_path), listener.hear(read_clip(clip_path).samples), listener.cluster_places)
    strip = re.search(r'class="units" style="left: (.*?)%; width: (.*?)%; top: (.*?)%; height: (.*?)%"', page).groups()
    wanted = [picture.box[0], picture.box[2], *picture.units]
    assert np.array(strip, float) == pytest.approx(100 * np.array(wanted), abs=1e-3)
    places = re.findall(r'style="left: ([\d.]+)%; width: ([\d.]+)%"></button>', page)
    wanted = [(100 * run.start / 1.5, 100 * run.duration / 1.5) for run in runs]
    assert np.array(places, float) == pytest.approx(np.array(wanted), abs=1e-3)
    common = max(runs, key=lambda run: sum(other.unit == run.unit for other in runs))
    others = [run for run in runs if run.unit == common.unit and run != common]
    answer = app.show_unit(listener, None, clip_path, common.unit, common.start)
    listed = buttons(answer, "segment")
    assert len(listed) == min(len(others), 8) > 1 and f"{len(others) + 1} segments in this clip" in answer
    assert "autoplay" in answer and "clip.wav, " in answer
    longest = sorted(sorted(others, key=lambda run: -run.duration)[:8], key=lambda run: run.start)
    assert re.findall(r"clip.wav, ([\d.]+) to", answer) == [f"{run.start:.2f}" for run in longest]
    starts = [float(button["start"]) for button in listed]
    assert starts[0] == 0 and starts == sorted(starts)
    last = listed[-1]
    assert len(sound(answer)) / 16000 == pytest.approx(float(last["start"]) + float(last["seconds"]) + 0.25, abs=1e-3)
    assert "stands nowhere else here" in app.show_unit(listener, None, clip_path, 99, 0.0)


def test_a_click_on_a_unit_plays_segments_of_a_corpus(pretrained, clip_path, unit_folder, monkeypatch):
    corpus = UnitCorpus(str(unit_folder.parent / "units"))
    listener = Listener(pretrained[0], like=corpus.settings)
    unit = max(range(10), key=lambda unit: corpus.count(unit)[1])
    answer = app.show_unit(listener, corpus, clip_path, unit, 0.0)
    runs, clips = corpus.count(unit)
    assert f"{runs} segments in {clips} of the 4 clips of " in answer and len(buttons(answer, "segment")) == clips > 1
    assert np.abs(sound(answer)).max() > 0.05
    monkeypatch.setattr(corpus, "segments", lambda unit: [])
    assert "their audio is gone" in app.show_unit(listener, corpus, clip_path, unit, 0.0)
    monkeypatch.setattr(corpus, "count", lambda unit: (0, 0))
    assert f"Unit {unit} stands nowhere else here" in app.show_unit(listener, corpus, clip_path, unit, 0.0)


def test_units_of_other_checkpoints_are_refused(pretrained, fine_tuned, unit_folder, tmp_path, make_config):
    folder = str(unit_folder.parent / "units")
    other = save(SJepaForPreTraining(make_config("log_mel")), tmp_path / "other")
    for checkpoint in (other, fine_tuned[0]):
        with pytest.raises(SystemExit, match=f"error: `units` are of {pretrained[0]} as it was, not of {checkpoint}"):
            app.main(["--checkpoint", checkpoint, "--units", folder])
    with pytest.raises(SystemExit, match="error: `units` .* holds no corpus of units"):
        app.main(["--checkpoint", pretrained[0], "--units", str(tmp_path)])


def test_file_names_are_text(pretrained, tmp_path):
    path = tmp_path / "<img onerror=alert(1)>.wav"
    soundfile.write(path, speechlike(0.3), 16000)
    assert "<img onerror" not in app.show_clip(Listener(pretrained[0]), str(path))


def test_a_wider_picture_shows_the_same_time_in_more_detail(pretrained, clip_path):
    listener = Listener(pretrained[0])
    whole, wide = (images(app.show_clip(listener, clip_path, zoom)) for zoom in (1, 4))
    assert wide[0].shape[1] == pytest.approx(4 * whole[0].shape[1], rel=0.01)
    assert wide[0].shape[0] == pytest.approx(whole[0].shape[0], abs=2) and wide[1].shape == whole[1].shape


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--port", "70000"], "`port` must lie between 1 and 65535, got 70000"),
        (["--port", "-1"], "`port` must lie between 1 and 65535, got -1"),
        (["--host", "203.0.113.1"], "The page cannot be served at 203.0.113.1, port any: "),
        (["--host", "x" * 70], "The page cannot be served at x+, port any: "),
        (["--port", "TAKEN"], "The page cannot be served at 127.0.0.1, port .*: Address already in use"),
    ],
)
def test_addresses_that_cannot_be_served_at(options, sentence, monkeypatch):
    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = [str(taken.getsockname()[1]) if option == "TAKEN" else option for option in options]
        with pytest.raises(SystemExit, match=f"error: {sentence}"):
            app.main(["--checkpoint", "unread", *options])


def test_the_highest_port_there_is_can_be_served_at(monkeypatch):
    opened = []
    monkeypatch.setattr("socket.create_server", lambda address, **_: opened.append(address) or io.BytesIO())
    app.check_address("127.0.0.1", 65535)
    assert opened == [("127.0.0.1", 65535)]


def test_checkpoints_that_cannot_be_shown(pretrained, tmp_path, make_config, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    BertConfig().save_pretrained(tmp_path / "bert")
    mute = save(SJepaForCTC(make_config("log_mel")), tmp_path / "mute")
    for arguments, sentence in (
        (["--checkpoint", str(tmp_path / "nowhere")], "error: .*nowhere cannot be opened: there is no such dir"),
        (["--checkpoint", "name/nowhere"], r"error: name/nowhere cannot be opened"),
        (["--checkpoint", str(tmp_path / "bert")], "bert is of type bert, not an S-JEPA checkpoint"),
        (["--checkpoint", mute], "mute has no tokenizer that opens, .*: give the result"),
        (["--checkpoint", pretrained[0], "--asr", pretrained[0]], "has no CTC head, which transcripts need"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            app.main(arguments)


def test_a_package_that_is_missing_comes_with_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match=r'error: .*gradio.*: in the clone, `pip install --editable "\.\[page\]"`'):
        runpy.run_path(app.__file__)


def test_the_space_is_in_the_hubs_form(space):
    card = RepoCard.load(space / "README.md")
    assert card.data.sdk == "gradio" and (space / card.data.app_file).is_file() and card.data.license == "apache-2.0"
    assert len(card.data.short_description) <= 60
    required = set(re.findall(r"^(\w+)", (space / "requirements.txt").read_text(), re.MULTILINE))
    code = "".join(path.read_text() for path in space.glob("*.py") if path.name != "unit_corpus.py")  # with --units
    imported = set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)) - set(sys.stdlib_module_names)
    assert imported - {"sjepa_hf", "training", "listening", "pictures", "segments", "example_clips"} <= required
    package = "".join(path.read_text() for path in (space.parents[1] / "sjepa_hf").glob("modeling*.py"))
    imported = set(re.findall(r"^from (\w+)", package, re.MULTILINE)) - set(sys.stdlib_module_names)
    assert "torch" in required and imported <= required


def test_real_speech(speech, pretrained):
    page = app.show_clip(Listener(pretrained[0]), str(speech / "ljspeech_phones" / "LJ001-0002.opus"))
    assert "94 frames" in page and "LJ001-0002.opus" in page and len(images(page)) == 2
