import evaluate
import numpy as np
import pytest

from training.common.metrics import load_metric


def score(name: str, predictions: list, references: list) -> float:
    return load_metric(name).compute(predictions=predictions, references=references)[name]


def test_error_rates_are_pooled_over_utterances():
    references, predictions = ["a b c", "d"], ["a x c", "d e"]
    assert score("wer", predictions, references) == pytest.approx(2 / 4)  # not (1/3 + 1/1) / 2
    assert score("cer", predictions, references) == pytest.approx(3 / 6)  # x for b; " e" inserted
    assert score("wer", ["", "d"], references) == pytest.approx(3 / 4)
    assert score("wer", ["a b c d e f g", "d"], ["a b", "d"]) == pytest.approx(5 / 3)


def test_a_metric_can_be_used_again_and_in_batches():
    metric = load_metric("wer")
    assert isinstance(metric, evaluate.EvaluationModule)
    assert metric.compute(predictions=["a"], references=["a"]) == {"wer": 0.0}
    metric.add_batch(predictions=["a"], references=["b"])
    metric.add_batch(predictions=["c"], references=["c"])
    assert metric.compute() == {"wer": 0.5}


def test_a_home_that_cannot_be_written_to_is_no_hindrance(tmp_path, monkeypatch):
    (tmp_path / "home").write_text("no folder")
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "home" / "metrics"))
    assert score("accuracy", ["a", "b"], ["a", "a"]) == 0.5


@pytest.mark.parametrize(
    ("predictions", "references"), [([0, 0, 1, 2], [0, 1, 1, 1]), (["a", "a", "b", "c"], ["a", "b", "b", "b"])]
)
def test_classification(predictions, references):
    assert score("accuracy", predictions, references) == 0.5
    f1 = [2 / 3, 2 / 4, 0]  # a: one hit of 2 and 1; b: one of 1 and 3; c: predicted, never right
    assert score("macro_f1", predictions, references) == pytest.approx(sum(f1) / 3)


def test_class_names_that_look_like_numbers_are_names():
    assert score("accuracy", ["007", "7", "7"], ["7", "007", "7"]) == pytest.approx(1 / 3)
    assert score("macro_f1", ["7", "yes"], ["7", "no"]) == pytest.approx(1 / 3)
    assert score("accuracy", np.array([7, 8]), np.array([7, 9])) == 0.5


def test_slot_type_f1():
    references = [[("size", "large"), ("drink", "latte")], [], [("size", "small")], [("size", "small")]]
    predictions = [[("size", "small"), ("milk", "no")], [], [], [("size", "big"), ("size", "small")]]
    assert score("slot_type_f1", predictions, references) == pytest.approx((0.5 + 1 + 0 + 1) / 4)


def test_slot_value_cer():
    references = [[("size", "large"), ("drink", "tea")], [("size", "abcd")]]
    predictions = [[("size", "lard"), ("size", "large x"), ("milk", "no")], [("drink", "abcd")]]
    # "lard" is nearer to "large" (2 errors of 5) than "large x" is (2 insertions): a tie, 2 either way
    assert score("slot_value_cer", predictions, references) == pytest.approx((2 + 3 + 4) / 12)
    exact = [[("drink", "tea"), ("size", "x"), ("size", "large")], [("size", "abcd")]]
    assert score("slot_value_cer", exact, references) == 0


def test_what_has_no_value_says_so():
    with pytest.raises(ValueError, match="There is no metric 'bleu'"):
        load_metric("bleu")
    with pytest.raises(ValueError, match="at least one word"):
        score("wer", ["a"], [""])
    with pytest.raises(ValueError, match="at least one character"):
        score("cer", ["a"], [" "])
    with pytest.raises(ValueError, match="at least one slot value"):
        score("slot_value_cer", [[("size", "large")]], [[]])
