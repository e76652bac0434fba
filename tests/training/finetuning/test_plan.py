import pytest

from training import finetune_ctc


def test_the_plan_is_told_and_a_dry_run_stops_there(checkpoint, mine, tmp_path, caplog):
    caplog.set_level("INFO")
    required = ["--model_name_or_path", checkpoint, "--train_data", str(mine), "--output_dir", str(tmp_path / "out")]
    finetune_ctc.main([*required, "--use_cpu", "true", "--dry_run", "--max_steps", "30"])
    for said in (
        "Training on 18 clips",
        "Scoring held out: 2 clips",
        r"27,767 of 27,895 parameters are trained, on cpu",
        "30 steps of 8 clips, 3 an epoch (10.0 epochs)",
        "of a batch is padding",
        "Evaluation every 25 steps",
        f"{tmp_path}/out/final",
        "nothing is trained",
    ):
        assert said in caplog.text, said
    assert not list(tmp_path.glob("out/*"))
    with pytest.raises(SystemExit, match="`freeze_encoder_steps` is 30, and the run has 30 steps"):
        finetune_ctc.main([*required, "--dry_run", "--max_steps", "30", "--freeze_encoder_steps", "30"])
