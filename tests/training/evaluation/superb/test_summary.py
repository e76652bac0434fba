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


def test_table_and_picture_are_written(tmp_path):
    text = write_summary(RESULTS, tmp_path)
    assert (tmp_path / "all.md").read_text() == text + "\n" and (tmp_path / "all.png").stat().st_size > 1000
