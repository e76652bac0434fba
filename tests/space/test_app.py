"""What stands behind the page: reading a clip, what the checkpoint hears in it, and the answers as HTML."""

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import RepoCard
from PIL import Image
from safetensors.torch import load_file, save_file
from tones import speechlike, write_two_hours
from transformers import BertConfig, Wav2Vec2Processor

from sjepa_hf import SJepaForCTC, SJepaForPreTraining
from sjepa_hf.measures import effective_rank
from sjepa_hf.saving import feature_extractor
from training.finetuning.beam_search import greedy_decode
from training.finetuning.text import build_tokenizer


pytest.importorskip("gradio", reason="the page needs gradio")
sys.path.insert(0, str(Path(__file__).parents[2] / "model_cards" / "space"))

import app
import listening
import pictures
from example_clips import find_examples
from listening import Clip, Listener, read_clip


SPACE = Path(app.__file__).parent


@pytest.fixture
def pretrained(make_config, tmp_path):
    model = SJepaForPreTraining(make_config("log_mel")).eval()
    with torch.no_grad():
        model.cluster_head.output.weight *= 3000  # predictions that differ between frames
    model.save_pretrained(tmp_path / "pretrained")
    feature_extractor().save_pretrained(tmp_path / "pretrained")
    return str(tmp_path / "pretrained"), model


@pytest.fixture
def fine_tuned(make_config, tmp_path):
    tokenizer = build_tokenizer(["ABCDEFGH"])
    model = SJepaForCTC(make_config("log_mel", vocab_size=len(tokenizer))).eval()
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.randn_like(model.lm_head.weight))  # labels that differ between frames
    model.save_pretrained(tmp_path / "asr")
    Wav2Vec2Processor(feature_extractor(), tokenizer).save_pretrained(tmp_path / "asr")
    return str(tmp_path / "asr"), model


@pytest.fixture
def clip_path(tmp_path) -> str:
    soundfile.write(tmp_path / "clip.wav", speechlike(1.5), 16000)
    return str(tmp_path / "clip.wav")


def images(page: str) -> list[np.ndarray]:
    """The pictures of an answer, `(height, width, 3)` each."""
    found = re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB")) for image in found]


def text_of(page: str) -> str:
    return re.sub(r"<[^>]*>", " ", page)


@pytest.mark.parametrize(
    ("rate", "channels", "name"),
    [(8000, 1, "a.wav"), (44100, 2, "a.flac"), (48000, 6, "a.wav"), (11025, 1, "a.mp3"), (22051, 2, "a.ogg")],
)
def test_any_rate_and_channel_count(rate, channels, name, tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    soundfile.write(tmp_path / name, np.repeat(tone[:, None], channels, axis=1), rate)
    clip = read_clip(str(tmp_path / name))
    assert clip.samples.dtype == np.float32 and clip.seconds == pytest.approx(1, abs=0.12) and not clip.is_cut
    spectrum = np.abs(np.fft.rfft(clip.samples * np.hanning(len(clip.samples))))
    assert spectrum.argmax() / clip.seconds == pytest.approx(440, abs=2)
    assert np.abs(clip.samples[4000:8000]).max() == pytest.approx(0.5, abs=0.05)


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that cannot be shown, and the sentence that each gets."""
    tone = speechlike(1.0)
    broken = tone.copy()
    broken[500] = np.nan
    (folder / "notes.txt").write_text("This is no sound.\n" * 100)
    (folder / "renamed.wav").write_text("This is no sound.\n" * 100)
    (folder / "headerless.raw").write_bytes(b"\0" * 4000)
    (folder / "empty.wav").touch()
    for name, samples in (("header.wav", tone[:0]), ("short.wav", tone[:500]), ("silent.wav", 0 * tone)):
        soundfile.write(folder / name, samples, 16000)
    soundfile.write(folder / "nan.wav", broken, 16000, subtype="FLOAT")
    soundfile.write(folder / "slow.wav", tone, 90)
    sentences = {
        "notes.txt": "cannot be read as audio",
        "renamed.wav": "cannot be read as audio",
        "headerless.raw": "cannot be read as audio",
        "empty.wav": "This file is empty",
        "header.wav": "holds no sound",
        "short.wav": "lasts 0.031 s; at least 0.1 s",
        "silent.wav": "This clip is silent",
        "nan.wav": r"not numbers \(NaN or infinity\)",
        "slow.wav": "sampling rate 90 Hz",
    }
    return {name: (folder / name, sentence) for name, sentence in sentences.items()}


def test_bad_files_get_a_sentence(tmp_path, pretrained):
    listener = Listener(pretrained[0])
    for path, sentence in bad_files(tmp_path).values():
        with pytest.raises(ValueError, match=sentence) as error:
            read_clip(str(path))
        assert "\n" not in str(error.value) and str(tmp_path) not in str(error.value)
        page = app.show_clip(listener, str(path))
        assert 'class="notice"' in page and not images(page)
        assert re.search(sentence, app.show_pair(listener, str(path), str(path), 1))


def test_uploads_pass_the_limits_of_training(tmp_path):
    tone = speechlike(2.0)
    soundfile.write(tmp_path / "loud.wav", np.where(np.arange(len(tone)) == 9, 1e30, tone), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "fast.wav", tone, 16000 + (1 << 30))
    soundfile.write(tmp_path / "wide.wav", np.repeat(tone[:800, None], 200, axis=1), 16000)
    for name, sentence in (("loud", "peak 1e"), ("fast", "sampling rate 1073757824 Hz"), ("wide", "cannot be read")):
        with pytest.raises(ValueError, match=sentence):
            read_clip(str(tmp_path / f"{name}.wav"))
    with pytest.raises(ValueError, match="not there any more"):
        read_clip(str(tmp_path))


def test_a_file_that_was_written_to_a_pipe_is_shown(tmp_path):
    soundfile.write(tmp_path / "piped.flac", speechlike(2.0), 16000)
    content = bytearray((tmp_path / "piped.flac").read_bytes())
    content[21], content[22:26] = content[21] & 0xF0, bytes(4)  # the number of samples: not known
    (tmp_path / "piped.flac").write_bytes(content)
    clip = read_clip(str(tmp_path / "piped.flac"))
    assert clip.seconds == clip.file_seconds == 2.0 and not clip.is_cut


def test_the_page_runs_from_what_a_space_is_given(tmp_path, clip_path):
    """From the files that README.md uploads, without the rest of the package."""
    root = SPACE.parents[1]
    uploads = re.findall(r"^hf upload NAME/\S+ (\S+) (\S+) (.*)$", (SPACE / "README.md").read_text(), re.MULTILINE)
    assert len(uploads) == 3
    for source, target, options in uploads:
        included = re.findall(r"--include (\S+)", options)
        for file in (root / source).rglob("*.*"):
            name = file.relative_to(root / source)
            if file.is_file() and (not included or name.as_posix() in included):
                (tmp_path / target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, tmp_path / target / name)
    code = f"""
import sys, listening, training.data.waveforms
assert listening.read_clip({clip_path!r}).seconds == 1.5
assert training.data.waveforms.__file__ == {str(tmp_path / "training" / "data" / "waveforms.py")!r}
assert "training.data.clips" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0


def test_channels_that_cancel_out_are_silent(tmp_path):
    tone = speechlike(1.0)
    soundfile.write(tmp_path / "out_of_phase.wav", np.stack([tone, -tone], 1), 16000)
    with pytest.raises(ValueError, match="silent"):
        read_clip(str(tmp_path / "out_of_phase.wav"))


def test_of_two_hours_the_first_minute_is_read(tmp_path, pretrained):
    write_two_hours(tmp_path / "long.wav")
    tracemalloc.start()
    clip = read_clip(str(tmp_path / "long.wav"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # two hours in float32: 230e6
    assert clip.seconds == 60 and clip.file_seconds == 7200 and clip.is_cut
    soundfile.write(tmp_path / "first.wav", speechlike(60, 8000), 8000, subtype="PCM_U8")
    assert np.allclose(clip.samples[:-100], read_clip(str(tmp_path / "first.wav")).samples[:-100], atol=1e-6)
    page = app.show_clip(Listener(pretrained[0]), str(tmp_path / "long.wav"))
    assert "its first 60 s are shown" in text_of(page)
    picture = images(page)[0]
    assert picture.shape[1] > 5 * picture.shape[0]  # wide enough to see the sounds


@pytest.mark.parametrize("front_end", ["waveform", "log_mel"])
def test_what_is_heard_is_what_the_model_computes(front_end, make_config, tmp_path):
    model = SJepaForPreTraining(make_config(front_end)).eval()
    model.save_pretrained(tmp_path / "model")
    feature_extractor().save_pretrained(tmp_path / "model")
    samples = speechlike(1.0)
    listener = Listener(str(tmp_path / "model"))
    heard = listener.hear(samples)
    with torch.no_grad():
        outputs = model(torch.from_numpy(samples)[None], output_hidden_states=True)
    assert heard.posteriors == pytest.approx(outputs.logits[0].softmax(-1).numpy(), abs=1e-5)
    assert len(heard.layers) == listener.num_layers + 1 and heard.words is None
    for found, again, wanted in zip(heard.layers, listener.features(samples), outputs.hidden_states, strict=True):
        assert found == pytest.approx(wanted[0].numpy(), abs=1e-4) and (found == again).all()
    wanted = [effective_rank(states[0]).item() for states in outputs.hidden_states]
    assert heard.ranks == pytest.approx(wanted, rel=1e-3)
    entropy = torch.distributions.Categorical(logits=outputs.logits[0]).entropy() / np.log(2)
    assert heard.entropy == pytest.approx(entropy.numpy(), abs=1e-4)


def test_log_mel_shows_a_tone_at_its_pitch():
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000).astype(np.float32)
    decibels = listening.log_mel(tone)
    assert decibels.shape == (80, 101)
    band = 80 * np.log1p(1 / 0.7) / np.log1p(8 / 0.7)  # where the picture writes 1 kHz
    assert decibels[:, 50].argmax() + 0.5 == pytest.approx(band, abs=1.5)


def test_similarity_is_the_cosine_about_the_common_mean():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(7, 5)), rng.normal(size=(4, 5))
    matrix = listening.similarity(first, second)
    mean = np.concatenate([first, second]).mean(0)
    a, b = first[2] - mean, second[3] - mean
    assert matrix.shape == (7, 4) and matrix[2, 3] == pytest.approx(a @ b / np.sqrt(a @ a * (b @ b)))
    assert listening.similarity(first + 100, second + 100) == pytest.approx(matrix)
    assert np.diag(listening.similarity(first, first)) == pytest.approx(1)


def test_transcripts_are_those_of_greedy_decoding(fine_tuned, pretrained):
    checkpoint, model = fine_tuned
    samples = speechlike(2.0)
    listener = Listener(checkpoint)
    words = listener.hear(samples).words
    with torch.no_grad():
        log_probs = model(torch.from_numpy(samples)[None]).logits[0].log_softmax(-1).numpy()
    wanted = greedy_decode(log_probs, listener.recogniser.processor.tokenizer)
    assert len(wanted) > 3 and " ".join(word.text for word in words) == wanted
    assert all(0 <= word.start < word.end <= 2.0 for word in words)
    assert all(before.end <= after.start for before, after in zip(words, words[1:]))
    assert Listener(pretrained[0], asr=checkpoint).hear(samples).words == words


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
    page = app.show_clip(listener, clip_path)
    assert 'class="transcript"' in page and "of 10 clusters" in page and "notice" not in page
    assert images(page)[0].shape[0] > alone.shape[0]  # a row of words
    assert fine_tuned[0] in app.describe(listener)


def test_two_clips(pretrained, clip_path, tmp_path):
    listener = Listener(pretrained[0])
    soundfile.write(tmp_path / "other.wav", speechlike(0.7), 16000)
    pages = [app.show_pair(listener, clip_path, str(tmp_path / "other.wav"), layer) for layer in (0, 3)]
    assert all(page.count("<audio") == 2 and len(images(page)) == 1 for page in pages)
    assert not np.array_equal(images(pages[0])[0], images(pages[1])[0])
    assert 'class="hint"' in app.show_pair(listener, clip_path, None, 1)


def test_file_names_are_text(pretrained, tmp_path):
    path = tmp_path / "<img onerror=alert(1)>.wav"
    soundfile.write(path, speechlike(0.3), 16000)
    assert "<img onerror" not in app.show_clip(Listener(pretrained[0]), str(path))


@pytest.mark.parametrize(("seconds", "components"), [(0.1, 2), (0.5, 3), (18, 10)])
def test_the_time_axis_fills_the_box_that_the_line_runs_in(seconds, components):
    """In short and in wide pictures: where the box says that time begins and ends, the spectrogram does."""
    samples = speechlike(seconds)
    posteriors = np.random.default_rng(0).dirichlet(np.ones(components), (len(samples) - 400) // 320 + 1)
    heard = listening.Heard([], posteriors.astype(np.float32), [])
    picture = pictures.draw_clip(Clip(samples, seconds), heard, np.linspace(0, 1, components))
    image = np.asarray(Image.open(io.BytesIO(picture.webp)).convert("L")).astype(int)
    left, top, width, height = picture.box
    row = image[round((top + 0.1 * height) * image.shape[0])]
    dark = np.flatnonzero(row < 200)
    inside = dark[(dark > (left - 0.002) * len(row)) & (dark < (left + width + 0.002) * len(row))]
    assert inside[0] == pytest.approx(left * len(row), abs=3)
    assert inside[-1] == pytest.approx((left + width) * len(row), abs=0.01 * len(row))


def test_a_wider_picture_shows_the_same_time_in_more_detail(pretrained, clip_path):
    listener = Listener(pretrained[0])
    whole, wide = (images(app.show_clip(listener, clip_path, zoom)) for zoom in (1, 4))
    assert wide[0].shape[1] == pytest.approx(4 * whole[0].shape[1], rel=0.01)
    assert wide[0].shape[0] == pytest.approx(whole[0].shape[0], abs=2) and wide[1].shape == whole[1].shape


def test_the_widest_picture_is_one_that_webp_can_hold():
    samples = np.zeros(60 * 16000, np.float32)
    samples[::100] = 0.1
    picture = pictures.draw_clip(Clip(samples, 60.0), listening.Heard([], None, None), None, zoom=4)
    assert Image.open(io.BytesIO(picture.webp)).width <= 16383 and picture.inches == pytest.approx(216)


def test_clips_to_try(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (vowels,) = find_examples(None)
    clip = read_clip(str(vowels))
    assert vowels.name == "vowels.wav" and clip.seconds == 2.5 and 0.3 < np.abs(clip.samples).max() < 0.7
    spectra = [np.abs(np.fft.rfft(part)) for part in np.split(clip.samples, 5)]
    centres = [(s * np.arange(len(s))).sum() / s.sum() for s in spectra]
    assert centres[0] > 1.5 * centres[4], "heed is brighter than who'd"
    demo = tmp_path / "demo-output" / "speech-2min-seed0" / "test" / "v1"
    demo.mkdir(parents=True)
    for number in range(20):
        (demo / f"{number:02d}.flac").touch()
    assert [path.name for path in find_examples(None)] == [f"{number:02d}.flac" for number in range(0, 16, 2)]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    for folder in ("mine", "nowhere"):
        with pytest.raises(ValueError, match=f"`examples` {folder} is no folder with audio"):
            find_examples(folder)
    (tmp_path / "mine" / "A.WAV").touch()
    assert [path.name for path in find_examples("mine")] == ["A.WAV"]


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


def damage(directory: str, name: str) -> str:
    """Break a copy of a checkpoint in one way."""
    copy = Path(f"{directory}_damaged_{name}")
    shutil.copytree(directory, copy)
    weights, config = copy / "model.safetensors", json.loads((copy / "config.json").read_text())
    if name == "torn":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif name == "html":
        weights.write_text("<html>404</html>")
    elif name == "heads":
        (copy / "config.json").write_text(json.dumps(config | {"num_attention_heads": 0}))
    elif name == "sizes":
        (copy / "config.json").write_text(json.dumps(config | {"hidden_size": 64, "num_attention_heads": 2}))
    elif name == "extractor":
        (copy / "preprocessor_config.json").write_text("[1, 2]")
    elif name == "nan":
        tensors = load_file(weights)
        tensors["mixture.means"][0] = np.nan
        save_file(tensors, weights, {"format": "pt"})
    return str(copy)


@pytest.mark.parametrize("name", ["torn", "html", "heads", "sizes", "extractor"])
def test_damaged_checkpoints_are_named(pretrained, fine_tuned, name):
    said = f"damaged_{name}" + (": .* has the shape" if name == "sizes" else " cannot be opened")
    if name != "extractor":
        with pytest.raises(ValueError, match=said):
            listening.Recogniser(damage(fine_tuned[0], name), "cpu")
    with pytest.raises(ValueError, match=said):
        Listener(damage(pretrained[0], name))


def test_a_training_that_diverged_is_named(pretrained):
    with pytest.raises(ValueError, match="damaged_nan: mixture.means holds NaN or infinite weights"):
        Listener(damage(pretrained[0], "nan"))


def test_checkpoints_that_cannot_be_shown(pretrained, tmp_path, make_config, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    BertConfig().save_pretrained(tmp_path / "bert")
    SJepaForCTC(make_config("log_mel")).save_pretrained(tmp_path / "mute")
    feature_extractor().save_pretrained(tmp_path / "mute")
    for arguments, sentence in (
        (["--checkpoint", str(tmp_path / "nowhere")], r"error: there is no directory .*nowhere.*make demo"),
        (["--checkpoint", "name/nowhere"], r"error: name/nowhere cannot be opened"),
        (["--checkpoint", str(tmp_path / "bert")], "bert is of type bert, not an S-JEPA checkpoint"),
        (
            ["--checkpoint", str(tmp_path / "mute")],
            "mute has no tokenizer that opens, .*: give the result",
        ),
        (["--checkpoint", pretrained[0], "--asr", pretrained[0]], "has no CTC head, which transcripts need"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            app.main(arguments)


def test_the_space_is_in_the_hubs_form():
    card = RepoCard.load(SPACE / "README.md")
    assert card.data.sdk == "gradio" and (SPACE / card.data.app_file).is_file() and card.data.license == "apache-2.0"
    assert len(card.data.short_description) <= 60
    required = set(re.findall(r"^(\w+)", (SPACE / "requirements.txt").read_text(), re.MULTILINE))
    code = "".join(path.read_text() for path in SPACE.glob("*.py"))
    imported = set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)) - set(sys.stdlib_module_names)
    assert imported - {"sjepa_hf", "training", "listening", "pictures", "example_clips"} <= required
    package = "".join(path.read_text() for path in (SPACE.parents[1] / "sjepa_hf").glob("modeling*.py"))
    assert "torch" in required and set(re.findall(r"^from (\w+)", package, re.MULTILINE)) <= required | {
        "collections",
        "dataclasses",
        "typing",
    }


def test_real_speech(speech, pretrained):
    page = app.show_clip(Listener(pretrained[0]), str(speech / "ljspeech_phones" / "LJ001-0002.opus"))
    assert "94 frames" in page and "LJ001-0002.opus" in page and len(images(page)) == 2
