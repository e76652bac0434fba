from training.evaluation.superb.tasks import HEAD_UNITS, TASKS, slot_classification


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
    assert {t.name: t.silence for t in TASKS.values() if t.balanced or t.silence} == {"ks": "_silence_"}
    assert HEAD_UNITS == {"recurrent_ctc": 1024, "xvector": 512, "diarization": 512}


def test_labels_and_metrics_are_those_of_the_benchmark_and_the_first_metric_chooses():
    found = {t.name: (t.labels, t.columns, t.metrics) for t in TASKS.values()}
    assert found == {
        "asr": ("characters", ("text",), ("wer", "cer")),
        "pr": ("phones", ("text",), ("per",)),
        "ks": ("classes", ("label",), ("accuracy",)),
        "ic": ("classes", ("action", "object", "location"), ("accuracy",)),
        "sid": ("classes", ("label",), ("accuracy",)),
        "er": ("classes", ("label",), ("accuracy",)),
        "sf": ("slot_characters", ("text",), ("slot_type_f1", "slot_value_cer")),
        "asv": ("speakers", ("label",), ("eer",)),
        "sd": ("speakers", ("speaker",), ("der",)),
        "qbe": ("words", ("keyword",), ("mtwv",)),
    }


def test_slots_by_classification_have_the_head_and_the_settings_of_intents():
    task, sf, ic = slot_classification(), TASKS["sf"], TASKS["ic"]
    assert (task.name, task.metrics, task.labels) == (sf.name, sf.metrics, "slots")
    names = ("head", "learning_rate", "batch_size", "max_steps", "eval_steps", "spec_augment", "balanced", "gain")
    assert [getattr(task, name) for name in names] == [getattr(ic, name) for name in names]


def test_no_task_is_tested_on_what_it_is_trained_or_chosen_with():
    for task in TASKS.values():
        sources = [*task.train_data, *task.eval_data, *task.test_data]
        assert len(set(sources)) == len(sources)
    found = {t.name: [t.train_data, t.eval_data, t.test_data] for t in TASKS.values() if t.train_data}
    librispeech = [[f"openslr/librispeech_asr::clean::{split}"] for split in ("train.100", "validation", "test")]
    assert found.pop("asr") == found.pop("pr") == librispeech
    train, dev, test = found.pop("er")
    assert train == [f"s3prl/superb::er::session{number}" for number in (2, 3, 4, 5)] and dev == []
    assert test == ["s3prl/superb::er::session1"]
    for name, config in {"ks": "ks", "ic": "ic", "sid": "si"}.items():
        assert found.pop(name) == [[f"s3prl/superb::{config}::{split}"] for split in ("train", "validation", "test")]
    assert found == {}
