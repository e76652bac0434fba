"""The whole run on a few seconds of noise: both phases, the boundary, checkpoints, resuming, bad input."""

import itertools
import json

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from pretraining_runs import assert_equal_weights, command, in_one_thread, weights, write_noise
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForPreTraining

from sjepa_hf import SJepaForPreTraining, SJepaModel
from training import pretrain
from training.common.output_directory import checkpoints
from training.pretraining import phases
from training.pretraining.checkpoint_layout import damage, load_loop_state
from training.pretraining.monitoring import read_history
from training.pretraining.resuming import find_checkpoint
from training.pretraining.training_data import TrainingData
from training.targets.targets import FrozenTargets, OnlineTargets


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("noise"), count=12, shortest=0.5)


@pytest.fixture(scope="module")
def finished(noise, tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    pretrain.main(command(noise, directory))
    return directory / "out"


def test_the_result_opens_with_the_auto_classes(finished):
    model = AutoModelForPreTraining.from_pretrained(finished / "final").eval()
    assert (model.mixture.num_components, model.mixture.num_features) == (6, 32)
    assert torch.isfinite(model(torch.randn(1, 8000)).logits).all()
    assert type(AutoModel.from_pretrained(finished / "final")) is SJepaModel
    extractor = AutoFeatureExtractor.from_pretrained(finished / "final")
    inputs = extractor([np.zeros(8000), np.zeros(4000)], sampling_rate=16000, padding=True, return_tensors="pt")
    assert inputs["attention_mask"].sum(-1).tolist() == [8000, 4000]
    for picture in ("loss", "hidden_frames", "effective_rank", "predictor_entropy"):
        assert (finished / "final" / f"{picture}.png").is_file()


def test_the_history_tells_the_whole_run(finished):
    history = read_history(finished / "metrics.jsonl")
    assert [m["phase"] for m in history if m["step"] in (6, 8)] == [1, 2]
    for line in history:
        for name in (
            "masked_kl", "baseline_kl", "clip_mean_kl", "gain_over_clip_mean",
            "target_entropy_bits", "predictor_entropy_bits", "mixture_perplexity",
            "live_components", "learning_rate", "gradient_norm", "padded_share", "hours_seen",
        ):  # fmt: skip
            assert np.isfinite(line[name]), name
        for name in ("masked_kl_by_distance", "clip_mean_kl_by_distance"):
            assert len(line[name]) == 5 and np.isfinite(line[name][0])
        assert ("visible_kl" in line) == (line["step"] <= 10), "visible frames count until the middle of phase 2"
        assert ("active_layer" in line) == (line["phase"] == 2)
    ranks = [m["effective_ranks"] for m in history if "effective_ranks" in m]
    assert len(ranks) == 4 and all(len(r) == 4 and min(r) >= 1 for r in ranks), "the input and three layers"
    decays = {m["step"]: m["ema_decay"] for m in history if m["phase"] == 2}
    assert decays[8] == 0.999 and decays[10] == 0.9999
    rates = {m["step"]: m["learning_rate"] for m in history}
    assert rates[1] == 5e-4 and rates[2] == 1e-3 and rates[14] == 1e-3


def test_without_padding_no_attention_mask_trains_as_one_that_hides_nothing(tmp_path, monkeypatch):
    (tmp_path / "noise").mkdir()
    write_noise(tmp_path / "noise", count=8, shortest=2.9)  # all are cropped to two seconds
    short = ["--phase1_steps", "2", "--phase2_steps", "2", "--report_to", "none", "--logging_steps", "1"]
    losses = []
    for name in ("none", "ones"):
        (tmp_path / name).mkdir()
        pretrain.main(command(tmp_path / "noise", tmp_path / name, *short))
        losses.append([line["masked_kl"] for line in read_history(tmp_path / name / "out" / "metrics.jsonl")])
        monkeypatch.setattr("training.data.batches.attention_mask", hides_nothing)
    assert len(losses[0]) == 4 and losses[0] == losses[1]
    assert_equal_weights(*(tmp_path / name / "out" / "final" for name in ("none", "ones")))


def hides_nothing(lengths):
    return torch.ones(len(lengths), int(lengths.max()), dtype=torch.bool)


def test_the_checkpoints_hold_the_loop_state(finished):
    assert sorted(path.name for path in finished.glob("checkpoint-*")) == [
        "checkpoint-12",
        "checkpoint-4",
        "checkpoint-8",
    ]
    assert not list(finished.glob(".incomplete*")) and not list(finished.glob(".checkpoint*"))
    state = load_loop_state(finished / "checkpoint-8")
    assert state.step == state.data["batches"] == 8 and state.seconds > 10
    assert damage(finished / "checkpoint-8") is None
    assert find_checkpoint(finished, "latest").name == "final"
    assert not (finished / "checkpoint-4" / "training_state" / "teacher.safetensors").exists()
    assert (finished / "checkpoint-8" / "training_state" / "teacher.safetensors").exists()


@pytest.mark.parametrize("step", [4, 8])
def test_resuming_gives_the_weights_of_the_uninterrupted_run(finished, noise, tmp_path, step):
    checkpoint = finished / f"checkpoint-{step}"
    pretrain.main(command(noise, tmp_path, "--resume_from_checkpoint", str(checkpoint)))
    expected = AutoModelForPreTraining.from_pretrained(finished / "final").state_dict()
    resumed = AutoModelForPreTraining.from_pretrained(tmp_path / "out" / "final").state_dict()
    for name, tensor in expected.items():
        assert torch.equal(resumed[name], tensor), name


@pytest.mark.parametrize(
    ("step", "options", "sentence"),
    [
        (4, ["--phase1_features", "mfcc_cmn"], "`phase1_features` is 'mfcc_cmn', but the mixture of .* with 'mfcc'"),
        (4, ["--phase1_components", "9"], "`phase1_components` is 9, but the mixture of .* with 8"),
        (8, ["--phase1_steps", "12"], "`phase1_steps` is 12, but .*checkpoint-8 is of phase 2"),
        (8, ["--target_layers", "1", "2"], r"`target_layers` is \[1, 2\], but"),
        (4, ["--target_transitions", "true"], "`target_transitions` is True, but the mixture of .* with False"),
        (8, ["--frozen_weight", "0.5"], "has not kept the mixture of phase 1"),
    ],
)
def test_a_run_is_not_resumed_onto_other_targets(finished, noise, tmp_path, step, options, sentence):
    resumed = ["--resume_from_checkpoint", str(finished / f"checkpoint-{step}"), *options]
    with pytest.raises(SystemExit, match=f"error: .*{sentence}"):
        pretrain.main(command(noise, tmp_path, *resumed))


def test_a_run_that_goes_back_leaves_what_came_after_behind(noise, tmp_path, caplog):
    short = ["--phase1_steps", "12", "--phase2_steps", "0", "--report_to", "none", "--save_total_limit", "2"]
    pretrain.main(command(noise, tmp_path, *short))
    out = tmp_path / "out"
    assert [path.name for path in checkpoints(out)] == ["checkpoint-8", "checkpoint-12"]
    with pytest.raises(SystemExit, match="error: .*holds an earlier run"):
        pretrain.main(command(noise, tmp_path, *short))
    back = ["--resume_from_checkpoint", str(out / "checkpoint-8"), "--save_steps", "3"]
    pretrain.main(command(noise, tmp_path, *short, *back))
    assert [path.name for path in checkpoints(out)] == ["checkpoint-9", "checkpoint-12"]
    assert (out / "checkpoint-12.abandoned").is_dir() and "lies beyond step 8" in caplog.text


def test_an_interrupted_run_resumes_from_its_latest_checkpoint(noise, tmp_path):
    pretrain.main(command(noise, tmp_path, "--phase2_steps", "0"))
    pretrain.main(command(noise, tmp_path, "--resume_from_checkpoint", "latest"))
    steps = [m["step"] for m in read_history(tmp_path / "out" / "metrics.jsonl")]
    assert steps == sorted(set(steps)) and steps[-1] == 14


def test_the_waveform_front_end_and_gradient_accumulation(noise, tmp_path):
    options = ("--phase1_steps", "3", "--phase2_steps", "3", "--gradient_accumulation_steps", "2")
    pretrain.main(command(noise, tmp_path, *options, front_end="waveform"))
    state = load_loop_state(tmp_path / "out" / "final")
    assert (state.step, state.data["batches"]) == (6, 12)
    assert AutoModel.from_pretrained(tmp_path / "out" / "final").config.front_end == "waveform"


def test_all_that_is_predicted_is_made_before_the_prediction(noise, tmp_path, monkeypatch):
    options = ["--report_to", "none", "--frozen_weight", "0.5"]
    run = pretrain.prepare(pretrain.parse_arguments(command(noise, tmp_path, *options)))
    phases.fit(run)
    batch = run.data.next()
    assert pretrain.soft_targets(run, batch)[0].keys() == {"target_posteriors"}
    run.state.step = 10  # amid phase 2
    phases.fit(run)
    targets, _ = pretrain.soft_targets(run, batch)
    assert targets.pop("frozen_weight") == 0.5
    assert {name: values.shape[2] for name, values in targets.items()} == {
        "target_posteriors": 6,
        "frozen_posteriors": 8,
    }
    for made, asked in itertools.product((run.targets, run.frozen_targets), ("posteriors", "expectation")):
        monkeypatch.setattr(made, asked, lambda batch: pytest.fail("made while it is predicted"))
    output = pretrain.predict(run, batch, targets | {"frozen_weight": 0.3})
    assert output.loss.isfinite() and output.frozen_loss.isfinite()
    run.lock.release()


def test_mel_bins_are_hidden_until_the_late_steps_and_the_same_ones_after_resuming(noise, tmp_path, monkeypatch):
    hidden, forward = [], SJepaForPreTraining.forward

    def spy(self, *args, **given):
        if self.training:
            hidden.append(given.get("mask_mel_indices"))
        return forward(self, *args, **given)

    monkeypatch.setattr(SJepaForPreTraining, "forward", spy)
    options = ["--phase1_steps", "3", "--phase2_steps", "4", "--masked_only_after", "0.5", "--mel_mask", "30"]
    options += ["--model_config", '{"stem_kernel_size": 3, "log_mel_cmn": true}']
    in_one_thread(command(noise, tmp_path, *options))
    bands, late = hidden[:5], hidden[5:]
    assert [mask.shape[2] for mask in bands] == [64] * 5 and all(0 < mask.float().mean() < 1 for mask in bands)
    assert late == [None, None]
    whole = weights(tmp_path / "out" / "final")
    again = [
        "--resume_from_checkpoint",
        str(tmp_path / "out" / "checkpoint-4"),
        "--output_dir",
        str(tmp_path / "again"),
    ]
    in_one_thread([*command(noise, tmp_path, *options), *again])
    assert torch.equal(hidden[7], bands[4]) and hidden[8:] == late
    for name, tensor in weights(tmp_path / "again" / "final").items():
        assert torch.equal(tensor, whole[name]), name


def test_a_compiled_run_trains_alike(tmp_path, monkeypatch):
    """Student and EMA encoder are captured as graphs through both phases. No clip is padded: few graphs, less time."""
    noise = write_noise(tmp_path, count=6, shortest=2.0)
    compiled, torch_compile, histories = [], torch.compile, {}

    def compile_without_a_backend(function, **options):
        compiled.append(options)
        return torch_compile(function, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", compile_without_a_backend)
    options = ["--phase1_steps", "2", "--phase2_steps", "1", "--phase1_warmup_steps", "1", "--report_to", "none"]
    options += ["--logging_steps", "1", "--layer_check_steps", "100", "--start_layer", "1"]
    options += ["--model_config", '{"num_hidden_layers": 1}']
    for torch_compile_too in ("false", "true"):
        here = tmp_path / torch_compile_too
        here.mkdir()
        pretrain.main(command(noise, here, *options, "--torch_compile", torch_compile_too))
        histories[torch_compile_too] = read_history(here / "out" / "metrics.jsonl")
    assert compiled == [{"dynamic": True}] * 2
    for line, other in zip(histories["true"], histories["false"], strict=True):
        assert line["masked_kl"] == pytest.approx(other["masked_kl"], rel=1e-3), line["step"]


def test_visible_frames_can_be_left_out(noise, tmp_path):
    pretrain.main(command(noise, tmp_path, "--visible_loss", "false", "--phase1_steps", "3", "--phase2_steps", "2"))
    history = read_history(tmp_path / "out" / "metrics.jsonl")
    assert {m["phase"] for m in history} == {1, 2}
    assert all("visible_kl" not in m and np.isfinite(m["masked_kl"]) for m in history)


def test_bad_audio_is_skipped_counted_and_named(noise, tmp_path, caplog):
    manifest = tmp_path / "clips.jsonl"
    lines = [{"audio_filepath": str(path)} for path in sorted(noise.glob("*.wav"))]
    lines.append({"audio_filepath": str(tmp_path / "gone.wav")})
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ("--phase1_steps", "4", "--phase2_steps", "0", "--max_bad_fraction", "0.5")
    pretrain.main(command(manifest, tmp_path, *options))
    assert "gone.wav" in caplog.text and "missing" in caplog.text
    assert read_history(tmp_path / "out" / "metrics.jsonl")[-1]["skipped_clips"] >= 1


def test_errors_are_one_sentence(noise, tmp_path):
    with pytest.raises(SystemExit, match="error: .*no complete checkpoint in"):
        pretrain.main(command(noise, tmp_path, "--resume_from_checkpoint", "latest"))
    with pytest.raises(SystemExit, match="error: `resume_from_checkpoint` '' is not a directory"):
        pretrain.main(command(noise, tmp_path, "--resume_from_checkpoint="))
    with pytest.raises(SystemExit, match="error: .*phase1_warmup_steps"):
        pretrain.main(command(noise, tmp_path, "--phase1_warmup_steps", "50"))
    with pytest.raises(SystemExit, match="error: `mel_mask` hides bands of up to 65 mel bins, but the model has 64"):
        pretrain.main(command(noise, tmp_path, "--mel_mask", "65"))
    with pytest.raises(SystemExit, match="error: `mel_mask` .* but the model reads the waveform"):
        pretrain.main(command(noise, tmp_path, "--mel_mask", "5", front_end="waveform"))
    with pytest.raises(SystemExit, match="error: .*absent"):
        pretrain.main(command(tmp_path / "absent", tmp_path))


def test_real_speech_is_predicted_better_than_by_a_constant_guess(speech, tmp_path):
    """8 kHz FLAC of real digits: in seconds of training the loss falls below what the mixture's weights alone give."""
    options = ["--phase1_steps", "60", "--phase2_steps", "0", "--phase1_components", "20", "--batch_seconds", "10"]
    options += ["--phase1_learning_rate", "5e-3", "--phase1_warmup_steps", "10", "--logging_steps", "20"]
    options += ["--fit_hours", "0.05", "--bucket_buffer_size", "600", "--layer_check_steps", "60"]
    pretrain.main(command(speech / "digits_8khz", tmp_path, *options))
    history = read_history(tmp_path / "out" / "metrics.jsonl")
    assert history[-1]["visible_kl"] < 0.92 * history[-1]["baseline_kl"]
    assert history[-1]["masked_kl"] < 0.98 * history[-1]["baseline_kl"]
    assert history[-1]["skipped_clips"] == 0 and history[-1]["padded_share"] < 0.2


def test_the_gradient_is_clipped_and_its_norm_told_as_it_was_before(noise, tmp_path, monkeypatch):
    """That of the whole step, whose micro-batches are added up first."""
    applied, told, update = [], [], pretrain.update_weights

    def spy(run, norm):
        applied.append(torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None]).norm())
        return update(run, norm)

    monkeypatch.setattr(pretrain, "update_weights", spy)
    options = ["--phase1_steps", "1", "--phase2_steps", "0", "--phase1_warmup_steps", "0", "--report_to", "none"]
    for limit in ("1e-3", "1e9"):
        (tmp_path / limit).mkdir()
        more = ["--gradient_accumulation_steps", "2", "--max_grad_norm", limit]
        pretrain.main(command(noise, tmp_path / limit, *options, *more))
        told.append(read_history(tmp_path / limit / "out" / "metrics.jsonl")[-1]["gradient_norm"])
    clipped, whole = map(float, applied)
    assert clipped == pytest.approx(1e-3, rel=1e-3) and whole > 0.1
    assert told == [pytest.approx(whole, rel=1e-5)] * 2


@pytest.mark.parametrize("kept", ["0", "0.5"], ids=["", "with those of phase 1 beside"])
def test_the_student_hears_disturbed_audio_and_the_targets_clean_audio(noise, tmp_path, monkeypatch, kept):
    """With p_mix and p_noise of 0.25 each, until `masked_only_after` of phase 2; then both hear what was read."""
    read, student, targets = [], [], []
    next_batch, soft_targets, forward = TrainingData.next, pretrain.soft_targets, SJepaForPreTraining.forward

    def spy_on_data(self):
        batch = next_batch(self)
        read.append((batch["input_values"].clone(), batch["lengths"]))
        return batch

    def spy_on_targets(run, batch):
        targets.append([])
        return soft_targets(run, batch)

    def spy_on_student(self, *args, **given):
        if self.training:
            student.append(args[0].clone())
        return forward(self, *args, **given)

    monkeypatch.setattr(TrainingData, "next", spy_on_data)
    monkeypatch.setattr(pretrain, "soft_targets", spy_on_targets)
    monkeypatch.setattr(SJepaForPreTraining, "forward", spy_on_student)
    for kind in (FrozenTargets, OnlineTargets):

        def spy_on_features(self, batch, features=kind.features):
            if len(targets) > len(student):  # in a step, and no fit
                targets[-1].append(batch["input_values"].clone())
            return features(self, batch)

        monkeypatch.setattr(kind, "features", spy_on_features)
    options = ["--phase1_steps", "6", "--phase2_steps", "8", "--masked_only_after", "0.5", "--report_to", "none"]
    options += ["--batch_seconds", "16", "--frozen_weight", kept]
    pretrain.main(command(noise, tmp_path, *options))
    assert len(read) == len(student) == 14
    assert [len(heard) for heard in targets] == [1] * 6 + [1 + (kept != "0")] * 8
    assert all(heard.equal(clean) for (clean, _), each in zip(read, targets) for heard in each)
    assert all(heard.equal(clean) for (clean, _), heard in zip(read[10:], student[10:]))
    for phase in (slice(6), slice(6, 10)):
        changed = []  # share of each clip's samples
        for (clean, lengths), heard in zip(read[phase], student[phase]):
            other = heard != clean
            changed += [row[:length].float().mean().item() for row, length in zip(other, lengths)]
            assert not any(row[length:].any() for row, length in zip(other, lengths)), "padding stays"
        mixed, noisy = (sum(low < share <= high for share in changed) for low, high in ((0, 0.5), (0.9, 1)))
        assert min(mixed, noisy) > 0 and 0.25 < (mixed + noisy) / len(changed) < 0.75
        assert mixed + noisy == sum(share > 0 for share in changed)


def test_tensorboard_gets_the_figures_to_the_last_step(finished):
    """One file of events, and the last loss in it is that of the history."""
    (events,) = finished.rglob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events)).Reload()
    losses = accumulator.Scalars("masked_kl")
    history = read_history(finished / "metrics.jsonl")
    assert [event.step for event in losses] == [line["step"] for line in history]
    assert losses[-1].step == 14 and losses[-1].value == pytest.approx(history[-1]["masked_kl"], rel=1e-6)


def test_in_bf16_the_loss_is_nearly_that_of_fp32_and_what_is_kept_is_fp32(noise, tmp_path, monkeypatch):
    """Two steps of each phase, resumed within the second to the same bits."""
    options = ["--phase1_steps", "2", "--phase2_steps", "2", "--phase1_warmup_steps", "0", "--report_to", "none"]
    options += ["--logging_steps", "1", "--save_steps", "3", "--phase1_learning_rate", "1e-2"]
    figures, given = {}, {}
    for precision in ("no", "bf16"):
        (tmp_path / precision).mkdir()
        monkeypatch.setattr(AcceleratorState, "_shared_state", {})  # it keeps the precision of the first run
        given[precision] = [*command(noise, tmp_path / precision, *options), "--mixed_precision", precision]
        in_one_thread(given[precision])
        history = read_history(tmp_path / precision / "out" / "metrics.jsonl")
        figures[precision] = torch.tensor([[line["masked_kl"], line["gradient_norm"]] for line in history])
    whole = tmp_path / "bf16" / "out"
    apart = (figures["bf16"] / figures["no"] - 1).abs()
    assert len(apart) == 4 and apart[:, 0].max() < 0.03 and apart[:, 1].max() < 0.15
    assert apart[:, 1].min() > 0, "it is not fp32"
    kept = weights(whole / "checkpoint-3") | load_file(whole / "checkpoint-3/training_state/teacher.safetensors")
    kept = {name: tensor for name, tensor in kept.items() if tensor.is_floating_point()}
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32} and "mixture.means" in kept
    rounded = [name for name, tensor in kept.items() if tensor.ndim > 1 and tensor.bfloat16().float().equal(tensor)]
    assert rounded == [], "digits that bf16 has not"
    again = ["--resume_from_checkpoint", str(whole / "checkpoint-3"), "--output_dir", str(tmp_path / "again")]
    in_one_thread([*given["bf16"], *again])
    assert_equal_weights(whole / "final", tmp_path / "again" / "final")
