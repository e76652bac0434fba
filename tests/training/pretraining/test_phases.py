"""Phases: the boundary, and what a change of the active layer brings."""

import time

import pytest
import torch
from pretraining_runs import command

from training import pretrain
from training.pretraining import phases
from training.pretraining.checkpointing import save_step
from training.pretraining.monitoring import read_history
from training.targets.targets import FrozenTargets, OnlineTargets


@pytest.mark.parametrize(
    "options", [("--layer_check_steps", "14"), ("--layer_check_steps", "9", "--target_layers", "1", "2")]
)
def test_clusters_start_anew_only_where_they_are_others_and_training_goes_on(noise, tmp_path, monkeypatch, options):
    """Not for a layer that leads at the last step, nor for one that is not what the targets are read from."""
    monkeypatch.setattr(phases, "layer_ranks", lambda *_, **__: [9.0, 3.0, 2.0, 1.0])
    started, restart = [], phases.restart_head
    monkeypatch.setattr(phases, "restart_head", lambda run: (started.append(run.state.step), restart(run)))
    pretrain.main(command(noise, tmp_path, *options))
    assert started == [6]
    last = read_history(tmp_path / "out" / "metrics.jsonl")[-1]
    assert last.get("active_layer") == (None if "--target_layers" in options else 2)


def test_the_log_names_what_the_mixture_of_phase_1_is_over(noise, tmp_path, caplog):
    caplog.set_level("INFO")
    options = ["--phase1_features", "log_mel", "--report_to", "none"]
    phases.begin_phase_1(pretrain.prepare(pretrain.parse_arguments(command(noise, tmp_path, *options))))
    assert "for the mixture of phase 1, over log_mel." in caplog.text and "MFCC" not in caplog.text


def test_the_mixture_of_phase_1_is_fitted_to_so_much_audio(noise, tmp_path):
    """3.6 seconds, and to the end of the batch."""
    options = ["--num_workers", "0", "--batch_seconds", "2", "--report_to", "none", "--fit_hours", "0.001"]
    run = pretrain.prepare(pretrain.parse_arguments(command(noise, tmp_path, *options)))
    read, features = [], run.targets.features
    run.targets.features = lambda batch: read.append(batch["seconds"]) or features(batch)
    phases.begin_phase_1(run)
    run.lock.release()
    assert 3.6 <= sum(read) < 5.7 and run.targets.fitted


def test_transitions_are_fitted_where_they_are_asked_for(noise, tmp_path):
    options = ["--num_workers", "0", "--report_to", "none", "--target_transitions", "true"]
    run = pretrain.prepare(pretrain.parse_arguments(command(noise, tmp_path, *options)))
    began = time.monotonic()
    seconds = phases.begin_phase_1(run)
    run.lock.release()
    assert 0 < seconds <= time.monotonic() - began
    pairs = run.model.mixture.transitions.pairs
    assert (pairs - pairs.sum(0) * pairs.sum(1, keepdim=True)).abs().max() > 1e-3, "states depend on those before"


def test_the_boundary_keeps_what_it_should(noise, tmp_path):
    """EMA encoder := encoder; optimizer state stays, but for the head's new last layer; the mixture fits features."""
    run = pretrain.prepare(pretrain.parse_arguments(command(noise, tmp_path, "--report_to", "none")))
    batch = run.data.next()
    run.model(
        batch["input_values"], batch["attention_mask"], batch["mask_time_indices"], run.targets.posteriors(batch)
    ).loss.backward()
    run.optimizer.step()
    assert isinstance(run.targets, FrozenTargets)
    kept = {name: p for name, p in run.model.named_parameters() if not name.startswith("cluster_head.output")}
    phases.begin_phase_2(run)
    assert isinstance(run.targets, OnlineTargets)
    now = dict(run.model.named_parameters())
    assert all(now[name] is p and "exp_avg" in run.optimizer.state[p] for name, p in kept.items())
    optimised = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in now.values()}
    assert len(run.optimizer.state) == len(kept)
    for student, teacher in zip(run.model.sjepa.parameters(), run.targets.teacher.parameters()):
        assert torch.equal(student, teacher) and student is not teacher
    features = run.targets.features(batch).flatten(0, 1)
    untrained = type(run.model.mixture)(6, 32)
    found, before = (mixture.log_joint(features).logsumexp(-1).mean() for mixture in (run.model.mixture, untrained))
    assert found > before


def test_targets_say_whether_a_fit_is_due(noise, tmp_path, monkeypatch):
    """Before phase 1, at the boundary, and where another layer leads; the last through a checkpoint, too."""
    arguments = command(noise, tmp_path, "--report_to", "none")
    run = pretrain.prepare(pretrain.parse_arguments(arguments))
    assert run.targets.phase == 1 and phases.fit_is_due(run)
    phases.fit(run)
    assert run.targets.phase == 1 and not phases.fit_is_due(run)
    run.state.step = 6
    assert phases.fit_is_due(run)
    phases.fit(run)
    assert run.targets.phase == 2 and not phases.fit_is_due(run)
    run.state.step = 9
    monkeypatch.setattr(phases, "layer_ranks", lambda *_: [9.0, 3.0, 2.0, 1.0])
    phases.choose_layer(run, [run.data.next()])
    assert run.layer_choice.active == 1 and phases.fit_is_due(run)
    save_step(run)
    assert run.model.config.mixture_features is None, "the mixture is not over the layer that leads"
    run.lock.release()
    resumed = pretrain.prepare(pretrain.parse_arguments([*arguments, "--resume_from_checkpoint", "latest"]))
    assert resumed.targets.phase == 2 and phases.fit_is_due(resumed)
    phases.fit(resumed)
    assert not phases.fit_is_due(resumed)
    resumed.lock.release()


def test_no_layer_is_chosen_by_rank_where_others_make_the_targets(noise, tmp_path, monkeypatch):
    """`start_layer: null` beside `target_layers`, through a checkpoint too."""
    monkeypatch.setattr(phases, "begin_on_highest_rank", lambda run: pytest.fail("measured"))
    options = ["--phase1_steps", "2", "--phase2_steps", "2", "--report_to", "none", "--target_layers", "1", "2"]
    arguments = command(noise, tmp_path, *options, "--save_steps", "3", "--layer_check_steps", "100")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("start_layer: 2", "start_layer: null"))
    pretrain.main(arguments)
    pretrain.main([*arguments, "--resume_from_checkpoint", str(tmp_path / "out" / "checkpoint-3")])
    assert "active_layer" not in read_history(tmp_path / "out" / "metrics.jsonl")[-1]


def test_another_layer_means_other_clusters_and_a_new_last_layer(noise, tmp_path):
    run = pretrain.prepare(pretrain.parse_arguments(command(noise, tmp_path, "--report_to", "none")))
    phases.begin_phase_2(run)
    batch = run.data.next()
    run.model(
        batch["input_values"], batch["attention_mask"], batch["mask_time_indices"], run.targets.posteriors(batch)
    ).loss.backward()
    run.optimizer.step()
    head, means = run.model.cluster_head, run.model.mixture.means.clone()
    first, last = head.layers[0].weight.clone(), head.output.weight.clone()
    random_state = torch.get_rng_state()
    run.layer_choice.active = 1
    run.state.step = 7
    phases.refit_on_new_layer(run)
    assert not torch.equal(run.model.mixture.means, means)
    assert torch.equal(head.layers[0].weight, first) and not torch.equal(head.output.weight, last)
    assert head.output.weight not in run.optimizer.state and head.layers[0].weight in run.optimizer.state
    assert torch.equal(torch.get_rng_state(), random_state), "the run's own random numbers go on as they were"
