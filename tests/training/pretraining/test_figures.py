"""The pictures of a run: none is empty, and every axis says what it shows and in what unit."""

import json
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest

from training.pretraining import figures


def line(step, phase, **more):
    by_distance = {"masked_kl_by_distance": [step / 10, None, 2.5, 2.0, None], "clip_mean_kl_by_distance": [4.0] * 5}
    return {
        "step": step, "phase": phase, "hours_seen": step / 100, "masked_kl": 3.0, "clip_mean_kl": 3.5,
        "baseline_kl": 4.0, **by_distance, "target_entropy_bits": 0.5, **more,
    }  # fmt: skip


HISTORY = [
    line(10, 1, visible_kl=2.0, effective_ranks=[9.0, 8.0, 7.0]),
    line(20, 1, visible_kl=1.5, loss=2.4),
    line(30, 2, frozen_kl=1.0, loss=2.6, effective_ranks=[9.0, 8.5, 7.5], active_layer=2),
]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws without closing the figure, and gives its axes."""
    monkeypatch.setattr(figures, "save", lambda figure, path: None)

    def draw(function, *arguments):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            function(*arguments, tmp_path / "picture.png")
        return plt.gcf().axes

    yield draw
    plt.close("all")


@pytest.mark.parametrize("history", [HISTORY, HISTORY[:1], HISTORY[2:]], ids=["both", "one line", "phase 2 alone"])
def test_every_axis_of_the_losses_has_a_name_and_a_unit_and_every_value_is_seen(drawn, history):
    above, below = drawn(figures.draw_losses, history, 20)
    assert above.get_ylabel().endswith(", nats") and below.get_ylabel().endswith(", bits")
    assert below.get_xlabel() == "audio seen, hours"
    masked = [curve for curve in above.lines if curve.get_color() == "C0"]
    assert sum(len(curve.get_xdata()) for curve in masked) == len(history)
    for name, colour in (("frozen_kl", "C4"), ("loss", "C5")):
        seen = [value for curve in above.lines if curve.get_color() == colour for value in curve.get_ydata()]
        assert seen == [line[name] for line in history if name in line]
    assert all(curve.get_marker() == "." for curve in masked), "a single point would not be seen without"
    labels = [text.get_text() for legend in above.figure.legends for text in legend.get_texts()]
    assert {"masked frames", "clip's mean guess"} <= set(labels)
    assert len(labels) == len(set(labels))


def test_knowledge_at_hidden_frames_is_drawn_by_distance(drawn):
    (axes,) = drawn(figures.draw_hidden_frames, [*HISTORY, {"step": 40, "phase": 2, "hours_seen": 0.4}], 20)
    assert axes.get_xlabel() == "audio seen, hours" and axes.get_ylabel().endswith(", nats")
    labels = [text.get_text() for legend in axes.figure.legends for text in legend.get_texts()]
    assert labels == ["1", "3", "4"], "where there are figures"
    nearest = [curve for curve in axes.lines if curve.get_color() == plt.cm.viridis(0.0)]
    assert [list(curve.get_ydata()) for curve in nearest] == [[3.0, 2.0], [1.0]], "a curve for each phase"


def test_layers_are_numbered_from_the_input(drawn):
    (axes,) = drawn(figures.draw_ranks, HISTORY, 20)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("audio seen, hours", "effective rank, dimensions")
    curves = {curve.get_label(): curve for curve in axes.lines}
    assert {"layer 0 (input)", "layer 1", "layer 2", "active layer"} <= curves.keys()
    assert list(curves["layer 2"].get_ydata()) == [7.0, 7.5]
    assert list(curves["active layer"].get_ydata()) == [7.5], "the rank of layer 2"


def test_an_empty_picture_is_not_drawn(pictures, tmp_path):
    few = {"step": 1, "phase": 1, "hours_seen": 0.1, "masked_kl": 3.0}
    (tmp_path / figures.HISTORY).write_text(json.dumps(few) + "\n")
    assert figures.draw_run(tmp_path, tmp_path, 20, np.empty(0), 8) == ["loss.png"]
    assert [path.name for path in tmp_path.glob("*.png")] == ["loss.png"]
