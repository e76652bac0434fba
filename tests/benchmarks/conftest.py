"""Settings of a benchmark of a small model."""

import pytest
import yaml
from accelerate import Accelerator

from benchmarks.steps.candidates import StepArguments


NO_DROPOUT = dict.fromkeys(
    "hidden_dropout activation_dropout attention_dropout feat_proj_dropout predictor_dropout layerdrop".split(), 0.0
)
CHOSEN = (
    "front_end hidden_size num_hidden_layers num_attention_heads intermediate_size conv_dim num_conv_pos_embeddings"
    " num_conv_pos_embedding_groups predictor_intermediate_size predictor_num_hidden_layers num_mel_bins"
).split()


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True, mixed_precision="no")


@pytest.fixture
def make_arguments(make_config, tmp_path):
    """Arguments of a benchmark of a small model without dropout, its recipe in a file."""

    def make(front_end="log_mel", sizes=None, **changes) -> StepArguments:
        small = make_config(front_end, **(NO_DROPOUT | (sizes or {})))
        model_config = {k: v for k, v in small.to_diff_dict().items() if k in NO_DROPOUT or k in CHOSEN}
        recipe = dict(
            model_config=model_config,
            mask_prob=0.5,
            start_layer=2,
            attn_implementation="eager",
            phase1_components=6,
            phase2_components=8,
        )
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        settings = dict(config=str(path), clips=2, seconds=1.0, threads=1, device="cpu", repeats=1)
        return StepArguments(**(settings | changes))

    return make
