"""Pictures: none is empty, every axis has its name, and no word of a user's breaks one."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from benchmarks.study.report import draw as draw_study
from sjepa_hf.scores import Score
from training.analyze import Utterance, draw_utterance
from training.common.figures import caption, draw_entropy
from training.evaluation.probes.results import draw as draw_probes
from training.evaluation.superb.results import draw_layer_weights
from training.finetuning.result import draw_learning_curve


ODD = ("/a/$x^{$/final", "_hidden", "n" * 300, "two\nlines", "50 $ or $ 60")


@pytest.fixture
def drawn(pictures, monkeypatch):
    """The figures that were saved, each with its file's name."""
    found = []
    save = plt.Figure.savefig

    def remember(figure, path, **options):
        figure.set_dpi(options["dpi"])  # so that places measured later are those in the file
        save(figure, path, **options)
        found.append((path.name, figure))

    monkeypatch.setattr(plt.Figure, "savefig", remember)
    return found


def panels(figure) -> list:
    """The axes that are shown."""
    return [axes for axes in figure.axes if axes.axison]


def check(figure) -> None:
    """Every panel has something in it and a name on each axis (a shared one has one name); every name lies inside."""
    box = figure.bbox
    for axes in panels(figure):
        assert axes.has_data() and axes.get_ylabel()
        shared = axes.get_shared_x_axes().get_siblings(axes)
        assert any(other.get_xlabel() for other in shared)
        for word in (axes.title, axes.xaxis.label, axes.yaxis.label):
            place = word.get_window_extent()
            assert place.x0 >= box.x0 - 2 and place.x1 <= box.x1 + 2, word.get_text()


def layer_weights(subjects, count=5, seeds=2) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {
            "task": "ks",
            "encoder": name,
            "hyperparameters": {"head": "pooled"},
            "layer_weights": rng.dirichlet(np.full(count, 500)).tolist(),
        }
        for name in subjects
        for _ in range(seeds)
    ]


def test_layer_weights_are_seen_against_the_uniform_one(drawn, tmp_path):
    draw_layer_weights(layer_weights(ODD, 13) + layer_weights(["mfcc"], 1), tmp_path)
    ((name, figure),) = drawn
    check(figure)
    assert name == "ks_layer_weights.png" and (tmp_path / name).is_file() and len(panels(figure)) == len(ODD)
    for axes in panels(figure):
        low, high = axes.get_ylim()
        heights = [patch.get_y() + patch.get_height() for patch in axes.patches]
        assert (max(heights) - min(heights)) > 0.2 * (high - low), "they fill the panel"
        assert "0.077" in axes.get_ylabel() and len(axes.get_title()) <= 61 and "/a/" not in axes.get_title()
        assert any(np.allclose(line.get_ydata(), 1 / 13) for line in axes.lines)


def test_where_no_subject_has_layers_there_is_no_picture(drawn, tmp_path):
    draw_layer_weights(layer_weights(["mfcc"], 1), tmp_path)
    assert not drawn and not list(tmp_path.iterdir())


def test_weights_all_alike_or_not_finite_are_drawn(drawn, tmp_path):
    for value in (0.2, float("nan")):
        row = {"task": "ks", "encoder": "x", "hyperparameters": {"head": "pooled"}, "layer_weights": [value] * 5}
        draw_layer_weights([row], tmp_path)
    assert len(drawn) == 2


HISTORY = [{"step": step, "loss": 3.0} for step in (10, 20)] + [{"step": 20, "train_runtime": 3.0}]


@pytest.mark.parametrize(
    ("history", "labels"),
    [
        (HISTORY, ["loss (nats)"]),
        (
            [*HISTORY, {"step": 20, "eval_loss": 2.0, "eval_wer": 0.5, "eval_cer": 0.2}],
            ["loss (nats)", "WER and CER (share)"],
        ),
        ([{"step": 5, "eval_wer": 0.5}], ["WER and CER (share)"]),
    ],
)
def test_a_learning_curve_has_panels_for_what_was_measured(drawn, tmp_path, history, labels):
    draw_learning_curve(history, ("wer", "cer"), tmp_path / "learning_curve.png")
    ((_, figure),) = drawn
    check(figure)
    assert [axes.get_ylabel() for axes in panels(figure)] == labels
    assert panels(figure)[-1].get_xlabel() == "optimizer steps"


def test_a_run_that_logged_nothing_has_no_learning_curve(tmp_path):
    draw_learning_curve([{"step": 2, "train_runtime": 1.0}], ("wer",), tmp_path / "learning_curve.png")
    assert not list(tmp_path.iterdir())


def test_probes_of_many_labels_and_odd_names(drawn, tmp_path):
    scores = [
        Score(name, f"{label}, {kind} probe", "audio-classification", "clips", "test", "accuracy", 0.5, layer=layer)
        for label in ("speaker", "$x^{$", "l" * 200)
        for kind in ("linear", "mlp")
        for name in ODD
        for layer in range(3)
    ]
    draw_probes(scores, tmp_path / "probes.png")
    ((_, figure),) = drawn
    check(figure)
    assert len(panels(figure)) == 6 and max(figure.get_size_inches()) < 16
    assert len(figure.legends[0].get_texts()) == len(ODD), "a leading underscore hides nothing"
    draw_probes([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("seconds", [1.0, 20.0])
def test_an_utterance_of_any_length_and_odd_words(drawn, tmp_path, seconds):
    samples = np.random.default_rng(0).normal(0, 0.1, round(16000 * seconds)).astype(np.float32)
    posteriors = np.random.default_rng(0).dirichlet(np.ones(9), (len(samples) - 400) // 320 + 1).astype(np.float32)
    said = Utterance(
        "$x^{$" + "n" * 300, samples, "it cost $5^{ or $6 " * 40, ("$a^{$", "b"), np.array([0.4, seconds])
    )
    draw_utterance(said, posteriors, np.linspace(0, 1, 9), tmp_path / "utterance.png")
    ((_, figure),) = drawn
    check(figure)
    title = figure.get_suptitle()
    assert len(title.splitlines()) <= 6 and "..." in title


@pytest.mark.parametrize("scores", [("digits",), ("digits", "phones", "speakers", "cer", "wer")])
def test_a_grid_has_readable_proportions(drawn, tmp_path, scores):
    results = [
        {"baseline": "control", "variant": name, "seed": seed, "scores": dict.fromkeys(scores, 0.5 + seed / 10)}
        for name in ("control", *ODD)
        for seed in (0, 1)
    ]
    draw_study(results, tmp_path / "grid.png")
    ((_, figure),) = drawn
    check_names = [axes.get_xlabel() for axes in panels(figure)]
    assert len(check_names) == len(scores) and all("is better" in name for name in check_names)
    width, height = figure.get_size_inches()
    assert 0.4 < height / width < 2.5
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "mean of control"


def test_entropy_has_a_unit_and_its_marks(drawn, tmp_path):
    draw_entropy(np.linspace(0, 3, 100), 100, tmp_path / "entropy.png")
    ((_, figure),) = drawn
    check(figure)
    (axes,) = panels(figure)
    assert "bits (at most 6.6)" in axes.get_xlabel() and axes.get_ylabel() == "frames, share per bit"
    assert sum(bar.get_height() * bar.get_width() for bar in axes.patches) == pytest.approx(1)
    assert not plt.fignum_exists(figure.number), "it is freed"
    assert [text.get_text() for text in axes.texts] == ["83 % above 0.5", "66 % above 1", "33 % above 2"]


def test_captions():
    assert caption("a\n  b") == "a b" and caption("x" * 61).count("x") < 60 and len(caption("x" * 500)) <= 60
    assert caption("$a$") == r"\$a\$" and not caption("_a").startswith("_")
