"""The demo: a labelled corpus spoken by eSpeak NG, linear probes, and what the demo script decides by itself."""

import csv
import json
import sys

import numpy as np
import pytest
import soundfile
import torch

from examples.demo import probes, run, synthesize
from examples.demo.probes import Probe
from sjepa_hf import SJepaConfig, SJepaModel
from sjepa_hf.command import UserError


RATE = 16000


def read_table(folder):
    with open(folder / "metadata.csv", newline="") as file:
        return list(csv.DictReader(file))


def all_bytes(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def few_speakers():
    pytest.importorskip("espeakng_loader", reason="eSpeak NG speaks the demo corpus: pip install espeakng-loader")
    everybody = synthesize.plan_speakers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthesize, "plan_speakers", lambda minutes, seed: everybody(minutes, seed)[::12])
        yield


@pytest.fixture(scope="module")
def corpus(few_speakers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "corpus"
    synthesize.synthesize(folder, minutes=10, seed=0)
    return folder


# The corpus


def test_every_recording_is_labelled_to_its_end(corpus):
    for split in ("train", "test"):
        rows = read_table(corpus / split)
        assert list(rows[0]) == list(synthesize.FIELDS)
        assert len(rows) >= 4
        for row in rows:
            audio, rate = soundfile.read(corpus / split / row["file_name"])
            phones, ends = row["phones"].split(), [float(end) for end in row["phone_ends"].split()]
            assert rate == RATE and audio.ndim == 1
            assert len(phones) == len(ends) > 5
            assert np.all(np.diff([0.0, *ends]) > 0)
            assert ends[-1] == float(row["duration"]) == pytest.approx(len(audio) / RATE, abs=1e-4)
            assert 0.05 < np.abs(audio).max() < 1.0
            assert not any(phone.startswith(("'", ",", "_")) for phone in phones)


def test_pauses_are_quieter_than_phones(corpus):
    # Wrong boundaries would put speech into the pauses.
    quieter = []
    for row in read_table(corpus / "train"):
        audio, _ = soundfile.read(corpus / "train" / row["file_name"])
        ends = (np.array(row["phone_ends"].split(), dtype=float) * RATE).astype(int)
        energy = {True: [], False: []}
        for phone, begin, end in zip(row["phones"].split(), [0, *ends], ends):
            begin += 1600 if phone == "sil" else 0  # a room still sounds when a pause begins
            if end - begin > 320:
                energy[phone == "sil"].append(np.mean(audio[begin:end] ** 2))
        if energy[True]:
            quieter.append(np.mean(energy[True]) < 0.2 * np.mean(energy[False]))
    assert len(quieter) >= 3
    assert np.mean(quieter) > 0.9


def test_same_seed_same_bytes(corpus, tmp_path):
    synthesize.synthesize(tmp_path / "again", minutes=10, seed=0, num_processes=1)
    synthesize.synthesize(tmp_path / "other", minutes=10, seed=1)
    assert all_bytes(tmp_path / "again") == all_bytes(corpus)
    assert read_table(tmp_path / "other" / "train") != read_table(corpus / "train")
    assert not list(tmp_path.glob("*.partial"))


def test_corpus_is_reused_and_foreign_folders_are_left_alone(corpus):
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    minutes = synthesize.synthesize(corpus, minutes=10, seed=0)
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before
    assert minutes["train"] == pytest.approx(sum(float(row["duration"]) for row in read_table(corpus / "train")) / 60)
    with pytest.raises(ValueError, match="not this corpus"):
        synthesize.synthesize(corpus, minutes=11, seed=0)


def test_held_out_voices_are_disjoint(plan=synthesize.plan_speakers):  # the whole cast, not the few of `corpus`
    speakers = plan(60)
    variants = {
        split: {speaker.voice.split("+")[1] for speaker in speakers if speaker.split == split}
        for split in ("train", "test")
    }
    assert len(variants["train"]) > 40 and len(variants["test"]) == 16
    assert not variants["train"] & variants["test"]
    assert len({speaker.speaker_id for speaker in speakers}) == len(speakers)
    assert sum(speaker.seconds for speaker in speakers) == pytest.approx(3600)


def test_phone_segments_merge_pauses_and_drop_empty_phones():
    events = [(10, "'aI"), (30, "t"), (30, "@2"), (50, "_:"), (60, "_")]
    assert synthesize.phone_segments(events, 80) == (["sil", "aI", "@", "sil"], [10, 30, 50, 80])


# The probes


def clip(name, speaker=None, phones=(), ends=(), duration=1.0):
    return probes.Clip(name, duration, speaker, tuple(phones), tuple(ends))


def test_frames_take_the_phone_at_their_centre():
    labelled = clip("x", phones=["AH0", "0", "sp"], ends=[0.1, 0.2, 0.3])
    # centres: 12.5 ms and then every 20 ms; past the last label there is silence
    expected = ["AH"] * 5 + ["0"] * 5 + ["sp"] * 5 + ["sil"] * 2
    assert probes.frame_phones(labelled, 17).tolist() == expected


def test_phone_probe_scores_on_other_voices():
    clips = [clip(f"{s}-{n}", s, ["sil", "a", "b"], [0.2, 0.6, 1.0]) for s in "ABCD" for n in range(3)]
    probe = probes.phone_probe(clips)
    voices = {half: {name[0] for name, fit in zip(probe.clips, probe.fit) if fit == half} for half in (True, False)}
    assert voices[True] | voices[False] == set("ABCD")
    assert not voices[True] & voices[False]
    assert set(probe.labels) == {"a", "b"}
    capped = probes.phone_probe(clips, max_frames=50)
    assert capped.fit.sum() == 50 == (~capped.fit).sum()
    one_voice = probes.phone_probe([clip(str(n), None, ["a", "b"], [0.5, 1.0]) for n in range(4)])
    assert dict(zip(one_voice.clips, one_voice.fit)) == {"0": 1, "1": 0, "2": 1, "3": 0}


def test_speaker_probe_has_every_voice_on_both_sides():
    clips = [clip(f"{speaker}-{n}", speaker) for speaker in "ABC" for n in range(6)] + [clip("D-0", "D")]
    probe = probes.speaker_probe(clips)
    for half in (True, False):
        assert set(probe.labels[probe.fit == half]) == set("ABC")
    assert len(probe.clips) == len(set(probe.clips)) == 18


def test_a_missing_label_is_a_reason_not_a_crash():
    assert "no speaker_id" in probes.speaker_probe([clip("a"), clip("b")])
    assert "at least 4" in probes.speaker_probe([clip("a", "A"), clip("b", "B")])
    assert "no phones" in probes.phone_probe([clip("a"), clip("b")])


def test_collect_takes_the_named_frames_and_the_means():
    frame_probe = Probe("p", "", ["x", "y", "x"], np.array([2, 1, 99]), np.array(list("abc")), np.array([1, 1, 0]) > 0)
    mean_probe = Probe("s", "", ["y"], np.array([-1]), np.array(["a"]), np.array([True]))

    def extract(audio):
        frames = audio[0] + np.arange(4.0)[:, None]
        return [frames, -frames]

    audio = {"x": np.array([10.0]), "y": np.array([20.0])}
    frames, means = probes.collect(extract, [frame_probe, mean_probe], audio)
    assert frames[0].ravel().tolist() == [12, 21, 13] and frames[1].ravel().tolist() == [-12, -21, -13]
    assert means[0].ravel().tolist() == [21.5]


def test_accuracy_on_separable_and_on_meaningless_features():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 800)
    fit = np.arange(800) % 2 == 0
    probe = Probe("p", "", [], np.zeros(800), labels.astype(str), fit)
    noise = rng.standard_normal((800, 8))
    assert probes.accuracy(probe, noise + 4 * np.eye(8)[labels]) > 0.95
    assert probes.accuracy(probe, noise) < 0.35
    # the score is that of the second half: features that tell the labels in the first half only are worth nothing
    assert probes.accuracy(probe, noise + 4 * np.eye(8)[labels] * fit[:, None]) < 0.35


@pytest.fixture
def tones(tmp_path):
    """Four voices (dull or bright, soft or loud noise), two phones (with a tone or without), six recordings each."""
    rng = np.random.default_rng(0)
    time = np.arange(RATE) / RATE
    rows = []
    for speaker, tilt, level in (("a", 0.9, 0.02), ("b", -0.9, 0.1), ("c", 0.9, 0.1), ("d", -0.9, 0.02)):
        for n in range(6):
            noise = rng.standard_normal(RATE + 1)
            noise = level * (noise[1:] + tilt * noise[:-1])
            tone = 0.3 * np.sin(2 * np.pi * 400 * time) * (time < 0.5)
            soundfile.write(tmp_path / f"{speaker}{n}.wav", noise + tone, RATE)
            rows.append(f"{speaker}{n}.wav,{speaker},tone hiss,0.5 1.0,1.0")
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,speaker_id,phones,phone_ends,duration", *rows]))
    return tmp_path


@pytest.fixture
def tiny_checkpoint(tmp_path):
    config = SJepaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        front_end="log_mel",
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        predictor_num_attention_heads=2,
        predictor_intermediate_size=32,
        num_mixture_components=8,
    )
    torch.manual_seed(1)
    SJepaModel(config).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_probes_read_what_is_in_the_audio(tones, tiny_checkpoint):
    results = probes.run_probes(tiny_checkpoint, tones, "a note")
    for name in ("phones", "speakers"):
        result = results["probes"][name]
        assert result["mfcc"] > 0.9
        assert len(result["untrained"]) == len(result["trained"]) == 3
        assert max(result["trained"]) > 0.9
    assert results["probes"]["phones"]["chance"] == pytest.approx(0.5, abs=0.03)
    assert results["probes"]["speakers"]["chance"] == pytest.approx(0.25)
    text = probes.report(results)
    assert "a note" in text and "MFCC" in text and "layer 2" in text
    saved = probes.save_report(results, tiny_checkpoint)
    assert text in saved.read_text()
    assert json.loads((tiny_checkpoint / "probes.json").read_text()) == results


def test_unreadable_and_unlabelled_recordings(tones, tiny_checkpoint, capsys):
    (tones / "a0.wav").write_bytes(b"not audio")
    results = probes.run_probes(tiny_checkpoint, tones)
    assert "a0.wav is left out" in capsys.readouterr().out
    assert results["probes"]["speakers"]["mfcc"] > 0.9

    (tones / "metadata.csv").write_text("file_name,duration\nb0.wav,1.0\nb1.wav,1.0\n")
    results = probes.run_probes(tiny_checkpoint, tones)
    assert not results["probes"]
    text = probes.report(results)
    assert "phones: not available, metadata.csv has no phones" in text
    assert "speakers: not available, metadata.csv has no speaker_id" in text

    (tones / "metadata.csv").unlink()
    assert "no metadata.csv" in probes.run_probes(tiny_checkpoint, tones)["unavailable"]["phones"]


def test_metadata_that_contradicts_itself_is_named(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,phones,phone_ends\na.wav,p t k,0.1 0.2\n")
    with pytest.raises(ValueError, match="a.wav has 3 phones but 2 phone_ends"):
        probes.read_clips(tmp_path)


# The demo script


def test_own_speech_is_split_only_where_it_has_a_held_out_folder(tmp_path):
    train, probe, note = run.locate_speech(tmp_path)
    assert train == probe == tmp_path and "no held-out folder" in note
    for name in ("train", "validation"):
        (tmp_path / name).mkdir()
    assert run.locate_speech(tmp_path)[:2] == (tmp_path / "train", tmp_path / "train")
    (tmp_path / "validation" / "metadata.csv").write_text("file_name\n")
    train, probe, note = run.locate_speech(tmp_path)
    assert (train, probe) == (tmp_path / "train", tmp_path / "validation") and "did not read" in note
    with pytest.raises(ValueError, match="not a folder"):
        run.locate_speech(tmp_path / "absent")


def test_earlier_models_are_kept(tmp_path):
    assert run.free_folder(tmp_path / "model") == tmp_path / "model"
    (tmp_path / "model").mkdir()
    (tmp_path / "model-2").mkdir()
    assert run.free_folder(tmp_path / "model") == tmp_path / "model-3"


def test_the_demo_from_end_to_end(tmp_path, monkeypatch, capfd):
    words = f"--output_dir {tmp_path} --minutes 2 --phase1_steps 3 --phase1_warmup_steps 1 --phase2_steps 0"
    monkeypatch.setattr(sys, "argv", ["run.py", *words.split()])
    run.main()
    printed, final = capfd.readouterr().out, tmp_path / "model" / "final"
    assert (
        "$ python -m training.pretrain" in printed
        and "best trained layer for phones" in (final / "probes.md").read_text()
    )
    assert str(final) in printed and (final / "loss.png").stat().st_size > 5000


def test_what_is_wrong_with_the_user_s_options_is_not_buried(tmp_path, capfd):
    (tmp_path / "speech").mkdir()
    with pytest.raises(UserError, match="exit code 1; its last lines above say why"):
        run.pretrain(tmp_path / "speech", tmp_path / "model", ["--phase1_steps", "-3"])
    errors = capfd.readouterr().err
    assert errors.splitlines()[-1] == "error: `phase1_steps` must be at least 0, got -3." and "Traceback" not in errors
