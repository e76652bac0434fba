"""Knowledge at hidden frames, of a predictor of which it is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import ModelOutput

from sjepa_hf import DiagonalGaussianMixture
from sjepa_hf.frame_features import FRAME_FEATURES
from sjepa_hf.frames import frame_lengths
from sjepa_hf.hmm_mixture import HmmMixture
from sjepa_hf.soft_targets import soft_target_divergence
from training.data.masking import SpanMask, distance_to_visible
from training.evaluation import phones_at_hidden_frames
from training.evaluation.phones_at_hidden_frames import TARGETS, hidden_frame_table, knowledge_at_hidden_frames


PHONES = torch.tensor([0, 1, 1, 0, 1] * 8)  # of 40 frames


class Neighbour:
    """Says the phone at visible frames and those beside them, and nothing at others. 45 frames, 40 with a phone."""

    device = torch.device("cpu")

    def __init__(self, features, transitions):
        self.config = SimpleNamespace(num_frames=frame_lengths, mixture_features=features)
        self.mixture = HmmMixture(2, 39) if transitions else DiagonalGaussianMixture(2, 39)
        self.mixture.means.zero_()[:, 20] = torch.tensor([-1.0, 1.0])  # a delta: frames of noise lie on both sides
        if transitions:
            self.mixture.transitions.pairs.copy_(torch.eye(2) / 2)  # a clip stays where it is, as frames say little
            self.mixture.variances.fill_(1e4)

    def unit_posteriors(self, audio):
        return self.mixture.clip_posteriors(FRAME_FEATURES[self.config.mixture_features]()(audio))

    def __call__(self, audio, mask_time_indices=None):
        if mask_time_indices is None:
            mask_time_indices = torch.zeros(1, 45, dtype=torch.bool)
        said = torch.nn.functional.one_hot(torch.cat([PHONES, PHONES[:5]]), 2) * 100.0
        return ModelOutput(logits=said * (distance_to_visible(~mask_time_indices) < 2)[..., None])


@pytest.fixture
def table():
    samples = np.random.default_rng(0).normal(size=400 + 44 * 320).astype(np.float32)

    def measure(features="mfcc", transitions=False, phones=(PHONES, PHONES)):
        torch.manual_seed(0)
        clips = [{"input_values": samples}] * 2
        model = Neighbour(features, transitions)
        rows = knowledge_at_hidden_frames(model, clips, list(phones), 2, SpanMask(0.6, 12), 0)
        return {row["distance"]: row for row in rows}, rows

    return measure


def test_information_is_that_of_a_predictor_that_reads_its_neighbour(table):
    found, rows = table()
    assert list(found) == ["1", "2", "3", "4", "5 or more", "nothing hidden", TARGETS]
    for name in ("1", "nothing hidden"):
        assert found[name]["soft"] == pytest.approx(1) and found[name]["hard"] == pytest.approx(1)
    for name in ("2", "3", "4", "5 or more"):
        assert found[name]["soft"] == pytest.approx(0, abs=1e-9)
        assert 0 <= found[name]["kl"] <= np.log(2) + 1e-6 < found["1"]["kl"], "a uniform guess against a certain one"
    assert found[TARGETS]["kl"] == 0 and 0 <= found[TARGETS]["soft"] < 1
    assert found["nothing hidden"]["frames"] == found[TARGETS]["frames"] == 2 * 40
    mask, lengths = SpanMask(0.6, 12), torch.full((phones_at_hidden_frames.DRAWS,), 45)
    generator = torch.Generator().manual_seed(0)
    hidden = sum(mask(lengths, 45, generator)[:, :40].sum() for _ in range(2))
    assert sum(found[name]["frames"] for name in list(found)[:5]) == hidden, "none without a phone"
    assert hidden_frame_table(rows).count("\n") == 1 + len(rows)


def test_chance_is_what_is_known_of_the_phones_of_the_other_clip(table):
    other = torch.tensor([0, 0, 0, 1] * 10)  # half of either is repeated where the other clip is longer
    found, swapped = (table(phones=phones)[0] for phones in ((PHONES, other[:20]), (other, PHONES[:20])))
    for name, row in found.items():
        shares = [swapped[name][share] for share in ("soft_chance", "hard_chance", "soft", "hard")]
        assert [row[share] for share in ("soft", "hard", "soft_chance", "hard_chance")] == pytest.approx(shares)
    assert found["nothing hidden"]["soft"] != pytest.approx(found["nothing hidden"]["soft_chance"], abs=1e-3)


def test_the_divergence_is_the_mean_over_the_frames_of_all_clips_and_masks_are_of_the_seed():
    rng, model = np.random.default_rng(0), Neighbour("mfcc", transitions=False)
    clips = [{"input_values": rng.normal(size=400 + 44 * 320).astype(np.float32)} for _ in range(2)]
    wanted = []
    for clip in clips:
        audio = torch.from_numpy(clip["input_values"])[None]
        wanted.append(soft_target_divergence(model(audio).logits[0, :40], model.unit_posteriors(audio)[0, :40]))
    found = [
        {row["distance"]: row for row in knowledge_at_hidden_frames(model, clips, [PHONES] * 2, 2, SpanMask(), seed)}
        for seed in (0, 0, 1)
    ]
    assert found[0]["nothing hidden"]["kl"] == pytest.approx(torch.cat(wanted).mean().item(), rel=1e-5)
    assert found[0] == found[1] and found[0]["1"]["frames"] != found[2]["1"]["frames"]


def test_the_table_has_chance_in_brackets():
    row = {
        "distance": "1",
        "frames": 1234,
        "soft": 0.5,
        "hard": 0.25,
        "soft_chance": 0.1,
        "hard_chance": 0.2,
        "kl": 1.5,
    }
    assert hidden_frame_table([row]).endswith("| 1 | 1,234 | 0.500 (0.100) | 0.250 (0.200) | 1.50 |")


def test_targets_are_given_the_clip_where_the_mixture_has_transitions(table):
    assert table()[0][TARGETS]["hard"] > 0
    assert table(transitions=True)[0][TARGETS]["hard"] == 0, "one component for the whole clip"


def test_targets_of_phase_2_are_not_in_the_checkpoint(table):
    found, rows = table("encoder")
    assert TARGETS not in found and {row["kl"] for row in rows} == {None}
    assert found["1"]["soft"] == pytest.approx(1)
    assert hidden_frame_table(rows).endswith("|  |")
