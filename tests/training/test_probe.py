import csv
import json

import numpy as np
import pytest
import soundfile
import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from sjepa_hf import SJepaForPreTraining
from sjepa_hf.saving import feature_extractor, files_written_aside
from training.data.labelled import open_labelled
from training.evaluation.frozen_features import open_encoder
from training.evaluation.probing import (
    WHOLE_CLIP,
    Rows,
    features_at,
    features_of_layers,
    phones_at_frames,
    read_alignment,
    readable_clips,
    short_names,
)
from training.probe import main, phone_task, score_linear, score_mlp, utterance_task


def tone(pitch: float, seconds: float, rng) -> np.ndarray:
    samples = 0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * 16000)) / 16000)
    return samples + 0.01 * rng.normal(size=len(samples))


@pytest.fixture
def folder(tmp_path):
    """
    Sixteen clips of two voices (two pitches); each clip is a low phone, a high one and a low one. `mood` is noise, one
    clip has no voice written on it and one a voice of its own.
    """
    rng, rows = np.random.default_rng(0), []
    path = tmp_path / "clips"
    path.mkdir()
    for i in range(16):
        base = 200 if i % 2 else 500
        ends = np.cumsum(rng.uniform(0.1, 0.2, 3))
        pieces = [tone(base * k, end, rng) for k, end in zip((1, 4, 1), np.diff(ends, prepend=0))]
        soundfile.write(path / f"{i}.wav", np.concatenate(pieces), 16000)
        row = {"file_name": f"{i}.wav", "voice": "ab"[i % 2], "mood": "xy"[int(rng.integers(2))]}
        rows.append(row | {"phones": "LO HI LO", "phone_ends": " ".join(f"{end:.3f}" for end in ends)})
    rows[3]["voice"], rows[4]["voice"] = "", "alone"
    write_metadata(path, rows)
    return path


def write_metadata(folder, rows):
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def edit(folder, **columns):
    rows = list(csv.DictReader(open(folder / "metadata.csv")))
    write_metadata(folder, [row | columns for row in rows])


@pytest.fixture
def checkpoint(tmp_path, make_config):
    return save(SJepaForPreTraining(make_config("log_mel")), tmp_path / "sjepa")


def save(model, path) -> str:
    model.save_pretrained(path)
    feature_extractor().save_pretrained(path)
    return str(path)


def test_all_probes_of_a_checkpoint(folder, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    command = [checkpoint, "--data", str(folder), "--utterance_labels", "voice", "mood", "--phones"]
    main([*command, "--utterance_splits", "4", "--phone_splits", "2", "--output", str(out)])
    assert sorted(path.name for path in out.iterdir()) == ["probes.json", "probes.png"]
    results = json.loads((out / "probes.json").read_text())
    voice = results["tasks"]["voice"]
    assert (voice["clips"], voice["classes"], voice["splits"]) == (14, 2, 4)
    assert (voice["clips_without_label"], voice["classes_with_a_single_recording"]) == (1, 1)
    assert results["tasks"]["phones"]["level"] == "frame" and results["tasks"]["phones"]["clips"] == 16

    scores = {(s["label"], s["classifier"], s["subject"], s["layer"]): s for s in results["scores"]}
    name = short_names([checkpoint])[0]
    for subject in ("untrained", name):
        assert [key[3] for key in scores if key[:3] == ("voice", "linear", subject)] == [0, 1, 2, 3]
    assert scores["voice", "linear", "MFCC", None]["mean"] == 1.0
    assert scores["mood", "linear", "MFCC", None]["mean"] < 0.9  # there is nothing to be read
    assert scores["phones", "linear", "MFCC", None]["mean"] > 0.85
    assert scores["phones", "mlp", name, 3]["mean"] > scores["mood", "linear", name, 3]["mean"]
    one = scores["phones", "linear", name, 0]
    assert len(one["accuracies"]) == 2
    assert one["mean"] == pytest.approx(np.mean(one["accuracies"]))
    assert one["deviation"] == pytest.approx(np.std(one["accuracies"]))
    table = capsys.readouterr().out
    assert "1 classes with a single recording were left out" in table and f"{100 * one['mean']:.1f} ±" in table


def test_checkpoints_of_one_shape_share_the_untrained_encoder(folder, checkpoint, make_config, tmp_path):
    other = save(SJepaForPreTraining(make_config("log_mel")), tmp_path / "other")
    larger = save(SJepaForPreTraining(make_config("log_mel", num_hidden_layers=4)), tmp_path / "larger")
    command = [checkpoint, other, larger, "--data", str(folder), "--utterance_labels", "voice"]
    main(
        [*command, "--utterance_splits", "1", "--layers", "3", "--max_clips", "12", "--output", str(tmp_path / "out")]
    )
    results = json.loads((tmp_path / "out" / "probes.json").read_text())
    names = [f"{tmp_path.name}/{name}" for name in ("sjepa", "other", "larger")]
    subjects = [s["subject"] for s in results["scores"]]
    assert subjects == ["MFCC", "untrained", names[0], names[1], f"untrained {names[2]}", names[2]]
    assert {s["layer"] for s in results["scores"][1:]} == {3} and results["clips"] == 12


def test_features_of_frames_and_of_whole_clips(folder, checkpoint):
    clips = open_labelled([str(folder)], [])
    encoder = open_encoder(checkpoint)
    rows = Rows(np.array([2, 0, 2, 2]), np.array([WHOLE_CLIP, 3, 5, 0]))
    found = features_at(features_of_layers(encoder, [1, 3]), clips, {"x": rows}, "")["x"]
    first, second = (encoder([clips[i]["input_values"]])[0][[1, 3]].numpy() for i in (0, 2))
    wanted = np.stack([second.mean(1), first[:, 3], second[:, 5], second[:, 0]], axis=1)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_splits_are_by_clip_and_frames_are_bounded(folder):
    clips, counts = readable_clips(open_labelled([str(folder)], ["phones", "phone_ends"]), None, 0)
    task = phone_task(clips, counts, num_splits=3, max_frames=100, seed=0)
    assert len(task.classes) == 100 and set(task.classes) == {"LO", "HI"}
    for fit, score in task.splits:
        sides = [set(task.rows.clips[side].tolist()) for side in (fit, score)]
        assert not sides[0] & sides[1] and len(sides[1]) == 4 and len(fit) + len(score) == 100
    assert any(set(fit) != set(task.splits[0][0]) for fit, _ in task.splits[1:])


def test_pieces_of_a_recording_are_on_one_side(folder, tmp_path):
    rows = [
        {"audio_filepath": str(folder / f"{i}.wav"), "offset": o, "duration": 0.1, "voice": "ab"[i % 2]}
        for i in range(12)
        for o in (0.0, 0.1)
    ]
    (tmp_path / "pieces.jsonl").write_text("\n".join(map(json.dumps, rows)))
    clips = open_labelled([str(tmp_path / "pieces.jsonl")], ["voice"])
    for fit, score in utterance_task(clips, "voice", 5, 0).splits:
        assert not {i // 2 for i in fit} & {i // 2 for i in score} and len(score) == 6
    alone = clips.select([0, 1, 2, 3])  # two pieces, but one recording of each voice
    with pytest.raises(ValueError, match=r"0 class.* at least two recordings \(2 with a single one\)"):
        utterance_task(alone, "voice", 3, 0)


def test_the_phone_at_the_centre_of_a_frame():
    # Centres lie at 12.5, 32.5, 52.5, ... ms; frames behind the last phone have none.
    phones = phones_at_frames(["A", "B", "C"], np.array([0.0325, 0.05, 0.08]), 8)
    assert phones.tolist() == ["A", "B", "C", "C"]


def test_the_mlp_learns_what_no_linear_classifier_can():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1200, 2)).astype(np.float32)
    classes = np.where(features[:, 0] * features[:, 1] > 0, "same", "unlike")
    fit, score = np.arange(900), np.arange(900, 1200)
    before = torch.random.get_rng_state()
    assert score_linear(features, classes, fit, score) < 0.65 < 0.9 < score_mlp(features, classes, fit, score, seed=0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_labels_that_cannot_be_probed(folder):
    clips = open_labelled([str(folder)], [], optional=["voice", "mood"])
    clips.labels["mood"] = ["x"] * 16
    with pytest.raises(ValueError, match="`mood` has 1 class.*needs two"):
        utterance_task(clips, "mood", 3, 0)
    clips.labels["mood"] = list(map(str, range(16)))
    with pytest.raises(ValueError, match=r"`mood` has 0 class.* \(16 with a single one\)"):
        utterance_task(clips, "mood", 3, 0)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"phone_ends": "0.1 0.2"}, "0.wav has 3 `phones` but 2 `phone_ends`"),
        ({"phone_ends": "0.1 x 0.3"}, "0.wav: `phone_ends` must be seconds"),
        ({"phone_ends": "0.1 0.3 0.2"}, "0.wav: `phone_ends` must not fall"),
        ({"phones": "", "phone_ends": ""}, "`phones`: none of the clips has any"),
    ],
)
def test_alignments_that_make_no_sense(folder, columns, message):
    edit(folder, **columns)
    clips, counts = readable_clips(open_labelled([str(folder)], [], optional=["phones", "phone_ends"]), 5, 0)
    with pytest.raises(ValueError, match=message.replace("0.wav", r"\d+.wav")):
        phone_task(clips, counts, 3, None, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to probe for"),
        (["--utterance_labels", "accent"], "no column 'accent'"),
        (["--utterance_labels", "voice", "--layers", "last"], "`layers` must be 'all' or numbers"),
        (["--utterance_labels", "voice", "--layers", "2", "9", "--no_baselines"], "`layers` has 9, but .* 0 to 3"),
        (["--utterance_labels", "voice", "--phone_splits", "0"], "`phone_splits` must be at least 1"),
    ],
)
def test_what_cannot_work_gets_a_sentence(folder, checkpoint, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        main([checkpoint, "--data", str(folder), "--output", str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


def test_encoders_of_other_frames_are_refused(tmp_path):
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=[8] * 7)
    sizes |= dict(num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2)
    samples = np.random.default_rng(0).normal(size=8000).astype(np.float32)
    for stride, fits in (((5, 2, 2, 2, 2, 2, 2), True), ((5, 2, 2, 2, 2, 2, 1), False)):
        path = tmp_path / str(fits)
        HubertModel(HubertConfig(**sizes, conv_stride=stride)).save_pretrained(path)
        Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(path)
        extract = features_of_layers(open_encoder(str(path)))
        if fits:
            assert extract(samples).shape == (2, 24, 16)
            # The extractor norms the input, so that its loudness does not matter.
            np.testing.assert_allclose(extract(samples), extract(3 * samples + 1), atol=1e-4)
        else:
            with pytest.raises(ValueError, match="gives 48 frames for 8000 samples .* gives 24"):
                extract(samples)


def test_a_deviation_needs_two_splits(folder, checkpoint, tmp_path, capsys):
    options = [
        "--data",
        str(folder),
        "--utterance_labels",
        "voice",
        "--output",
        str(tmp_path / "out"),
        "--layers",
        "0",
    ]
    main([checkpoint, *options, "--utterance_splits", "1"])
    printed = capsys.readouterr().out
    assert "±" not in printed and "over 1 split;" in printed
    scores = json.loads((tmp_path / "out" / "probes.json").read_text())["scores"]
    assert {score["deviation"] for score in scores} == {None} and (tmp_path / "out" / "probes.png").is_file()


def test_a_dry_run_writes_nothing(folder, checkpoint, tmp_path, caplog):
    caplog.set_level("INFO")
    main(
        [
            checkpoint,
            "--data",
            str(folder),
            "--utterance_labels",
            "voice",
            "--output",
            str(tmp_path / "out"),
            "--dry_run",
        ]
    )
    assert "linear on 10 splits" in caplog.text and not (tmp_path / "out").exists()


def test_files_appear_together_or_not_at_all(tmp_path):
    (tmp_path / "mine").write_text("stays")
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError), files_written_aside(tmp_path) as aside:
        (aside / "a").write_text("half")
        raise RuntimeError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "mine"] and (tmp_path / "a").read_text() == "old"
    with files_written_aside(tmp_path) as aside:
        (aside / "a").write_text("new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "mine"] and (tmp_path / "a").read_text() == "new"


def test_a_recipe_gives_what_the_command_line_does_not(folder, checkpoint, tmp_path):
    recipe = tmp_path / "probe.yaml"
    recipe.write_text(f"data: [{folder}]\nutterance_labels: [voice]\nutterance_splits: 7\nbaselines: false\n")
    main([checkpoint, "--config", str(recipe), "--utterance_splits", "2", "--output", str(tmp_path / "out")])
    results = json.loads((tmp_path / "out" / "probes.json").read_text())
    assert results["tasks"]["voice"]["splits"] == 2 and {s["kind"] for s in results["scores"]} == {"checkpoint"}


def test_real_phones_lie_where_the_sound_is(speech):
    """Frames labelled as silence are quieter than those of stressed vowels: labels and frames are in step."""
    clips = open_labelled([str(speech / "ljspeech_phones")], ["phones", "phone_ends"]).select(range(1, 5))
    mfcc = open_encoder("mfcc")
    for i in range(len(clips)):
        loudness = mfcc([clips[i]["input_values"]])[0][0, :, 0].numpy()
        phones = phones_at_frames(*read_alignment(clips, i), len(loudness))
        silent = np.isin(phones, ["sil", "sp"])
        stressed = np.array([phone.endswith("1") for phone in phones])
        if silent.any():
            assert loudness[: len(phones)][silent].mean() < loudness[: len(phones)][stressed].mean() - 50
