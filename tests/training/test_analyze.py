import csv
import json

import numpy as np
import pytest
import soundfile
import torch
from scipy.optimize import linprog
from sklearn.mixture import GaussianMixture

from sjepa_hf import SJepaForCTC, SJepaForPreTraining
from sjepa_hf.measures import effective_rank
from sjepa_hf.saving import feature_extractor
from training.analyze import find_utterance, main, open_predictor
from training.data.labelled import open_labelled
from training.evaluation.bimodality import dip, dip_test, two_gaussians


def dip_by_definition(values: np.ndarray) -> float:
    """Smallest distance to a function that is convex up to a mode, may jump there, and is concave from there on."""
    x, n = np.sort(values), len(values)
    best = np.inf
    for mode in range(n):
        # Unknowns: the function at each point (at the mode: from the left), at the mode from the right, distance.
        rows, bounds = [], []

        def at_most(terms, bound, rows=rows, bounds=bounds):
            row = np.zeros(n + 2)
            for place, factor in terms:
                row[place] += factor
            rows.append(row)
            bounds.append(bound)

        right = [*range(mode), n, *range(mode + 1, n)]  # where the values right of the mode stand
        for i in range(n):
            at_most([(i, 1), (n + 1, -1)], i / n)
            at_most([(right[i], -1), (n + 1, -1)], -(i + 1) / n)
            if i != mode:
                at_most([(i, -1), (n + 1, -1)], -(i + 1) / n)
        at_most([(mode, -1), (n + 1, -1)], -mode / n)
        at_most([(n, 1), (n + 1, -1)], (mode + 1) / n)
        at_most([(mode, 1), (n, -1)], 0)
        for places, sign in ((list(range(mode + 1)), 1), (right[mode:], -1)):
            points = x[: mode + 1] if sign == 1 else x[mode:]
            for i in range(len(places) - 1):
                at_most([(places[i], 1), (places[i + 1], -1)], 0)
                if i:  # slopes rise on the left, fall on the right
                    a, b = sign / (points[i] - points[i - 1]), sign / (points[i + 1] - points[i])
                    at_most([(places[i], a + b), (places[i - 1], -a), (places[i + 1], -b)], 0)
        found = linprog(np.eye(n + 2)[-1], np.array(rows), bounds, bounds=[(0, 1)] * (n + 2))
        best = min(best, found.fun)
    return best


@pytest.mark.parametrize("seed", range(4))
def test_dip_is_the_distance_to_the_nearest_unimodal_function(seed):
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(0, 1, 6), rng.normal(3 * (seed % 2), 1, 6)])
    assert dip(values) == pytest.approx(dip_by_definition(values), abs=1e-7)
    assert dip(-5 * values + 2) == pytest.approx(dip(values), abs=1e-7)


def test_dip_of_extreme_samples():
    assert dip(np.repeat([0.0, 1.0], 500)) == pytest.approx(0.25, abs=0.001)
    assert dip(np.zeros(50)) == pytest.approx(0.01)


SAMPLES = {
    "two modes": (lambda rng: np.append(rng.normal(0.2, 0.08, 900), rng.normal(1.0, 0.25, 1100)), True),
    "normal": (lambda rng: rng.normal(3, 1, 2000), False),
    "exponential": (lambda rng: rng.exponential(size=2000), False),
    "gamma": (lambda rng: rng.gamma(2, size=2000), False),
    "uniform": (lambda rng: rng.random(2000), False),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_dip_test_tells_two_modes_from_skew(name):
    draw, bimodal = SAMPLES[name]
    values = draw(np.random.default_rng(1))
    found = dip_test(values, sample_size=600, simulations=60)
    assert (found["p_value"] < 0.02) if bimodal else (found["p_value"] > 0.1)
    if name == "exponential":  # two Gaussians fit much better than one, although there is one mode
        bic = [GaussianMixture(k, random_state=0).fit(values[:, None]).bic(values[:, None]) for k in (1, 2)]
        assert bic[1] < bic[0] - 100


def test_two_gaussians_find_their_places():
    values = SAMPLES["two modes"][0](np.random.default_rng(1))
    found = two_gaussians(values)
    assert found["means"] == pytest.approx([0.2, 1.0], abs=0.03)
    assert found["deviations"] == pytest.approx([0.08, 0.25], abs=0.03)
    assert found["weights"] == pytest.approx([0.45, 0.55], abs=0.03)
    assert found["ashman_d"] == pytest.approx(0.8 / np.sqrt((0.08**2 + 0.25**2) / 2), abs=0.3)
    assert two_gaussians(np.random.default_rng(0).normal(size=2000))["ashman_d"] < 2


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


def save(model, path) -> str:
    model.save_pretrained(path)
    feature_extractor().save_pretrained(path)
    return str(path)


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

    assert results["utterance"]["clusters"] == posteriors[2].argmax(-1).tolist()
    assert results["utterance"]["transcript"] == "text 2" and results["utterance"]["seconds"] == 0.8

    rank = results["rank"]
    assert rank["frames"] == 80 and len(rank["trained"]) == len(rank["untrained"]) == 4
    all_frames = effective_rank(outputs.hidden_states[2].flatten(0, 1)).item()
    assert rank["trained"][2] == pytest.approx(all_frames, rel=0.15)
    assert rank["trained"] != pytest.approx(rank["untrained"], rel=1e-3)
    printed = capsys.readouterr().out
    assert "clip2.wav" in printed and f"mean {entropy.mean():.2f} bits" in printed and "Effective rank" in printed


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
    assert not list(out.iterdir())
    main([checkpoint, "--data", str(folder), "--only", "rank", "--output", str(out)])
    assert {p.name for p in out.iterdir()} == {"analysis.json", "rank.png"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "entropy", "ranks"], "`only` has 'ranks'"),
        (["--max_clips", "0"], "`max_clips` must be at least 1"),
        (["--transcript", "words"], "no column 'words'"),
        (["--utterance", "9"], "`utterance` is '9': neither a number below 4"),
        (["--utterance", "nothing.wav"], "nor an audio file"),
    ],
)
def test_what_cannot_work_gets_a_sentence(folder, model, tmp_path, options, message):
    checkpoint = save(model, tmp_path / "sjepa")
    with pytest.raises(SystemExit, match=message):
        main([checkpoint, "--data", str(folder), "--output", str(tmp_path / "out"), *options])


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="nowhere cannot be opened"):
        open_predictor(str(tmp_path / "nowhere"), "cpu")


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
    other = find_utterance(clips, str(tmp_path / "else.wav"))
    assert other.name == "else.wav" and len(other.samples) == 8000 and not other.phones


def test_real_speech_with_its_phones(speech, model, tmp_path):
    checkpoint, out = save(model, tmp_path / "sjepa"), tmp_path / "out"
    command = [checkpoint, "--data", str(speech / "ljspeech_phones"), "--only", "utterance", "--phones"]
    main([*command, "--utterance", "LJ001-0002.opus", "--transcript", "transcription", "--output", str(out)])
    found = json.loads((out / "analysis.json").read_text())["utterance"]
    assert found["transcript"] == "in being comparatively modern." and len(found["clusters"]) == 94
    assert (out / "utterance.png").stat().st_size > 20_000
