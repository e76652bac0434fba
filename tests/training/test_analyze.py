import csv
import json

import numpy as np
import pytest
import soundfile
import torch
from checkpoints import save

from sjepa_hf import SJepaForCTC, SJepaForPreTraining
from sjepa_hf.contents import RECORD
from sjepa_hf.measures import effective_rank
from training import analyze
from training.analyze import AnalysisArguments, analyze_entropy, find_utterance, main, open_head
from training.common.progress import Heartbeat
from training.data.labelled import open_labelled
from training.evaluation.phone_information import JointCounts


@pytest.fixture
def folder(tmp_path):
    """Four clips of 0.8 s with transcript and phones."""
    path, rng = tmp_path / "clips", np.random.default_rng(0)
    path.mkdir()
    for i in range(4):
        soundfile.write(path / f"clip{i}.wav", 0.1 * rng.normal(size=12800), 16000)
    with open(path / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text", "phones", "phone_ends"])
        writer.writerows([f"clip{i}.wav", f"text {i}", "sil AH0 T", "0.2 0.5 0.8"] for i in range(4))
    return path


@pytest.fixture
def model(make_config):
    model = SJepaForPreTraining(make_config("log_mel")).eval()
    with torch.no_grad():
        model.cluster_head.output.weight *= 3000  # predictions that differ between frames
    return model


def test_the_three_analyses(folder, model, tmp_path, capsys):
    checkpoint, out = save(model, tmp_path / "sjepa"), tmp_path / "out"
    command = [checkpoint, "--data", str(folder), "--utterance", "clip2.wav", "--transcript", "text", "--phones"]
    main([*command, "--rank_frames", "80", "--seed", "3", "--output", str(out)])
    assert {p.name for p in out.iterdir()} == {"analysis.json", "entropy.png", "utterance.png", "rank.png"}
    results = json.loads((out / "analysis.json").read_text())

    clips = open_labelled([str(folder)], [])
    waveforms = torch.from_numpy(np.stack([clips[i]["input_values"] for i in range(4)]))
    with torch.no_grad():
        outputs = model(waveforms, output_hidden_states=True)
    posteriors = outputs.logits.softmax(-1)
    entropy = torch.distributions.Categorical(posteriors).entropy() / np.log(2)
    found = results["entropy"]
    assert (found["clips"], found["frames"], found["components"]) == (4, 4 * 39, 10)
    assert found["mean_bits"] == pytest.approx(entropy.mean().item(), abs=1e-4)
    assert found["share_above"]["2"] == pytest.approx((entropy > 2).float().mean().item())
    assert 0 < found["share_above"]["2"] < 1 and found["dip_test"]["sample_size"] == 156
    quartiles = np.quantile(entropy, (0.25, 0.5, 0.75))
    assert found["quartiles_bits"] == pytest.approx(quartiles, abs=1e-4)

    clusters = posteriors[2].argmax(-1)
    assert results["utterance"]["clusters"] == clusters.tolist()
    changes = (clusters.diff() != 0).sum().item() / 0.8
    assert results["utterance"]["changes_per_second"] == pytest.approx(changes) and changes > 1
    assert results["utterance"]["transcript"] == "text 2" and results["utterance"]["seconds"] == 0.8

    rank = results["rank"]
    assert rank["frames"] == 80 and len(rank["trained"]) == len(rank["untrained"]) == 4
    all_frames = effective_rank(outputs.hidden_states[2].flatten(0, 1)).item()
    assert rank["trained"][2] == pytest.approx(all_frames, rel=0.15)
    assert rank["trained"] != pytest.approx(rank["untrained"], rel=1e-3)
    printed = capsys.readouterr().out
    assert "clip2.wav" in printed and f"mean {entropy.mean():.2f} bits" in printed and "Effective rank" in printed


@pytest.mark.parametrize(
    ("p_value", "distance", "bimodal"), [(0.01, 3.0, True), (0.01, 1.0, False), (0.2, 3.0, False), (0.2, 1.0, False)]
)
def test_bimodal_is_what_is_no_single_mode_and_lies_well_apart(monkeypatch, p_value, distance, bimodal):
    monkeypatch.setattr(analyze, "draw_entropy", lambda *_: None)
    monkeypatch.setattr(analyze, "dip_test", lambda entropy, seed: {"p_value": p_value, "seed": seed})
    monkeypatch.setattr(analyze, "two_gaussians", lambda entropy, seed: {"ashman_d": distance, "seed": seed})
    found = analyze_entropy(lambda samples: np.full((3, 4), 0.25), [{"input_values": None}] * 2, 5, None)
    assert found["bimodal"] == bimodal and found["dip_test"]["seed"] == found["two_gaussians"]["seed"] == 5
    assert (found["clips"], found["frames"], found["largest_bits"]) == (2, 6, 2.0)


def test_without_phones_there_are_three_analyses_of_the_clips_that_are_drawn(folder, monkeypatch, tmp_path):
    given = {}
    for name in ("analyze_entropy", "analyze_rank", "analyze_utterance"):
        monkeypatch.setattr(analyze, name, lambda *arguments, name=name: given.setdefault(name, arguments))
    monkeypatch.setattr(analyze, "open_head", lambda *_: None)
    monkeypatch.setattr(analyze, "predictor_of", lambda *_: (None, None))
    arguments = AnalysisArguments([str(folder)], max_clips=3, rank_frames=50, seed=2)
    found = analyze.run("checkpoint", arguments, tmp_path, Heartbeat("testing"))
    assert found.keys() - {"checkpoint", "data", "seed"} == {"entropy", "utterance", "rank"}
    _, clips, seed, _ = given["analyze_entropy"]
    assert (len(clips), seed) == (3, 2)
    _, clips, counts, frames, seed, _ = given["analyze_rank"]
    assert (len(clips), counts.tolist(), frames, seed) == (3, [39] * 3, 50, 2)


def test_knowledge_at_hidden_frames_is_a_table(folder, model, tmp_path, capsys):
    """The targets are those of the checkpoint's own mixture, at its temperature."""
    targets = {}
    for features, temperature in (("mfcc", 1.0), ("mfcc_cmn", 1.0), ("mfcc_cmn", 3.0)):
        model.replace_mixture(10, 39)
        torch.manual_seed(0)
        torch.nn.init.normal_(model.mixture.means, std=20)
        torch.nn.init.constant_(model.mixture.variances, 100.0)
        model.describe_mixture(features, temperature=temperature)
        checkpoint, out = save(model, tmp_path / "sjepa"), tmp_path / "out"
        main([checkpoint, "--data", str(folder), "--only", "hidden", "--phones", "--output", str(out)])
        rows = json.loads((out / "analysis.json").read_text())["hidden"]
        assert rows[0]["distance"] == "1" and rows[-1]["distance"] == "targets themselves"
        assert all(0 <= row["soft"] < 0.5 for row in rows), "untrained, on noise"
        printed = capsys.readouterr().out
        assert "| distance to the nearest visible frame |" in printed and f"| {rows[0]['soft']:.3f} (" in printed
        counts, clips = JointCounts(3, 10), open_labelled([str(folder)], [])
        said = torch.tensor([0] * 10 + [1] * 15 + [2] * 14)  # by the centres of the frames
        for clip in clips:
            counts.add(said, said, model.unit_posteriors(torch.from_numpy(clip["input_values"])[None])[0])
        assert rows[-1]["soft"] == pytest.approx(counts.result().soft, rel=1e-4)
        targets[features, temperature] = rows[-1]["soft"]
    assert len({round(value, 4) for value in targets.values()}) == 3


def test_frames_are_hidden_as_in_training_unless_asked_otherwise(folder, model, tmp_path, capsys):
    checkpoint, out = save(model, tmp_path / "sjepa"), tmp_path / "out"
    found = {}
    for settings, options, expected in (
        (None, [], (0.65, 10)),
        ({"mask_prob": 0.4, "mask_span": 2}, [], (0.4, 2)),
        ({"mask_prob": 0.4, "mask_span": 2}, ["--mask_span", "10"], (0.4, 10)),
        (None, ["--mask_prob", "0.4", "--mask_span", "2"], (0.4, 2)),
        ({}, ["--mask_prob", "0.4"], (0.4, 10)),
    ):
        (tmp_path / "sjepa" / RECORD).unlink(missing_ok=True)
        if settings is not None:
            (tmp_path / "sjepa" / RECORD).write_text(json.dumps({"settings": settings}))
        main([checkpoint, "--data", str(folder), "--only", "hidden", "--phones", "--output", str(out), *options])
        results = json.loads((out / "analysis.json").read_text())
        assert (results["mask_prob"], results["mask_span"]) == expected
        assert f"{100 * expected[0]:.0f} % hidden in spans of {expected[1]}:" in capsys.readouterr().out
        assert found.setdefault(expected, results["hidden"]) == results["hidden"]
    assert found[0.4, 2] != found[0.4, 10]


def test_ranks_over_all_frames_are_those_of_the_encoder(folder, model, tmp_path):
    checkpoint, out = save(model, tmp_path / "sjepa"), tmp_path / "out"
    main([checkpoint, "--data", str(folder), "--only", "rank", "--output", str(out)])
    rank = json.loads((out / "analysis.json").read_text())["rank"]
    clips = open_labelled([str(folder)], [])
    with torch.no_grad():
        states = [
            model.sjepa(torch.from_numpy(clips[i]["input_values"])[None], output_hidden_states=True).hidden_states
            for i in range(4)
        ]
    wanted = [effective_rank(torch.cat([s[layer][0] for s in states])).item() for layer in range(4)]
    assert rank["frames"] == 156 and rank["trained"] == pytest.approx(wanted, rel=1e-3)


def test_without_a_pretraining_head_there_are_ranks_alone(folder, make_config, tmp_path):
    checkpoint, out = save(SJepaForCTC(make_config("log_mel")), tmp_path / "ctc"), tmp_path / "out"
    with pytest.raises(SystemExit, match="holds no S-JEPA pretraining head.*--only rank"):
        main([checkpoint, "--data", str(folder), "--output", str(out)])
    assert not out.exists()
    main([checkpoint, "--data", str(folder), "--only", "rank", "--output", str(out)])
    assert {p.name for p in out.iterdir()} == {"analysis.json", "rank.png"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "entropy", "ranks"], "`only` has 'ranks'"),
        (["--only", "hidden"], "`only` has 'hidden', which needs phones in time"),
        (["--max_clips", "0"], "`max_clips` must be at least 1"),
        (["--mask_span", "0"], "`mask_span` must be at least 1"),
        (["--mask_prob", "1.5"], "`mask_prob` must"),
        (["--transcript", "words"], "no column 'words'"),
        (["--utterance", "4"], "`utterance` is '4': neither a number below 4"),
        (["--utterance", "nothing.wav"], "nor an audio file"),
    ],
)
def test_what_cannot_work_gets_a_sentence(folder, model, tmp_path, options, message):
    checkpoint = save(model, tmp_path / "sjepa")
    with pytest.raises(SystemExit, match=message):
        main([checkpoint, "--data", str(folder), "--output", str(tmp_path / "out"), *options])


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="nowhere cannot be opened"):
        open_head(str(tmp_path / "nowhere"), "cpu")


def test_utterances_by_number_name_and_file(folder, tmp_path):
    clips = open_labelled([str(folder)], [], optional=["text", "phones", "phone_ends"])
    by_number, by_name = find_utterance(clips, "1"), find_utterance(clips, "clip1.wav")
    assert by_number.name == by_name.name == "clip1.wav" and by_number.transcript == "text 1"
    assert by_number.phones == ("sil", "AH0", "T") and by_number.phone_ends.tolist() == [0.2, 0.5, 0.8]
    soundfile.write(folder / "clip0.wav", np.zeros(8000), 16000)
    assert find_utterance(clips, None).name == "clip1.wav", "the first that can be read"
    with pytest.raises(ValueError, match="`utterance` .*clip0.wav cannot be read: silent"):
        find_utterance(clips, "0")
    soundfile.write(tmp_path / "else.wav", np.random.default_rng(0).normal(0, 0.1, 8000), 16000)
    (tmp_path / "text.wav").write_text("no audio")
    with pytest.raises(ValueError, match="`utterance` .*text.wav cannot be read: corrupt"):
        find_utterance(clips, str(tmp_path / "text.wav"))
    other = find_utterance(clips, str(tmp_path / "else.wav"))
    assert other.name == "else.wav" and len(other.samples) == 8000 and not other.phones
    aligned = open_labelled([str(folder)], [], optional=["phones", "phone_ends"])
    assert find_utterance(aligned, "1").transcript == "", "phones are no transcript"


def test_real_speech_with_its_phones(pictures, speech, model, tmp_path):
    checkpoint, out = save(model, tmp_path / "sjepa"), tmp_path / "out"
    command = [checkpoint, "--data", str(speech / "ljspeech_phones"), "--only", "utterance", "--phones"]
    main([*command, "--utterance", "LJ001-0002.opus", "--transcript", "transcription", "--output", str(out)])
    found = json.loads((out / "analysis.json").read_text())["utterance"]
    assert found["transcript"] == "in being comparatively modern." and len(found["clusters"]) == 94
    assert (out / "utterance.png").stat().st_size > 20_000
