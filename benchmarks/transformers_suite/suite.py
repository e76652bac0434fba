"""What Transformers' tests of models are given: small models of both front ends, with inputs and labels for each head.

Collected by pytest alone, with a checkout of Transformers on the path (`benchmarks.transformers_tests`).
"""

import unittest

import torch
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from sjepa_hf import (
    SJepaConfig,
    SJepaForAudioFrameClassification,
    SJepaForCTC,
    SJepaForPreTraining,
    SJepaForSequenceClassification,
    SJepaForXVector,
    SJepaModel,
)


CLIPS, SAMPLES, LAYERS, HIDDEN, CLUSTERS = 3, 8000, 2, 16, 10
FRAMES = (SAMPLES - 400) // 320 + 1
MODEL_MAPPING_NAMES["sjepa"] = SJepaModel.__name__  # as if it were one of theirs: the tests ask it for no loss


class Tester:
    """Sizes and inputs, under the names by which the tests ask for them."""

    batch_size, seq_length, encoder_seq_length, is_training = CLIPS, SAMPLES, FRAMES, True
    hidden_size, num_hidden_layers, num_attention_heads = HIDDEN, LAYERS, 2

    def __init__(self, front_end: str):
        self.config = {
            "front_end": front_end,
            "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "intermediate_size": 20,
            "conv_dim": (16,) * 7,
            "num_mel_bins": 20,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 2,
            "predictor_num_hidden_layers": 1,
            "predictor_num_attention_heads": 2,
            "predictor_intermediate_size": 20,
            "num_mixture_components": CLUSTERS,
            "classifier_proj_size": 16,
            "tdnn_dim": (16, 16, 16, 16, 20),
            "xvector_output_dim": 16,
        }

    def prepare_config_and_inputs_for_common(self) -> tuple[SJepaConfig, dict[str, torch.Tensor]]:
        attention_mask = torch.ones(CLIPS, SAMPLES, dtype=torch.long)
        attention_mask[1, 6000:] = 0
        inputs = {"input_values": floats_tensor([CLIPS, SAMPLES]), "attention_mask": attention_mask}
        return SJepaConfig(**self.config), inputs


class ModelTests(ModelTesterMixin):
    """All of Transformers' tests of a model, but for those that ask for what no model of speech has."""

    front_end: str
    all_model_classes = (
        SJepaModel,
        SJepaForPreTraining,
        SJepaForCTC,
        SJepaForSequenceClassification,
        SJepaForAudioFrameClassification,
        SJepaForXVector,
    )

    def setUp(self):
        self.model_tester = Tester(self.front_end)
        self.config_tester = ConfigTester(self, config_class=SJepaConfig, hidden_size=32, num_attention_heads=4)

    def test_config(self):
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs_dict: dict, model_class: type, return_labels: bool = False) -> dict:
        """Labels are found by the names of Transformers' own classes; these are for ours."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class is SJepaForPreTraining:
            inputs["mask_time_indices"] = torch.arange(FRAMES).remainder(8).lt(4).repeat(CLIPS, 1)
            inputs["target_posteriors"] = torch.full((CLIPS, FRAMES, CLUSTERS), 1 / CLUSTERS)
        elif return_labels and model_class is SJepaForCTC:
            inputs["labels"] = torch.arange(1, 6).repeat(CLIPS, 1)
        elif return_labels and model_class is SJepaForAudioFrameClassification:
            inputs["labels"] = torch.ones(CLIPS, FRAMES, dtype=torch.long)
        elif return_labels and model_class is not SJepaModel:
            inputs["labels"] = torch.zeros(CLIPS, dtype=torch.long)
        return inputs

    @unittest.skip("frames of audio are no tokens: there is no table of embeddings")
    def test_model_get_set_embeddings(self): ...

    @unittest.skip("frames of audio are no tokens: there is no table of embeddings")
    def test_resize_tokens_embeddings(self): ...

    @unittest.skip("frames of audio are no tokens: there is no table of embeddings")
    def test_resize_embeddings_untied(self): ...

    @unittest.skip("an unfitted mixture has random means, and the test holds every buffer to be no matter of chance")
    def test_init_weights_can_init_buffers(self): ...


refused = unittest.skip("clips are padded on the right; padding on the left is refused")
for name in dir(ModelTests):
    if "pad_left" in name:
        setattr(ModelTests, name, refused(getattr(ModelTests, name)))


class WaveformTest(ModelTests, unittest.TestCase):
    front_end = "waveform"


class LogMelTest(ModelTests, unittest.TestCase):
    front_end = "log_mel"
