import json
from contextlib import redirect_stdout
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from full_disk import FullDisk
from transformers import HubertConfig

from sjepa_hf import DiagonalGaussianMixture, SJepaForPreTraining
from training import target_information
from training.common.progress import Heartbeat
from training.evaluation.phone_information import Information
from training.target_information import (
    Candidate,
    InformationArguments,
    candidates,
    fitted_targets,
    main,
    measure,
    random_batches,
    run,
    table,
    under_whole_clips,
)
from training.targets.targets import FrozenTargets


@pytest.fixture
def aligned(tmp_path):
    """Clips of two tones in turn, which are the phones."""
    random = np.random.default_rng(0)
    lines = []
    for number in range(6):
        pieces = random.integers(0, 2, 8)
        at = np.repeat(pieces, 3200)
        samples = np.sin(np.cumsum(np.where(at == 0, 0.1, 0.9))) * 0.2 + 0.01 * random.standard_normal(len(at))
        soundfile.write(tmp_path / f"{number}.wav", samples, 16000)
        ends = " ".join(f"{0.2 * (i + 1):.1f}" for i in range(8))
        lines.append({
            "audio_filepath": f"{number}.wav", "phones": " ".join("ab"[p] for p in pieces), "phone_ends": ends
        })  # fmt: skip
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "clips.jsonl"


def test_every_kind_of_target_is_measured(aligned, make_config, tmp_path, capsys):
    SJepaForPreTraining(make_config("log_mel")).save_pretrained(tmp_path / "model")
    command = [str(tmp_path / "model"), "--train_data", str(aligned), "--data", str(aligned), "--components", "6"]
    main([*command, "--dims", "0", "4", "--frames", "400", "--output", str(tmp_path / "deep" / "found.json")])
    rows = json.loads((tmp_path / "deep" / "found.json").read_text())["rows"]
    layers = make_config("log_mel").num_hidden_layers
    kinds = ("", ", given the clip", ", given the clip, 2 rounds")
    expected = [
        c.name + kind for c in candidates(layers, [0, 4]) for kind in (kinds if c.frame_features else kinds[:1])
    ]
    assert [row["targets"] for row in rows] == expected
    assert len(rows) == 3 * 3 + 2 * (2 * layers + 1)
    found = {row["targets"]: row for row in rows}
    assert found["mfcc"]["hard"] > 0.7, "two tones are told apart"
    of_encoder = [row["entropy_bits"] for name, row in found.items() if "layer" in name]
    assert len(set(of_encoder)) == len(of_encoder) == 14, "no two are the same targets"
    assert all(0 < row["hard"] < 1.001 and 1 <= row["components_used"] <= 6 for row in rows)
    assert capsys.readouterr().out.count("\n| ") == len(rows)


def test_each_layer_is_taken_plain_and_by_clip_and_their_mean_by_clip():
    found = candidates(2, [0, 4])
    features, layers = [c for c in found if c.frame_features], [c for c in found if c.layers]
    assert [c.name for c in features] == [c.frame_features for c in features] == ["mfcc", "mfcc_cmn", "log_mel"]
    of_size = [(c.layers, c.instance_norm) for c in layers if c.dims == 4]
    assert of_size == [((1,), False), ((1,), True), ((2,), False), ((2,), True), ((1, 2), True)]
    assert [(c.layers, c.instance_norm) for c in layers if c.dims == 0] == of_size
    assert layers[1].name == "layer 1, by clip" and layers[-1].name == "mean of layers, by clip, 4 dims"


def test_transitions_of_the_same_mixture_are_counted_then_estimated_anew(monkeypatch):
    rounds = []
    monkeypatch.setattr(target_information, "fit_transitions", lambda *arguments: rounds.append(arguments[-1]))
    plain = DiagonalGaussianMixture(3, 39)
    plain.means.normal_().mul_(0.1)
    plain.weights.copy_(torch.tensor([0.7, 0.2, 0.1]))
    targets = FrozenTargets(plain, "mfcc")
    names = list(under_whole_clips(targets, [], InformationArguments(["a"], ["b"])))
    assert names == ["given the clip", "given the clip, 2 rounds"] and rounds == [1, 2]
    assert targets.mixture.means.equal(plain.means) and targets.mixture is not plain
    values = torch.randn(1, 5, 39)
    independent = targets.mixture.clip_posteriors(values, torch.tensor([5]))
    expected = plain.clip_posteriors(values, torch.tensor([5]))
    torch.testing.assert_close(independent, expected, atol=2e-3, rtol=0)  # transitions are smoothed


def test_clips_are_drawn_at_random_and_bad_ones_are_left_out():
    clips = [{"input_values": np.full(100 + n, n, np.float32)} for n in range(20)]
    clips[7] = None
    batches = list(random_batches(clips, seed=0))
    lengths = [int(batch["lengths"]) - 100 for batch in batches]
    assert [batch["seed"] for batch in batches] == lengths, "each draws frames of its own"
    assert sorted(lengths) == [n for n in range(20) if n != 7] != lengths


def test_targets_are_fitted_to_the_one_and_measured_on_the_other(monkeypatch):
    opened, fitted, measured = [], [], []

    def fit(candidate, encoder, components, clips, arguments):
        fitted.append((candidate.name, components, clips.name, encoder.training))
        return components

    def clipwise(targets, clips, arguments):
        yield f"{targets} of {clips.name}"

    class Clips(list):
        hours = 0.0

        def __init__(self, sources, columns, audio_column):
            self.name = sources[0]
            opened.append((self.name, columns, audio_column))

    encoder = torch.nn.Identity().train()
    encoder.config = SimpleNamespace(hidden_size=8, num_hidden_layers=1)
    for name, made in {
        "open_sjepa": lambda *_: encoder,
        "open_labelled": Clips,
        "readable_clips": lambda clips, most, seed: (clips, [most, seed]),
        "number_phones": lambda clips, counts: (["a", "b"], [counts]),
        "candidates": lambda layers, dims: [Candidate("mfcc", "mfcc"), Candidate("layer 1", layers=(1,), dims=8)],
        "fitted_targets": fit,
        "under_whole_clips": clipwise,
        "measure": lambda targets, clips, *told: (
            measured.append((targets, clips.name, *told)) or Information(*[0.0] * 6)
        ),
    }.items():
        monkeypatch.setattr(target_information, name, made)
    options = {"components": [2, 3], "dims": [8], "max_clips": 5, "seed": 6, "audio_column": "sound"}
    rows = run("x", InformationArguments(["plain"], ["aligned"], **options), Heartbeat("testing"))
    assert opened == [("plain", (), "sound"), ("aligned", ("phones", "phone_ends"), "sound")]
    assert fitted == [(name, size, "plain", False) for size in (2, 3) for name in ("mfcc", "layer 1")]
    names = [name for size in (2, 3) for name in ("mfcc", f"mfcc, {size} of plain", "layer 1")]
    assert [(row["targets"], row["components"]) for row in rows] == list(zip(names, [2, 2, 2, 3, 3, 3]))
    assert measured == [(size, "aligned", [[5, 6]], 2) for size in (2, 2, 2, 3, 3, 3)]


def test_targets_are_made_of_what_their_kind_says(monkeypatch):
    made, fits = [], []

    class Targets:
        def __init__(self, encoder, mixture, choice, accelerator, **told):
            made.append((mixture.num_components, mixture.num_features, told))

        def seed(self, audio, frames, seed, **told):
            fits.append((frames, seed, told))

    monkeypatch.setattr(target_information, "OnlineTargets", Targets)
    monkeypatch.setattr(target_information, "sample_frames", lambda features, audio, *told, **more: (told, more))
    monkeypatch.setattr(
        target_information, "fit_mixture", lambda mixture, sample, seed, _, **told: fits.append((sample, seed, told))
    )
    encoder = SimpleNamespace(config=SimpleNamespace(hidden_size=8))
    arguments = InformationArguments(["a"], ["b"], frames=600, em_iterations=3, seed=4)
    for candidate in (Candidate("", layers=(1, 2), instance_norm=True, dims=5), Candidate("", layers=(2,))):
        fitted_targets(candidate, encoder, 7, [], arguments)
    assert made == [
        (7, 5, {"layers": (1, 2), "instance_norm": True, "num_components": 5}),
        (7, 8, {"layers": (2,), "instance_norm": False, "num_components": None}),
    ]
    targets = fitted_targets(Candidate("", "mfcc"), encoder, 7, [], arguments)
    assert (targets.feature_name, targets.mixture.num_components, targets.mixture.num_features) == ("mfcc", 7, 39)
    of_features = (((600, 4), {"stop_when_full": True}), 4, {"num_iterations": 3})
    assert fits == [(600, 4, {"num_iterations": 3})] * 2 + [of_features]


def test_a_clip_s_posteriors_are_compared_with_its_own_phones_from_its_first_frame():
    phones = [torch.tensor([0, 1, 1, 0, 1]), torch.tensor([1, 1, 0, 0, 0, 1, 0])]
    clips = [{"input_values": np.full(400, number, np.float32)} for number in range(2)]

    def posteriors(batch):
        expected = phones[int(batch["input_values"][0, 0])]
        return torch.eye(3)[torch.cat([expected, torch.tensor([2, 2])])][None]

    mixture = SimpleNamespace(num_components=3, means=torch.zeros(3, 1))
    found = measure(SimpleNamespace(mixture=mixture, posteriors=posteriors), clips, phones, 2)
    assert found.soft == pytest.approx(1) == found.hard and found.hard_chance < 0.5 and found.components_used < 2.01


def test_as_many_aligned_clips_are_measured_as_asked_for(aligned, make_config, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    SJepaForPreTraining(make_config("log_mel")).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(target_information, "candidates", lambda *_: [Candidate("layer 1", layers=(1,))])
    command = [str(tmp_path / "model"), "--train_data", str(aligned), "--data", str(aligned), "--max_clips", "2"]
    main([*command, "--components", "2", "--frames", "50", "--em_iterations", "2"])
    assert "of 6 clips (0.00 h) and measured on 158 frames of 2 aligned clips with 2 phones" in caplog.text


def test_a_row_has_soft_before_hard_and_what_is_used_of_the_components():
    row = {"soft": 0.1, "soft_chance": 0.2, "hard": 0.3, "hard_chance": 0.4, "entropy_bits": 0.5}
    lines = table([row | {"components_used": 7.4, "targets": "mfcc", "components": 9}]).splitlines()
    cells = ["mfcc", "9", "0.100 (0.200)", "0.300 (0.400)", "0.50", "7"]
    assert [cell.strip() for cell in lines[-1].split("|")[1:-1]] == cells


def test_figures_are_written_before_they_are_printed(tmp_path, monkeypatch):
    row = dict.fromkeys(("soft", "soft_chance", "hard", "hard_chance", "entropy_bits", "components_used"), 0.5)
    rows = [row | {"targets": "mfcc", "components": 6}]
    monkeypatch.setattr("training.target_information.run", lambda *_: rows)
    with redirect_stdout(FullDisk()), pytest.raises(SystemExit, match="error: .*No space left"):
        main(["model", "--train_data", "a", "--data", "b", "--output", str(tmp_path / "found.json")])
    assert json.loads((tmp_path / "found.json").read_text())["rows"] == rows


def test_an_output_that_cannot_be_is_told_before_anything_is_opened(tmp_path):
    with pytest.raises(SystemExit, match="error: `output` .* is a directory: name a file"):
        main(["nowhere", "--train_data", "a", "--data", "b", "--output", str(tmp_path)])


def test_a_fit_to_too_few_frames_gets_a_sentence(aligned, make_config, tmp_path):
    SJepaForPreTraining(make_config("log_mel")).save_pretrained(tmp_path / "model")
    command = [str(tmp_path / "model"), "--train_data", str(aligned), "--data", str(aligned)]
    with pytest.raises(SystemExit, match="error: Cannot fit 9000 components to .* frames: give more audio"):
        main([*command, "--components", "9000"])
    command[0] = "nowhere"  # what the settings alone can tell is told before anything is opened
    with pytest.raises(SystemExit, match="error: `frames` is 100: 500 `components` need at least as many"):
        main([*command, "--components", "4", "500", "--frames", "100"])
    with pytest.raises(SystemExit, match="error: `frames` is 100: 101 `dims` need at least as many"):
        main([*command, "--components", "100", "--dims", "0", "101", "--frames", "100"])


def test_what_is_missing_is_named(aligned, make_config, tmp_path):
    command = ["--train_data", str(aligned), "--data", str(aligned)]
    with pytest.raises(SystemExit, match="error: .*nowhere cannot be opened: there is no such directory"):
        main([str(tmp_path / "nowhere"), *command])
    HubertConfig().save_pretrained(tmp_path / "hubert")
    with pytest.raises(SystemExit, match="error: .*hubert is of type hubert, not an S-JEPA checkpoint"):
        main([str(tmp_path / "hubert"), *command])
    SJepaForPreTraining(make_config("log_mel")).save_pretrained(tmp_path / "model")
    for option, value, message in (
        ("components", "1", "must be at least 2"),
        ("max_clips", "-5", "must be at least 1"),
        ("dims", "-1", "must be at least 0"),
        ("dims", "49", "has 49, but the encoder's features have 48 dimensions"),
    ):
        with pytest.raises(SystemExit, match=f"error: `{option}` {message}"):
            main([str(tmp_path / "model"), *command, f"--{option}", value])
    with pytest.raises(SystemExit, match="error: .*no-data"):  # all of the encoder's dimensions can be taken
        main([str(tmp_path / "model"), "--train_data", str(tmp_path / "no-data"), *command[2:], "--dims", "48"])
