import pytest
from finetuning_runs import sentence

from training import finetune_classification, finetune_ctc


@pytest.mark.parametrize("script", [finetune_ctc, finetune_classification])
def test_recipes_hold_known_fields_and_a_wrong_one_is_named(script, checkpoint, mine, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(script.RECIPE.read_text() + "learning_rates: 1\n")
    message = sentence(script, checkpoint, mine, tmp_path / "out", "--config", str(recipe))
    assert "unknown fields: learning_rates" in message
