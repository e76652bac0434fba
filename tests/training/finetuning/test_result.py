import json
import math
from types import SimpleNamespace

from finetuning_runs import run
from transformers import AutoModelForCTC

from training import finetune_classification, finetune_ctc
from training.common.learned import Verdict
from training.finetuning.arguments import FineTuningArguments
from training.finetuning.data import HELD_OUT
from training.finetuning.result import FineTuningResult, score_rows


def test_a_run_that_has_learned_nothing_says_so_and_keeps_no_noise(checkpoint, mine, tmp_path, caplog):
    options = ("--max_steps", "8", "--eval_steps", "1", "--learning_rate", "1e-5")
    ready, final = run(finetune_ctc, checkpoint, mine, tmp_path, *options)
    results = json.loads((final / "results.json").read_text())
    assert results["learned"] is False and results["best_step"] is None and results["verdict"]
    assert "NOTHING WAS LEARNED" in caplog.text and results["verdict"] in caplog.text
    last = AutoModelForCTC.from_pretrained(tmp_path / "checkpoint-8").state_dict()
    assert all(value.equal(last[name]) for name, value in AutoModelForCTC.from_pretrained(final).state_dict().items())
    evaluations = [entry for entry in ready.trainer.state.log_history if "eval_cer" in entry]
    assert [entry["step"] for entry in evaluations] == list(range(9))
    assert all(entry["eval_learned"] == 0 and 0 <= entry["eval_blank_frames"] <= 1 for entry in evaluations[1:])


def test_classes_that_were_not_learned(checkpoint, classes, tmp_path):
    options = ("--max_steps", "1", "--learning_rate", "0", "--head_learning_rate", "0", "--eval_fraction", "0.5")
    _, final = run(finetune_classification, checkpoint, classes, tmp_path, *options)
    results = json.loads((final / "results.json").read_text())
    assert results["learned"] is False and results["best_step"] is None


def test_the_best_step_is_that_of_the_checkpoint_that_was_loaded():
    """The Trainer remembers the best evaluation, and loads the best checkpoint that was saved."""
    history = [{"step": step, "eval_cer": cer} for step, cer in ((50, 0.9), (100, 0.7), (150, 0.5), (200, 0.6))]
    state = SimpleNamespace(best_global_step=150, best_model_checkpoint="out/checkpoint-100", log_history=history)
    settings = {"load_best_model_at_end": True, "metric_for_best_model": "cer", "greater_is_better": False}
    trainer = SimpleNamespace(state=state, args=SimpleNamespace(**settings))
    state.global_step = 200
    assert FineTuningResult.of(trainer, Verdict(True, "better"), {}).best_step == 100


def outcome(curve: dict[int, float], best: int | None, learned: bool = True, knew: float = 0.0) -> FineTuningResult:
    """Of a run whose CER was `curve`, by step, and that loaded the checkpoint of step `best`; `knew`: at the start."""
    history = [{"step": step, "eval_cer": cer, "eval_learned": 1.0 if step else knew} for step, cer in curve.items()]
    checkpoint = None if best is None else f"out/checkpoint-{best}"
    state = SimpleNamespace(best_model_checkpoint=checkpoint, log_history=history, global_step=max(curve))
    settings = {"load_best_model_at_end": True, "metric_for_best_model": "cer", "greater_is_better": False}
    trainer = SimpleNamespace(state=state, args=SimpleNamespace(**settings))
    return FineTuningResult.of(trainer, Verdict(learned, "better than a constant"), {})


def test_a_run_is_judged_by_how_its_metric_went(caplog):
    caplog.set_level("INFO")
    nothing_added = "; but the first evaluation was already the best, and the later steps added nothing"
    for curve, best, learned, said in (
        (
            {0: 1.0, 50: 0.7, 100: 0.6, 150: 0.5},
            150,
            True,
            "better than a constant. The result is that of step 150, the",
        ),
        (
            {0: 1.0, 50: 0.5, 100: 0.6, 150: 0.7},
            50,
            True,
            f"a constant{nothing_added}. The result is that of step 50, the",
        ),
        ({0: 1.0, 50: 0.5, 100: 0.6}, 50, True, "better than a constant. The result is that of step 50, the best."),
        ({50: 0.5, 100: 0.6, 150: 0.7}, None, True, "better than a constant. The result is that of the last step."),
        ({0: 0.4, 50: 0.7, 100: 0.5}, 100, False, "cer was 0.4000 before the first step and is 0.5000. The result is"),
    ):
        caplog.clear()
        found = outcome(curve, best)
        found.log()
        assert (found.learned, found.best_step) == (learned, best) and said in caplog.text, caplog.text


def test_a_good_recogniser_that_gets_no_better_stays_usable(caplog):
    """One that the run began with, head and all."""
    caplog.set_level("INFO")
    found = outcome({0: 0.05, 50: 0.08, 100: 0.05}, 100, knew=1.0)
    found.log()
    said = "cer was 0.0500 before the first step and is 0.0500"
    assert found.learned and "not usable" not in caplog.text
    assert f"Something was learned: better than a constant; but {said}: the steps added nothing. The" in caplog.text
    assert outcome({0: 0.05, 50: 0.08, 100: 0.05}, 100, learned=False, knew=1.0).learned is False, "it forgot"
    assert outcome({0: 0.95, 50: 0.98, 100: 0.95}, 100).verdict == said.replace("0.05", "0.95")


def test_rows_of_scores_have_names_without_folders_that_are_told_apart():
    data = {"eval_data": ["/data/c/dev"], "test_data": ["/data/d/x", "/d/e/x"]}
    arguments = FineTuningArguments(model_name_or_path="a", train_data=["/data/a/words", "/data/b/more"], **data)
    values = {"clips": 3, "accuracy": 0.5}
    scores = {"/data/c/dev": values, "/data/d/x": values, "/d/e/x": values | {"accuracy": math.nan}}
    rows = score_rows(FineTuningResult(4, None, None, "", scores), arguments)
    assert [(row.data, row.split) for row in rows] == [
        ("c/dev", "validation"), ("x (1)", "test"), ("x (2)", "test")
    ]  # fmt: skip
    assert {row.protocol for row in rows} == {"3 validation clips, last checkpoint", "3 test clips, last checkpoint"}
    (row,) = score_rows(FineTuningResult(4, 2, None, "", {HELD_OUT: values}), arguments)
    assert (row.data, row.split) == ("words + more", "held-out")
    assert row.protocol == "3 held-out clips, best checkpoint by held-out clips (step 2)"
