import json

from finetuning_runs import run
from transformers import AutoModelForCTC

from training import finetune_classification, finetune_ctc


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
