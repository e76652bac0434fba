from training.evaluation.superb.tasks import TASKS


def test_settings_are_the_toolkit_s():
    found = {t.name: (t.head, t.learning_rate, t.batch_size, t.max_steps, t.eval_steps) for t in TASKS.values()}
    assert found == {
        "asr": ("recurrent_ctc", 1e-4, 32, 200_000, 2_000),
        "pr": ("linear_ctc", 1e-2, 32, 100_000, 1_000),
        "ks": ("pooled", 1e-4, 32, 200_000, 5_000),
        "ic": ("pooled", 1e-4, 32, 200_000, 5_000),
        "sid": ("pooled", 1e-4, 32, 200_000, 5_000),
        "er": ("pooled", 1e-4, 32, 30_000, 1_000),
        "sf": ("recurrent_ctc", 1e-4, 32, 200_000, 2_000),
        "asv": ("xvector", 1e-4, 50, 200_000, 10_000),
        "sd": ("diarization", 1e-4, 32, 30_000, 500),
        "qbe": ("dtw", 1e-4, 32, 0, 5_000),
    }
    assert all("s3prl" in task.source for task in TASKS.values())
    of_asv = ("asv", 0.01, 1e3)
    assert {(t.name, t.weight_decay, t.max_norm) for t in TASKS.values() if t.max_norm != 1} == {of_asv}
    assert [t.name for t in TASKS.values() if t.spec_augment] == ["asr", "sf"]
    assert [t.name for t in TASKS.values() if not t.is_trained] == ["qbe"]
    assert {t.name: t.gain for t in TASKS.values() if t.gain} == {"ks": -3.0}


def test_no_task_is_tested_on_what_it_is_trained_or_chosen_with():
    for task in TASKS.values():
        sources = [*task.train_data, *task.eval_data, *task.test_data]
        assert len(set(sources)) == len(sources)
    ks, er = TASKS["ks"], TASKS["er"]
    found = [ks.train_data, ks.eval_data, ks.test_data]
    assert found == [[f"s3prl/superb::ks::{split}"] for split in ("train", "validation", "test")]
    assert er.test_data == ["s3prl/superb::er::session1"] and len(er.train_data) == 4
