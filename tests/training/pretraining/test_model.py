"""Model of a run that starts from the weights of another."""

import pytest
from pretraining_runs import command
from transformers import AutoModelForPreTraining
from transformers.modeling_layers import GradientCheckpointingLayer

from training import pretrain


def test_a_run_starts_from_the_weights_of_another(finished, noise, tmp_path):
    """Sizes and weights are the checkpoint's; mixture and last layer are made anew, as this run's settings say."""
    final = finished[0] / "final"
    begin = ["--initial_checkpoint", str(final), "--phase1_components", "5", "--report_to", "none"]
    run = pretrain.prepare(pretrain.parse_arguments(command(noise, tmp_path, *begin)))
    run.lock.release()
    theirs = AutoModelForPreTraining.from_pretrained(final).state_dict()
    ours = run.model.state_dict()
    assert ours.keys() == theirs.keys() and run.state.step == 0
    others = {name for name in ours if not ours[name].equal(theirs[name])}
    named = {"cluster_head.output.weight", "cluster_head.output.bias"}
    assert others == named | {f"mixture.{name}" for name in ("weights", "means", "variances", "variance_floor")}
    assert run.model.mixture.means.shape == (5, 39) and ours["cluster_head.output.weight"].shape == (5, 32)
    assert not ours["cluster_head.output.weight"].equal(theirs["cluster_head.output.weight"][:5])
    for options, sentence in (
        (["--start_layer", "4"], "`start_layer` names layer 4, but the model has layers 1 to 3"),
        (["--phase1_steps", "0", "--frozen_weight", "0.5"], "there are none: `phase1_steps` is 0"),
        (["--initial_checkpoint", str(tmp_path / "absent")], "absent cannot be opened"),
        (["--model_config", '{"hidden_size": 64}'], "`model_config` has hidden_size = 64, but the model of .* has 32"),
        (["--mixed_precision", "fp16"], "`mixed_precision` fp16 needs a GPU"),
        (["--attn_implementation", "flash_attention_2"], "final cannot be opened: .*FlashAttention2"),
        (["--report_to", "wandb"], "`report_to` is wandb, which is not installed"),
        (["--report_to", "paper"], "`report_to` is 'paper'; choose one of none, all, "),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{sentence}"):
            pretrain.main(command(noise, tmp_path, *begin, *options))


@pytest.mark.filterwarnings("error:.*checkpointing:FutureWarning")
def test_activations_are_checkpointed_by_the_name_that_transformers_has_for_it(noise, tmp_path):
    options = ["--gradient_checkpointing", "true", "--report_to", "none"]
    run = pretrain.prepare(pretrain.parse_arguments(command(noise, tmp_path, *options)))
    run.lock.release()
    layers = [module for module in run.model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert layers and all(layer.gradient_checkpointing for layer in layers)


def test_phase_2_of_a_new_model_is_warned_of(finished, noise, tmp_path, caplog):
    begin = ["--phase1_steps", "0", "--report_to", "none", "--dry_run", "true"]
    for more, warned in (["--initial_checkpoint", str(finished[0] / "final")], False), ([], True):
        pretrain.main(command(noise, tmp_path, *begin, *more))
        assert ("PHASE 2 FOLLOWS THE RANDOM WEIGHTS OF A NEW MODEL" in caplog.text) == warned


def test_an_attention_that_is_not_installed_is_refused(noise, tmp_path):
    for name, why in (("flash_attention_2", "FlashAttention2 .*"), ("fast", ".*is not supported")):
        with pytest.raises(SystemExit, match=f"error: `attn_implementation` {name}: {why}"):
            pretrain.main(command(noise, tmp_path, "--attn_implementation", name, "--report_to", "none"))


def test_targets_that_are_kept_must_be_fitted_to_the_features_of_phase_1(finished, noise, tmp_path):
    """Other features may have as many values (mfcc, mfcc_cmn); a mixture without weights of its own is random."""
    phase_1 = finished[0] / "checkpoint-3"
    random = AutoModelForPreTraining.from_pretrained(phase_1)
    random.replace_mixture(8, 39)
    random.save_pretrained(tmp_path / "random")
    keeps = ["--phase1_steps", "0", "--frozen_weight", "0.5", "--report_to", "none", "--dry_run", "true"]
    for checkpoint, features in ((tmp_path / "random", "mfcc"), (phase_1, "mfcc_cmn")):
        options = [*keeps, "--initial_checkpoint", str(checkpoint), "--phase1_features", features]
        with pytest.raises(SystemExit, match=f"error: .*names no checkpoint with a fitted mixture over {features}"):
            pretrain.main(command(noise, tmp_path, *options))
    pretrain.main(command(noise, tmp_path, *keeps, "--initial_checkpoint", str(phase_1)))


def test_a_run_with_transitions_starts_from_weights_without(finished, noise, tmp_path):
    """Its mixture is new all the same; one that is kept must have been fitted as this run's are."""
    begin = ["--target_transitions", "true", "--report_to", "none", "--initial_checkpoint"]
    run = pretrain.prepare(pretrain.parse_arguments(command(noise, tmp_path, *begin, str(finished[0] / "final"))))
    run.lock.release()
    assert run.model.config.mixture_transitions and run.model.mixture.transitions.num_states == 8
    keeps = [*begin, str(finished[0] / "checkpoint-3"), "--phase1_steps", "0", "--frozen_weight", "0.5"]
    with pytest.raises(
        SystemExit, match="`target_transitions` is True, .* which `frozen_weight` keeps, .* with False"
    ):
        pretrain.main(command(noise, tmp_path, *keeps))
