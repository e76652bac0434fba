"""The command on real speech, a few clips of it."""

import json

from training import unit_quality


def test_all_figures_of_a_few_clips(speech, tmp_path, capsys):
    def few(name, count):
        lines = (speech / name / "metadata.csv").read_text().splitlines()
        (tmp_path / name).mkdir()
        files = [line.partition(",")[0] for line in lines[1 : count + 1]]
        header, *rows = lines[: count + 1]
        for file in files:
            (tmp_path / name / file).parent.mkdir(exist_ok=True)
            (tmp_path / name / file).symlink_to(speech / name / file)
        (tmp_path / name / "metadata.csv").write_text("\n".join([header, *rows]))
        return str(tmp_path / name)

    aligned, words = few("ljspeech_phones", 6), few("arabic_speech_commands", 24)
    options = ["--components", "20", "--frames", "2000", "--noise", str(speech / "noise" / "speech_commands")]
    options += ["--words", words, "--layers", "2", "--output", str(tmp_path / "quality.json")]
    unit_quality.main(["model_cards/tiny", "--data", aligned, "--train_data", aligned, *options])
    rows = json.loads((tmp_path / "quality.json").read_text())["rows"]
    assert [row["units"] for row in rows] == [
        "k-means of MFCC, 20",
        "k-means of untrained, layer 2, 20",
        "k-means of encoder, layer 2, 20",
        "mixture, 500",
        "prediction, 500",
    ]
    for row in rows:
        assert 0 < row["pnmi"] < 1 and 0 < row["purity"] < 1 and row["abx_phones"] < 0.5
        assert 0 < row["noise"] and 0 < row["speed"] and row["bits_a_second"] > 10
    assert "| PNMI |" in capsys.readouterr().out
