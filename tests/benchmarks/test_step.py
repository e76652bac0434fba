import pytest
import torch
import yaml
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import candidates, step
from benchmarks.candidates import SJepaStep, StepArguments
from benchmarks.flops import bf16_peak
from training.data.batches import collate
from training.targets.targets import real_frames


NO_DROPOUT = dict.fromkeys(
    "hidden_dropout activation_dropout attention_dropout feat_proj_dropout predictor_dropout layerdrop".split(), 0.0
)


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


CHOSEN = (
    "front_end hidden_size num_hidden_layers num_attention_heads intermediate_size conv_dim num_conv_pos_embeddings"
    " num_conv_pos_embedding_groups predictor_intermediate_size predictor_num_hidden_layers num_mel_bins"
).split()


def padded_batches(count):
    generator = torch.Generator().manual_seed(0)
    clips = [torch.randn(length).mul(0.1).numpy() for length in (16000, 9000, 12345)]
    return [collate(clips, mask_prob=0.5, mask_span=5, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("front_end", ["waveform", "log_mel"])
@pytest.mark.parametrize("phase, include_visible", [(1, True), (2, True), (2, False)])
def test_the_naive_step_is_the_same_step(make_arguments, accelerator, monkeypatch, front_end, phase, include_visible):
    """Three steps on padded batches, with rates at which the second step shows what the first one updated."""
    for name, value in dict(LEARNING_RATE=1e-4, MIXTURE_DECAY=0.9, EMA_DECAY=0.5).items():
        monkeypatch.setattr(candidates, name, value)
    ours = SJepaStep(make_arguments(front_end, phase=phase, include_visible=include_visible), accelerator)
    mixture = ours.model.mixture
    mixture.means.mul_(10.0 if phase == 1 else 0.3)
    mixture.variances.fill_(500.0 if phase == 1 else 5.0)  # posteriors that are neither uniform nor one-hot
    before = mixture.means.clone()
    naive = ours.naive()
    *batches, last = padded_batches(4)
    real = real_frames(last, 49)
    start = naive.features(last, 49)[real]
    losses = [(ours.train_on(batch), naive.train_on(batch)) for batch in batches]
    mine, theirs = torch.tensor(losses).T
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    assert mine.min() > 0.01, "a loss of nothing would agree too"
    for name, expected in naive.model.mixture.named_buffers():
        torch.testing.assert_close(getattr(mixture, name), expected, atol=1e-4, rtol=1e-3)
    features = naive.features(last, 49)[real]
    torch.testing.assert_close(ours.targets.features(last)[real], features, atol=1e-4, rtol=1e-5)
    if phase == 2:
        assert (features - start).abs().max() > 2e-3, "both EMA encoders moved"
        assert (mixture.means - before).abs().max() > 0.1, "both mixtures moved"
    else:
        assert torch.equal(mixture.means, before)


def group_norm_operations(ours: SJepaStep, clips: int, samples: int) -> int:
    """Products by which the front end's norm takes mean and variance: the counter sees them, utilisation does not."""
    config = ours.config
    kernel, stride = config.conv_kernel[0], config.conv_stride[0]
    values = ((samples - kernel) // stride + 1) * config.conv_dim[0]
    if config.front_end == "log_mel":
        values = config.num_frames(samples) * config.num_mel_bins
    return 2 * 2 * clips * values


@pytest.mark.parametrize(
    "front_end, phase, include_visible, encode_visible_only",
    [
        ("waveform", 2, False, False),
        ("waveform", 1, True, True),
        ("log_mel", 2, True, True),
        ("log_mel", 1, True, False),
    ],
)
def test_analytic_flops_are_those_that_are_run(
    make_arguments, accelerator, front_end, phase, include_visible, encode_visible_only
):
    # One group: the counter takes the backward pass of a grouped convolution for a dense one.
    sizes = dict(num_conv_pos_embedding_groups=1, predictor_num_hidden_layers=2)
    arguments = make_arguments(front_end, sizes, phase=phase, include_visible=include_visible)
    ours = SJepaStep(arguments, accelerator, encode_visible_only)
    with FlopCounterMode(display=False) as counter:
        ours()
    norms = phase * group_norm_operations(ours, *ours.shape[:2])  # of the student, and of the EMA encoder
    assert sum(ours.flops().values()) == pytest.approx(counter.get_total_flops() - norms, rel=2e-3)


def test_flops_of_a_grouped_positional_convolution(make_arguments, accelerator):
    ours = SJepaStep(make_arguments("waveform"), accelerator)
    ours()
    with FlopCounterMode(display=False) as counter:
        ours.model.sjepa(torch.randn(2, 16000))
    parts = ours.flops()
    student = ("front end", "feature projection", "positional convolution")
    student += ("attention projections", "attention products", "feed-forward")
    assert sum(parts[name] for name in student) == counter.get_total_flops() - group_norm_operations(ours, 2, 16000)


def test_the_command_prints_every_table(make_arguments, accelerator, capsys):
    step.measure(make_arguments(visible_only=True, repeats=2), accelerator)
    printed = capsys.readouterr().out
    parts = (
        "collate and masks",
        "targets",
        "student forward",
        "backward",
        "clipping",
        "mixture and EMA",
    )
    for words in (*parts, "peak memory", "naive", "HuBERT", "visible only", "GFLOP a step", "audio s / s"):
        assert words in printed
    assert "utilisation" not in printed, "a CPU has no peak to compare with"


def test_sweep_prints_a_line_for_each_value(make_arguments, accelerator, capsys):
    step.sweep(make_arguments(sweep=["layers", "1", "3"]), accelerator)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["1", "3"]
    operations = [float(line.split(")")[1].split()[1]) for line in lines[2:]]
    assert operations[1] >= operations[0]


@pytest.mark.parametrize(
    "options, message",
    [
        ("--config nowhere", "no recipe nowhere"),
        ("--phase 3", "`phase` is 3"),
        ("--sweep width 1", "`sweep` is width 1"),
        ("--device cpu --check_syncs true", "`check_syncs` needs"),
        ("--config tiny --phase 1 --seconds 20 --clips 1 --against hubert --threads 1", "20 s|999"),
    ],
)
def test_wrong_settings_get_a_sentence(options, message):
    with pytest.raises(SystemExit, match=message):
        step.main(options.split())


def test_peaks_are_found_by_device_name():
    assert bf16_peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert bf16_peak("NVIDIA H100 80GB HBM3") == 989e12
    assert bf16_peak("NVIDIA H100 PCIe") == 756e12
    assert bf16_peak("NVIDIA L4") == 121e12
    assert bf16_peak("NVIDIA L40S") == 362e12
    assert bf16_peak("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    assert bf16_peak("Some other device") is None
