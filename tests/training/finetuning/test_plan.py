from types import SimpleNamespace

import pytest

from training import finetune_ctc
from training.finetuning.arguments import FineTuningArguments
from training.finetuning.plan import what_is_trained


def test_the_plan_is_told_and_a_dry_run_stops_there(checkpoint, mine, tmp_path, caplog):
    caplog.set_level("INFO")
    out = tmp_path / "runs" / "out"
    required = ["--model_name_or_path", checkpoint, "--train_data", str(mine), "--output_dir", str(out)]
    finetune_ctc.main([*required, "--use_cpu", "true", "--dry_run", "--max_steps", "30"])
    for said in (
        "Training on 18 clips",
        "Scoring held out: 2 clips",
        r"27,767 of 27,895 parameters are trained, on cpu",
        "Trained: encoder and head, the front end is kept; learning rate 0.0002, the head's 0.001.",
        "30 steps of 8 clips, 3 an epoch (10.0 epochs)",
        "Evaluation every 25 steps",
        f"{out}/final",
        "nothing is trained",
    ):
        assert said in caplog.text, said
    assert not out.parent.exists()
    with pytest.raises(SystemExit, match="`freeze_encoder_steps` is 30, and the run has 30 steps"):
        finetune_ctc.main([*required, "--dry_run", "--max_steps", "30", "--freeze_encoder_steps", "30"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"freeze_feature_encoder": False}, "encoder and head, front end too; learning rate 0.1, the head's 0.2"),
        ({"from_scratch": True}, "encoder with fresh weights and head, front end too; "),
        ({"lora_rank": 4}, "adapters of rank 4 and the head; learning rate"),
        (
            {"reinit_layers": 2, "freeze_encoder_steps": 9},
            "kept; the top 2 layers start afresh; the head alone for 9",
        ),
        ({"frozen": True}, "the head alone; learning rate 0.2"),
    ],
)
def test_the_plan_tells_what_is_trained(options, said):
    chosen = {name: value for name, value in options.items() if name != "frozen"}
    rates = {"args": SimpleNamespace(learning_rate=0.1), "head_learning_rate": 0.2}
    trainer = SimpleNamespace(frozen_encoder="frozen" in options, **rates)
    assert said in what_is_trained(trainer, FineTuningArguments(**chosen))
