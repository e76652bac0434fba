from training.evaluation.superb import summary
from training.evaluation.superb.summary import means, summary_table, write_summary


def row(encoder, **metrics):
    return {"encoder": encoder, "metrics": metrics}


RESULTS = {
    "asr": [row("mfcc", wer=0.5, cer=0.25), row("mfcc", wer=1.0, cer=0.75), row("x/final", wer=0.25, cer=0.125)],
    "qbe": [row("x/final", mtwv=0.0625)],
}


def test_a_row_an_encoder_and_a_column_a_metric():
    lines = summary_table(means(RESULTS)).splitlines()
    assert lines[0] == "| encoder | asr wer ↓ | asr cer ↓ | qbe mtwv ↑ |"
    assert lines[2:] == ["| mfcc | 0.7500 | 0.5000 |  |", "| x/final | 0.2500 | 0.1250 | 0.0625 |"]


def test_table_and_picture_are_written(pictures, tmp_path):
    text = write_summary(RESULTS, tmp_path)
    assert (tmp_path / "all.md").read_text() == text + "\n" and (tmp_path / "all.png").stat().st_size > 1000


def test_each_metric_has_a_panel_with_the_bar_of_each_encoder(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(summary, "save", lambda figure, path: figures.append(figure))
    found = {("asr", "wer"): {"b": 0.5, "a": 0.25}, ("qbe", "mtwv"): {"a": 0.125}}
    found |= {("ks", f"m{n}"): {"b": n / 8} for n in range(3)}
    summary.draw(found, tmp_path / "all.png")
    panels = figures[0].axes
    for axes, ((task, metric), own) in zip(panels, found.items()):
        bars = zip([label.get_text() for label in axes.get_yticklabels()], axes.patches, strict=True)
        assert axes.get_title().startswith(f"{task}: {metric} ") and axes.yaxis_inverted()
        assert {name: bar.get_width() for name, bar in bars} == own
    assert [axes.axison for axes in panels] == [True] * 5 + [False] * 3


def test_results_no_better_than_chance_are_named_by_task(tmp_path):
    idle = row("mfcc", accuracy=0.1) | {"seed": 1, "learned": False, "hyperparameters": {}}
    in_folds = idle | {"hyperparameters": {"folds": "who"}}
    better = row("mfcc", accuracy=0.9) | {"seed": 0, "learned": True}
    text = write_summary({**RESULTS, "ks": [better, idle], "er": [in_folds]}, tmp_path)
    assert text.split("\n\n")[1:] == [
        "ks: No better than chance: mfcc, seed 1.",
        "er: No better than chance in a fold or more: mfcc, seed 1.",
    ]
    assert "chance" not in write_summary(RESULTS | {"ks": [better]}, tmp_path)
