import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from sjepa_hf import SJepaConfig
from sjepa_hf.feature_extraction import feature_extractor
from sjepa_hf.frames import (
    FRAMES_PER_SECOND,
    HOP,
    MIN_SAMPLES,
    SAMPLING_RATE,
    WINDOW,
    check_frames,
    clip_mean,
    frame_centres,
    frame_lengths,
    length_mask,
    real_frames,
    real_samples,
    samples_read,
)


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("front_end", ["waveform", "log_mel"])
def test_the_frames_are_those_of_the_published_configuration(front_end):
    config = SJepaConfig(front_end=front_end)
    assert (config.receptive_field, config.inputs_to_logits_ratio) == (WINDOW, HOP)
    lengths = torch.arange(0, 2000)
    assert torch.equal(frame_lengths(lengths), config.num_frames(lengths))
    assert feature_extractor().sampling_rate == SAMPLING_RATE
    assert (SAMPLING_RATE, WINDOW / SAMPLING_RATE, HOP / SAMPLING_RATE) == (16_000, 0.025, 0.02)


def test_numbers_arrays_and_tensors_are_counted_alike():
    lengths = [0, 100, 399, 400, 719, 720, 16000, 240000]
    frames = [0, 0, 0, 1, 1, 2, 49, 749]
    assert [frame_lengths(length) for length in lengths] == frames
    assert frame_lengths(np.array(lengths)).tolist() == frame_lengths(torch.tensor([lengths]))[0].tolist() == frames
    assert frame_lengths(MIN_SAMPLES) == 1 and frame_lengths(MIN_SAMPLES - 1) == 0


def test_the_first_frames_are_real():
    assert length_mask(torch.tensor([2, 0, 3]), 3).tolist() == [[True, True, False], [False] * 3, [True] * 3]


@pytest.mark.parametrize("window, hop", [(WINDOW, HOP), (10, 5)])
def test_a_frame_is_real_where_the_count_of_frames_has_it(window, hop):
    samples = torch.arange(20_001)
    counts = (samples - window) // hop + 1
    assert torch.equal(real_frames(samples, 64, window, hop), length_mask(counts, 64))
    assert torch.equal(real_frames(samples, 64), length_mask(frame_lengths(samples), 64))


def test_frames_in_a_row_read_the_fewest_samples_that_hold_them():
    config = SJepaConfig()
    for count in (1, 2, 10):
        samples = samples_read(config, count)
        assert config.num_frames(samples) == count and config.num_frames(samples - 1) == count - 1


@pytest.mark.parametrize("over", [{"conv_kernel": (10, 3, 3, 3, 3, 2, 3)}, {"conv_stride": (5, 2, 2, 2, 2, 2, 1)}])
def test_an_encoder_with_another_window_or_another_step_is_refused(over):
    check_frames(SJepaConfig(), "It")
    with pytest.raises(ValueError, match="It makes frames of (560 samples every 320|400 samples every 160) "):
        check_frames(SJepaConfig(**over), "It")


def test_the_mean_of_a_clip_is_that_of_its_counted_frames():
    frames, counted = torch.randn(2, 4, 3), torch.tensor([[True, True, False, False], [False] * 4])
    frames[0, 2:] = float("nan")
    assert clip_mean(frames, counted).equal(torch.stack([frames[:1, :2].mean(1), torch.zeros(1, 3)]))


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float16])
def test_real_samples_are_counted_in_whatever_a_mask_is_of(dtype):
    mask = length_mask(torch.tensor([70_000, 70_001]), 70_001).to(dtype)
    assert real_samples(mask).tolist() == [70_000, 70_001]


def test_centres_lie_in_the_middle_of_each_window():
    centres = frame_centres(3)
    assert centres.tolist() == pytest.approx([0.0125, 0.0325, 0.0525])
    assert np.diff(frame_centres(100)) == pytest.approx(1 / FRAMES_PER_SECOND)


def test_these_names_are_given_to_numbers_here_alone():
    """But for the example that runs without the package."""
    found = set()
    for folder in ("sjepa_hf", "training", "benchmarks", "examples", "model_cards"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                targets = node.targets if isinstance(node, ast.Assign) else []
                names = {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
                if names & {"SAMPLING_RATE", "WINDOW", "HOP", "MIN_SAMPLES", "FRAME_SECONDS", "FIRST_EDGE"}:
                    found.add(path.relative_to(ROOT).as_posix())
    assert found == {"sjepa_hf/frames.py", "examples/run_onnx.py"}
