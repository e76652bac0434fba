from dataclasses import fields
from pathlib import Path

import pytest

from sjepa_hf import SJepaConfig, SJepaForPreTraining
from training.pretraining.arguments import ARGUMENTS, DECIDED_BY, parse_arguments


FOLDER = Path(__file__).parents[3] / "training" / "recipes"
RECIPES = sorted(path for path in FOLDER.glob("*.yaml") if not path.stem.startswith("finetune"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid(recipe):
    arguments = parse_arguments(["--config", str(recipe), "--train_data", "speech"])
    config = arguments.sjepa_config()
    if arguments.run.phase1_steps:
        assert config.num_mixture_components == arguments.targets.phase1_components
        assert config.mixture_feature_size == 39
    else:
        assert config.num_mixture_components == arguments.targets.phase2_components
    assert arguments.data.train_data == ["speech"]


def test_there_are_the_promised_recipes():
    assert {"demo", "tiny", "small", "base", "adapt"} <= {path.stem for path in RECIPES}


def test_base_is_the_published_model():
    recipe = next(path for path in RECIPES if path.stem == "base")
    arguments = parse_arguments(["--config", str(recipe), "--train_data", "speech"])
    config, published = arguments.sjepa_config().to_dict(), SJepaConfig().to_dict()
    published |= {"num_mixture_components": 100, "mixture_feature_size": 39}
    assert config == published
    assert arguments.run.phase1_learning_rate == 1e-4 and arguments.run.phase2_learning_rate == 2.5e-5
    assert arguments.targets.phase2_components == 500 and arguments.targets.ema_decays == [0.999, 0.9999]


def test_tiny_has_about_three_million_parameters():
    recipe = next(path for path in RECIPES if path.stem == "tiny")
    config = parse_arguments(["--config", str(recipe), "--train_data", "speech"]).sjepa_config()
    assert 2e6 < SJepaForPreTraining(config).sjepa.num_parameters() < 4e6


def test_the_command_line_wins_over_the_recipe(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("phase1_steps: 10\nphase1_warmup_steps: 2\nmodel_config: {hidden_size: 96, num_mel_bins: 9}\n")
    command = ["--config", str(recipe), "--train_data", "a", "b", "--phase1_steps", "20"]
    arguments = parse_arguments([*command, "--model_config", '{"front_end": "waveform", "num_hidden_layers": 3}'])
    config = arguments.sjepa_config()
    assert arguments.run.phase1_steps == 20 and arguments.data.train_data == ["a", "b"]
    assert (config.hidden_size, config.num_mel_bins, config.num_hidden_layers) == (96, 9, 3)


def test_every_field_is_documented():
    for group in ARGUMENTS:
        for name, field in group.__dataclass_fields__.items():
            assert field.metadata.get("help"), f"{group.__name__}.{name}"


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("phase1_step: 3", [], "unknown fields: phase1_step"),
        ("a: [", [], "not YAML"),
        ("{}", ["--model_config", "{hidden"], "not JSON"),
        ("{}", ["--phase1_steps", "0", "--phase2_steps", "0"], "must not both be 0"),
        ("{}", ["--phase1_steps", "10", "--phase1_warmup_steps", "11"], "phase1_warmup_steps"),
        ("{}", ["--start_layer", "7"], "layers 1 to 6"),
        ("{}", ["--adam_beta1", "1"], "`adam_beta1` is 1; it must lie below"),
        ("{}", ["--phase1_decay_steps", "99999"], "`phase1_decay_steps` .99999. must lie between 0 and"),
        ("{}", ["--phase2_decay_steps", "9"], "`phase2_decay_steps` says how .* `phase2_schedule` is constant"),
        ("{}", ["--phase2_final_factor", "0.1"], "`phase2_final_factor` says how .* `phase2_schedule` is constant"),
        ("{}", ["--target_dims", "1000"], "`target_dims` is 1000; it must lie between 1 and the model's 768"),
        ("{}", ["--target_layers", "0", "7"], "`target_layers` names layer 7, but the model has layers 1 to 6"),
        ("{}", ["--max_seconds", "20"], "table of 750 positions"),
        (
            "model_config: {predictor_max_positions: 402}",
            ["--max_seconds", "8.065"],
            "8.065 s, 403 frames. exceeds the predictor's table of 402",
        ),
        ("{}", ["--phase2_schedule", "cos"], "`phase2_schedule` is 'cos'; choose one of linear, cosine, constant"),
        ("hub_strategy: every_save", [], "`hub_strategy` has no effect without `push_to_hub`: set that to true"),
        ("{}", ["--hub_model_id", "a/b"], "`hub_model_id` has no effect without `push_to_hub`"),
        ("{}", ["--seed", "4294967296"], "`seed` must lie between 0 and 2147483647"),
        ("{}", ["--save_steps", "0"], "`save_steps` must be at least 1, got 0"),
        ("{}", ["--save_total_limit", "-1"], "`save_total_limit` must be at least 0, got -1"),
        ("{}", ["--max_grad_norm", "0"], "`max_grad_norm` must be above 0"),
        ("{}", ["--model_config", '{"hidden_sise": 256}'], "`model_config` holds unknown fields: hidden_sise"),
        ("model_config: {mixture_transitions: true}", [], "mixture_transitions, .* decided by target_transitions: "),
        ("{}", ["--model_config", '{"num_frozen_components": 5}'], "decided by frozen_weight and phase1_components"),
        ("{}", ["--model_config", '{"hidden_size": 100}'], "`model_config`: .*must be a multiple of"),
        ("{}", ["--model_config", '{"conv_stride": [5, 2, 2, 2, 2, 2, 1]}'], "makes frames of 400 samples every 160 "),
        ("{}", ["--model_config", "5"], "`model_config` is 5"),
        ("model_config:", [], "`model_config` in the recipe .* must hold fields of SJepaConfig"),
        ("- phase1_steps", [], "holds no fields"),
    ],
)
def test_wrong_settings_get_a_sentence(tmp_path, recipe, options, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    with pytest.raises(ValueError, match=message):
        parse_arguments(["--config", str(path), "--train_data", "speech", *options])


def test_options_decide_all_about_the_mixtures():
    about = {f.name for f in fields(SJepaConfig) if f.name.startswith("mixture_") or f.name.endswith("_components")}
    assert DECIDED_BY.keys() == about | {"frozen_feature_size"}
    options = {field.name for group in ARGUMENTS for field in fields(group)}
    named = " ".join(DECIDED_BY.values()).replace(",", "").split()
    assert set(named) <= options | {"and", "or"}


def test_one_value_will_do_for_a_list_in_a_recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("train_data: my_audio\ntarget_layers: 3\nema_decays: 0.99\n")
    arguments = parse_arguments(["--config", str(path)])
    assert arguments.data.train_data == ["my_audio"]
    assert arguments.targets.target_layers == [3] and arguments.targets.ema_decays == [0.99]


def test_what_phase_2_needs_is_not_asked_of_phase_1_alone():
    short = ["--train_data", "speech", "--model_config", '{"num_hidden_layers": 2}']
    with pytest.raises(ValueError, match="layers 1 to 2"):
        parse_arguments(short)
    assert parse_arguments([*short, "--phase2_steps", "0"]).sjepa_config().num_hidden_layers == 2


def test_an_absent_recipe_gets_a_sentence():
    with pytest.raises(ValueError, match="no recipe nowhere.yaml"):
        parse_arguments(["--config", "nowhere.yaml", "--train_data", "speech"])
