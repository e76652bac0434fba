"""Results of SUPERB: their table, and that no figure is lost on the way to the files and back."""

import json
import math

import pytest

from sjepa_hf.scores import read_scores
from training.evaluation.superb import results as superb_results
from training.evaluation.superb.results import (
    add,
    changed,
    check_data,
    current,
    draw_layer_weights,
    earlier_results,
    over_folds,
    table,
    write,
)
from training.evaluation.superb.tasks import slot_classification


RESULT = {
    "task": "sid", "title": "t", "encoder": "e", "encoder_digest": "d", "seed": 0, "metrics": {"accuracy": 0.5},
    "dev_metrics": {"accuracy": 0.4}, "layer_weights": [0.4, 0.6], "protocol": "p",
    "clips": dict(train=3, dev=2, test=1), "hours": dict(train=0.3, dev=0.2, test=0.1),
    "hyperparameters": dict(
        head="pooled", max_steps=9, batch_size=2, learning_rate=0.1, train_data=["/a/b"], test_data=[]
    ),
}  # fmt: skip


def test_table_gives_mean_and_deviation():
    text = table([RESULT, RESULT | {"metrics": {"accuracy": 0.7}, "layer_weights": [0.9, 0.1]}])
    assert "0.6000 ± 0.1414 | 2     | 0 of 0 to 1 (0.65)" in text and "chance" not in text


def test_figures_that_are_not_finite_are_null_in_the_files_and_come_back(tmp_path):
    lost = RESULT | {"metrics": {"accuracy": math.nan}, "layer_weights": [math.nan, math.nan], "seed": 1}
    write([RESULT, lost], tmp_path)
    assert "NaN" not in (tmp_path / "sid.jsonl").read_text() + (tmp_path / "sid.json").read_text()
    first, second = earlier_results(tmp_path, "sid", RESULT["hyperparameters"])
    assert (
        first == RESULT and math.isnan(second["metrics"]["accuracy"]) and all(map(math.isnan, second["layer_weights"]))
    )
    (score,) = read_scores(tmp_path / "sid.json")
    assert math.isnan(score.value) and score.values[0] == 0.5 and math.isnan(score.values[1])
    write([RESULT, second], tmp_path)
    assert "nan" in (tmp_path / "sid.md").read_text(), "the table of a later run is made of both"


def test_scores_say_what_was_scored(tmp_path):
    other = RESULT["hyperparameters"] | {"head": "recurrent_ctc", "test_data": ["/data/c", "/data/d"]}
    write([RESULT, RESULT | {"encoder": "mfcc", "hyperparameters": other}], tmp_path)
    held_out, given = read_scores(tmp_path / "sid.json")
    assert (held_out.subject, held_out.data, held_out.deviation, held_out.runs) == ("e", "b", None, "1 seed")
    other = ", but learning_rate 0.1 for 0.0001, batch_size 2 for 32, max_steps 9 for 200000"
    assert held_out.protocol == f"1 test clips, a share held out at random; 9 steps; p{other}"
    assert (given.data, given.protocol, given.clips) == ("c + d", f"1 test clips; 9 steps; p{other}", 1)
    assert (held_out.task_type, given.task_type) == ("audio-classification", "automatic-speech-recognition")
    assert json.loads((tmp_path / "sid.jsonl").read_text().splitlines()[0]) == RESULT


def test_scores_are_means_with_the_deviation_over_the_seeds(tmp_path):
    figures, verdicts = (0.7, 0.5, 0.0), (True, True, False)
    metrics = [{"metrics": {"accuracy": x}, "seed": n, "learned": verdicts[n]} for n, x in enumerate(figures)]
    write([RESULT | own for own in metrics], tmp_path)
    (score,) = read_scores(tmp_path / "sid.json")
    assert (score.value, score.deviation, score.runs) == (pytest.approx(0.4), pytest.approx(0.13**0.5), "3 seeds")
    assert score.values == [0.7, 0.5, 0.0] and score.learned is False, "one of three is at chance"


def test_settings_are_compared_with_those_of_the_task_that_they_are_of():
    task = slot_classification()
    used = {name: getattr(task, name) for name in ("head", "labels", "learning_rate", "batch_size", "max_steps")}
    assert changed("sf", used | {"eval_steps": task.eval_steps}) == ""
    assert changed("sf", used | {"eval_steps": 100}) == f", but eval_steps 100 for {task.eval_steps}"


def test_results_of_other_settings_are_refused(tmp_path):
    settings = RESULT["hyperparameters"] | {"columns": ("who",)}
    write([RESULT | {"hyperparameters": settings}], tmp_path)
    assert len(earlier_results(tmp_path, "sid", settings | {"untrained_seed": 5})) == 1
    for other in ({"max_steps": 10}, {"columns": ("tone",)}, {"folds": "session"}):
        with pytest.raises(ValueError, match=f"sid.jsonl holds results with `{next(iter(other))}` "):
            earlier_results(tmp_path, "sid", settings | other)


def in_fold(fold, accuracy, **changes):
    settings = RESULT["hyperparameters"] | {"folds": "session"}
    own = {"metrics": {"accuracy": accuracy}, "fold": fold, "folds": ["1", "2"], "hyperparameters": settings}
    return RESULT | own | {"learned": True} | changes


def test_folds_are_one_result_once_all_are_there():
    sizes = {"clips": dict(train=5, dev=4, test=3), "hours": dict(train=0.5, dev=0.4, test=0.3)}
    sizes |= {"dev_metrics": {"accuracy": 0.8}}
    lost = in_fold("2", 1.0, layer_weights=[0.0, 1.0], **sizes, learned=False)
    (whole,) = over_folds([in_fold("1", 0.5), in_fold("1", 0.25, seed=1), lost])
    assert whole["metrics"] == {"accuracy": 0.75} and whole["layer_weights"] == [0.2, 0.8] and "fold" not in whole
    assert whole["clips"] == dict(train=4, dev=3, test=4) and whole["dev_metrics"] == {"accuracy": pytest.approx(0.6)}
    assert whole["hours"] == pytest.approx(dict(train=0.4, dev=0.3, test=0.4))
    assert "mean of 2 folds by session; train 4" in table([whole])
    assert "No better than chance in a fold or more: e, seed 0." in table([whole])
    assert over_folds([RESULT]) == [RESULT]


def test_the_picture_shows_the_mean_weights_and_those_of_each_seed(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(superb_results, "save", lambda figure, path: figures.append(figure))
    one_layer = RESULT | {"encoder": "mfcc", "layer_weights": [1.0]}
    draw_layer_weights([one_layer, RESULT, RESULT | {"layer_weights": [0.9, 0.1], "seed": 1}], tmp_path)
    (axes,) = figures[0].axes
    assert [bar.get_y() + bar.get_height() for bar in axes.patches] == pytest.approx([0.65, 0.35])
    dots = [line.get_ydata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert sorted(dots) == [[0.4, 0.6], [0.9, 0.1]] and axes.get_title() == "e"
    draw_layer_weights([one_layer], tmp_path)
    assert len(figures) == 1


def test_results_of_an_encoder_that_has_changed_stay_on_file_until_they_are_made_again(tmp_path):
    """They are in no table: but a run that is interrupted knows from them which seeds are left to be scored again."""
    first, second, other = (RESULT | {"data_digest": "a"} | own for own in ({}, {"seed": 1}, {"encoder": "f"}))
    for result in (first, second, other):
        add(result, tmp_path)
    new = second | {"encoder_digest": "another"}
    add(new, tmp_path)
    there = earlier_results(tmp_path, "sid", RESULT["hyperparameters"])
    assert there == [first, other, new] and current(there) == [other, new]
    assert [(score.subject, score.runs) for score in read_scores(tmp_path / "sid.json")] == [
        ("f", "1 seed"),
        ("e", "1 seed"),
    ]
    with pytest.raises(ValueError, match="holds results of other clips or labels"):
        add(new | {"data_digest": "b"}, tmp_path)


def test_results_of_other_data_are_refused(tmp_path):
    check_data([RESULT | {"data_digest": "a"}], "a", tmp_path)
    for other in ({"data_digest": "b"}, {}):
        with pytest.raises(ValueError, match=f"{tmp_path}/sid.jsonl holds results of other clips or labels than"):
            check_data([RESULT | {"data_digest": "a"}, RESULT | other], "a", tmp_path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (json.dumps(RESULT)[:40], "Expecting value"),
        (json.dumps({name: value for name, value in RESULT.items() if name != "hours"}), "it lacks hours"),
        (json.dumps(RESULT | {"metrics": 0.5}), "has no attribute"),
        ("5", "argument of type 'int'"),
        ("", "Expecting value"),
        ("[" * 10**6, "(recursion|Stack overflow)"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, reason):
    (tmp_path / "sid.jsonl").write_text(f"{json.dumps(RESULT)}\n{line}\n")
    with pytest.raises(ValueError, match=rf"Line 2 of .*sid.jsonl is no result \(.*{reason}.*\): delete that line"):
        earlier_results(tmp_path, "sid", RESULT["hyperparameters"])
