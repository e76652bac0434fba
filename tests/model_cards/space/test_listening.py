"""What the page knows of a clip: reading it, and what a checkpoint hears in it."""

import json
import shutil
import tracemalloc
from pathlib import Path

import listening
import numpy as np
import pytest
import soundfile
import torch
from checkpoints import save
from listening import Listener, Recogniser, log_mel, read_clip, similarity
from safetensors.torch import load_file, save_file
from tones import speechlike, write_two_hours

from sjepa_hf import SJepaForPreTraining
from sjepa_hf.cluster_pictures import order_clusters
from sjepa_hf.encoding import weights_hash
from sjepa_hf.measures import effective_rank
from training.finetuning.beam_search import greedy_decode


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


def test_bad_files_get_a_sentence(bad_files, tmp_path):
    for path, sentence in bad_files.items():
        with pytest.raises(ValueError, match=sentence) as error:
            read_clip(str(path))
        assert "\n" not in str(error.value) and str(tmp_path) not in str(error.value)


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


def test_channels_that_cancel_out_are_silent(tmp_path):
    tone = speechlike(1.0)
    soundfile.write(tmp_path / "out_of_phase.wav", np.stack([tone, -tone], 1), 16000)
    with pytest.raises(ValueError, match="silent"):
        read_clip(str(tmp_path / "out_of_phase.wav"))


def test_of_two_hours_the_first_minute_is_read(tmp_path):
    write_two_hours(tmp_path / "long.wav")
    tracemalloc.start()
    clip = read_clip(str(tmp_path / "long.wav"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # two hours in float32: 230e6
    assert clip.seconds == 60 and clip.file_seconds == 7200 and clip.is_cut
    soundfile.write(tmp_path / "first.wav", speechlike(60, 8000), 8000, subtype="PCM_U8")
    first = read_clip(str(tmp_path / "first.wav"))
    assert np.allclose(clip.samples[:-100], first.samples[:-100], atol=1e-6) and not first.is_cut


@pytest.mark.parametrize("front_end", ["waveform", "log_mel"])
def test_what_is_heard_is_what_the_model_computes(front_end, make_config, tmp_path):
    model = SJepaForPreTraining(make_config(front_end)).eval()
    with torch.no_grad():
        model.cluster_head.output.weight *= 300  # predictions that differ between layers
    samples = speechlike(1.0)
    listener = Listener(save(model, tmp_path / "model"))
    assert (listener.cluster_places == order_clusters(model.mixture.means)).all()
    heard = listener.hear(samples)
    with torch.no_grad():
        outputs = model(torch.from_numpy(samples)[None], output_hidden_states=True)
    assert heard.posteriors == pytest.approx(outputs.logits[0].softmax(-1).numpy(), abs=1e-4)
    assert len(heard.layers) == listener.num_layers + 1 and heard.words is None
    for found, again, wanted in zip(heard.layers, listener.features(samples), outputs.hidden_states, strict=True):
        assert found == pytest.approx(wanted[0].numpy(), abs=1e-4) and (found == again).all()
    wanted = [effective_rank(states[0]).item() for states in outputs.hidden_states]
    assert heard.ranks == pytest.approx(wanted, rel=1e-3)
    entropy = torch.distributions.Categorical(logits=outputs.logits[0]).entropy() / np.log(2)
    assert heard.entropy == pytest.approx(entropy.numpy(), abs=1e-4)


def with_units(model: SJepaForPreTraining) -> SJepaForPreTraining:
    """The model with a mixture over MFCC."""
    model.replace_mixture(10, 39)
    model.mixture.means.mul_(20)
    model.mixture.variances.fill_(400.0)
    model.describe_mixture("mfcc_cmn")
    return model


def test_units_are_those_that_a_corpus_holds(make_config, tmp_path):
    model = with_units(SJepaForPreTraining(make_config("log_mel")))
    checkpoint, samples = save(model, tmp_path / "model"), speechlike(1.0)
    known = {"weights": weights_hash(model), "checkpoint": checkpoint, "ema encoder": False}
    listener = Listener(checkpoint, like=known | {"clusters": "mixture"})
    found = listener.hear(samples).units
    wanted = model.eval().unit_posteriors(torch.from_numpy(samples)[None])[0].argmax(1)
    assert listener.clusters == "mixture" and len(wanted.unique()) > 1 and found.tolist() == wanted.tolist()
    of_prediction = Listener(checkpoint, like=known | {"clusters": "prediction"}).hear(samples)
    assert of_prediction.units.tolist() == of_prediction.posteriors.argmax(1).tolist() != found.tolist()
    assert [run.unit for run in of_prediction.runs] == [
        unit for n, unit in enumerate(of_prediction.units) if n == 0 or of_prediction.units[n - 1] != unit
    ]


def test_units_of_an_ema_encoder_are_those_of_that_encoder(make_config, tmp_path, monkeypatch):
    checkpoint = save(SJepaForPreTraining(make_config("log_mel")), tmp_path / "model")
    averaged = with_units(SJepaForPreTraining(make_config("log_mel"))).eval()
    monkeypatch.setattr(listening, "open_with_ema", {checkpoint: averaged}.get)
    like = {"weights": weights_hash(averaged), "checkpoint": checkpoint, "ema encoder": True, "clusters": "mixture"}
    samples = speechlike(1.0)
    wanted = averaged.unit_posteriors(torch.from_numpy(samples)[None])[0].argmax(1)
    assert Listener(checkpoint, like=like).hear(samples).units.tolist() == wanted.tolist()


def test_log_mel_shows_a_tone_at_its_pitch():
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000).astype(np.float32)
    decibels = log_mel(tone)
    assert decibels.shape == (80, 101)
    band = 80 * np.log1p(1 / 0.7) / np.log1p(8 / 0.7)  # where the picture writes 1 kHz
    assert decibels[:, 50].argmax() + 0.5 == pytest.approx(band, abs=1.5)
    assert decibels.max() - log_mel(tone / 10).max() == pytest.approx(20, abs=0.01)


def test_similarity_is_the_cosine_about_the_common_mean():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(7, 5)), rng.normal(size=(4, 5))
    matrix = similarity(first, second)
    mean = np.concatenate([first, second]).mean(0)
    a, b = first[2] - mean, second[3] - mean
    assert matrix.shape == (7, 4) and matrix[2, 3] == pytest.approx(a @ b / np.sqrt(a @ a * (b @ b)))
    assert similarity(first + 100, second + 100) == pytest.approx(matrix)
    assert np.diag(similarity(first, first)) == pytest.approx(1)


def test_transcripts_are_those_of_greedy_decoding(fine_tuned, pretrained, tmp_path):
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
    tokenizer = listener.recogniser.processor.tokenizer
    tokens = tokenizer.convert_ids_to_tokens(log_probs.argmax(1).tolist())
    letters = [n for n, token in enumerate(tokens) if token in "ABCDEFGH"]
    assert words[0].start == pytest.approx(0.02 * letters[0])
    assert words[-1].end == pytest.approx(0.02 * (letters[-1] + 1))
    assert Listener(pretrained[0], asr=checkpoint).hear(samples).words == words
    other = shutil.copytree(checkpoint, tmp_path / "other")
    assert Listener(checkpoint, asr=str(other)).asr_name == str(other)


def damage(directory: str, name: str, folder: Path) -> str:
    """A copy of a checkpoint, broken in one way."""
    copy = folder / f"damaged_{name}"
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
def test_damaged_checkpoints_are_named(pretrained, fine_tuned, name, tmp_path):
    said = f"damaged_{name}" + (": .* has the shape" if name == "sizes" else " cannot be opened")
    if name != "extractor":
        with pytest.raises(ValueError, match=said):
            Recogniser(damage(fine_tuned[0], name, tmp_path / "asr"), "cpu")
    with pytest.raises(ValueError, match=said):
        Listener(damage(pretrained[0], name, tmp_path))


def test_a_training_that_diverged_is_named(pretrained, tmp_path):
    with pytest.raises(ValueError, match="damaged_nan: mixture.means holds NaN or infinite weights"):
        Listener(damage(pretrained[0], "nan", tmp_path))
