import numpy as np
import pytest
from checkpoints import save
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from sjepa_hf import SJepaForPreTraining
from training.data.labelled import open_labelled
from training.evaluation.encoders import open_encoder
from training.evaluation.layer_features_of_clips import (
    WHOLE_CLIP,
    Rows,
    features_at,
    features_of_layers,
    readable_clips,
)


@pytest.fixture
def checkpoint(tmp_path, make_config):
    return save(SJepaForPreTraining(make_config("log_mel")), tmp_path / "sjepa")


def test_features_of_frames_and_of_whole_clips(two_voices, checkpoint):
    clips = open_labelled([str(two_voices)], [])
    encoder = open_encoder(checkpoint)
    rows = Rows(np.array([2, 0, 2, 2]), np.array([WHOLE_CLIP, 3, 5, 0]))
    found = features_at(features_of_layers(encoder, [1, 3]), clips, {"x": rows}, "")["x"]
    first, second = (encoder([clips[i]["input_values"]])[0][[1, 3]].numpy() for i in (0, 2))
    wanted = np.stack([second.mean(1), first[:, 3], second[:, 5], second[:, 0]], axis=1)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_encoders_of_other_frames_are_refused(tmp_path):
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=[8] * 7)
    sizes |= dict(num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2)
    samples = np.random.default_rng(0).normal(size=8000).astype(np.float32)
    for stride, fits in (((5, 2, 2, 2, 2, 2, 2), True), ((5, 2, 2, 2, 2, 2, 1), False)):
        path = tmp_path / str(fits)
        HubertModel(HubertConfig(**sizes, conv_stride=stride)).save_pretrained(path)
        Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(path)
        extract = features_of_layers(open_encoder(str(path)))
        if fits:
            assert extract(samples).shape == (2, 24, 16)
            # The extractor norms the input, so that its loudness does not matter.
            np.testing.assert_allclose(extract(samples), extract(3 * samples + 1), atol=1e-4)
        else:
            with pytest.raises(ValueError, match="gives 48 frames for 8000 samples .* gives 24"):
                extract(samples)


def test_layers_come_in_the_order_in_which_they_are_asked_for(checkpoint):
    samples, encoder = np.random.default_rng(0).normal(size=8000).astype(np.float32), open_encoder(checkpoint)
    every = features_of_layers(encoder)(samples)
    np.testing.assert_array_equal(features_of_layers(encoder, [3, 1])(samples), every[[3, 1]])
    with pytest.raises(ValueError, match="`layers` has 4, but .* has layers 0 to 3"):
        features_of_layers(encoder, [1, 4])(samples)


class Clips:
    """Clips of a second and more, of which the last cannot be read."""

    def __init__(self, places):
        self.places = places

    def __len__(self):
        return len(self.places)

    def select(self, numbers):
        return Clips([self.places[number] for number in numbers])

    def readable(self):
        kept = [place for place in self.places if place != 99]
        return Clips(kept), [16000 + 320 * place for place in kept]


def test_clips_are_drawn_at_random_and_stay_in_their_order():
    clips = Clips(range(100))
    drawn = [readable_clips(clips, 20, seed) for seed in range(3)]
    for kept, counts in drawn:
        assert kept.places == sorted(set(kept.places)) and 19 <= len(kept) <= 20 and max(kept.places) > 50
        assert counts.tolist() == [49 + place for place in kept.places]
    assert drawn[0][0].places != drawn[1][0].places
    assert readable_clips(clips, None, 0)[0].places == readable_clips(clips, 500, 0)[0].places == list(range(99))
