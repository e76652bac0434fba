from training.evaluation.superb.results import table


def test_table_gives_mean_and_deviation():
    result = {
        "task": "sid", "title": "t", "encoder": "e", "metrics": {"accuracy": 0.5}, "layer_weights": [0.4, 0.6],
        "clips": dict(train=3, dev=2, test=1), "hours": dict(train=0.3, dev=0.2, test=0.1),
        "hyperparameters": dict(max_steps=9, batch_size=2, learning_rate=0.1),
    }  # fmt: skip
    text = table([result, result | {"metrics": {"accuracy": 0.7}}])
    assert "0.6000 ± 0.1414 | 2     | 1 of 0 to 1 (0.60)" in text
