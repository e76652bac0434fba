"""The command on real speech, a few clips of it."""

import json
from collections import Counter
from contextlib import redirect_stdout
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from full_disk import FullDisk

from sjepa_hf import SJepaForPreTraining
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

    aligned, words = few("ljspeech_phones", 4), few("arabic_speech_commands", 8)
    (tmp_path / "noise").mkdir()
    for file in ("pink_noise.opus", "running_tap.opus"):
        (tmp_path / "noise" / file).symlink_to(speech / "noise" / "speech_commands" / file)
    soundfile.write(tmp_path / "noise" / "a.wav", np.full(16000, np.nan, np.float32), 16000, "FLOAT")
    options = ["--components", "20", "--frames", "2000", "--noise", str(tmp_path / "noise")]
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
        assert row["abx_phones_triplets"] >= row["abx_phones_cells"] > 0
        assert row["abx_words_across"] is None and row["abx_words_across_triplets"] == 0, "it is one word"
    triplets = rows[0]["abx_phones_triplets"]
    assert f"| PNMI | ABX phones ({triplets} triplets) |" in capsys.readouterr().out


def test_words_are_drawn_with_pairs_of_one_voice():
    voices, words = zip(*((f"v{i % 30}", f"w{i // 30 % 40}") for i in range(3600)))
    drawn = unit_quality.drawn_words(voices, words, 100, 0)
    cells = Counter((voices[i], words[i]) for i in drawn)
    assert len(drawn) == 100 and sum(count == 3 for count in cells.values()) == 33
    assert 5 <= len({voice for voice, _ in cells}) <= 7 and 5 <= len({word for _, word in cells}) <= 7
    assert unit_quality.drawn_words(voices, words, None, 0) == list(range(3600))
    assert len(unit_quality.drawn_words(["v"] * 90, ["a", "b", "c"] * 30, 60, 0)) == 15, "no more than ABX keeps"


def test_a_missing_column_is_told_with_the_option_that_names_another(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 8000), 16000)
    (tmp_path / "metadata.csv").write_text("file_name,keyword\na.wav,yes\n")
    for columns in ({"speaker_label": "speaker"}, {"word_label": "keyword", "speaker_label": "speaker"}):
        with pytest.raises(ValueError, match="no column 'speaker'.* Name another with --speaker_label."):
            unit_quality.open_named([str(tmp_path)], columns)
    with pytest.raises(ValueError, match="no column 'word'.* Name another with --word_label."):
        unit_quality.open_named([str(tmp_path)], {"word_label": "word", "speaker_label": "keyword"})
    assert len(unit_quality.open_named([str(tmp_path)], {"word_label": "keyword"})) == 1


def test_figures_are_written_before_they_are_printed(tmp_path, monkeypatch):
    monkeypatch.setattr(unit_quality, "QualityData", lambda arguments: None)
    monkeypatch.setattr(unit_quality, "subjects", lambda *_: [("mixture, 4", None)])
    monkeypatch.setattr(unit_quality, "measure", lambda *_: {"purity": 0.5})
    output = tmp_path / "quality.json"
    with redirect_stdout(FullDisk()), pytest.raises(SystemExit, match="error: .*No space left"):
        unit_quality.main(["model", "--data", "a", "--train_data", "b", "--output", str(output)])
    assert json.loads(output.read_text())["rows"] == [{"units": "mixture, 4", "purity": 0.5}]


def test_an_output_that_cannot_be_is_told_before_anything_is_opened(tmp_path):
    with pytest.raises(SystemExit, match="error: `output` .* is a directory: name a file"):
        unit_quality.main(["nowhere", "--data", "a", "--train_data", "b", "--output", str(tmp_path)])


def test_fewer_frames_than_clusters_are_refused_for_what_they_are(make_config, tmp_path):
    """Not with a call for more audio."""
    with pytest.raises(ValueError, match="`frames` is 100: 101 `components` need at least as many"):
        unit_quality.QualityArguments(["a"], ["b"], components=101, frames=100)
    SJepaForPreTraining(make_config("log_mel", num_mixture_components=8)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`frames` is 7: 8 `components` need at least as many"):  # the checkpoint's
        next(unit_quality.subjects(str(tmp_path), unit_quality.QualityArguments(["a"], ["b"], frames=7)))


@pytest.mark.parametrize(
    ("options", "sources"),
    [
        ({"snr": 0.0, "words": ["w"]}, "`noise`"),
        ({"word_label": "word", "voices": ["v"]}, "`words`"),
        ({"speaker_label": "who", "noise": "n"}, "`words` or `voices`"),
    ],
)
def test_what_says_how_a_source_is_read_goes_with_it(options, sources):
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"`{name}` has no use without {sources}: give the source"):
        unit_quality.QualityArguments(["a"], ["b"], **options)
    given = unit_quality.QualityArguments(["a"], ["b"], noise="n", words=["w"])
    assert (given.snr, given.word_label, given.speaker_label) == (10.0, "keyword", "speaker")
    assert unit_quality.QualityArguments(["a"], ["b"], voices=["v"], speaker_label="who").speaker_label == "who"


ARGUMENTS = unit_quality.QualityArguments(["a"], ["b"], words=["w"], word_label="word", noise="n", snr=0.0)


class Clips(list):
    """Samples `(16000,)` of clips, and their labels."""

    def __init__(self, samples, **labels):
        super().__init__({"input_values": each} for each in samples)
        self.labels, self.num_samples = labels, [16000] * len(self)

    def clip(self, index):
        return SimpleNamespace(name=f"{index}.wav")


def spell(text: str) -> np.ndarray:
    """A second in which each letter is a level: A is 1, B is 2."""
    return np.repeat([ord(letter) - 64 for letter in text], 16000 // len(text)).astype(np.float32)


def levels(samples: np.ndarray) -> np.ndarray:
    """Units that are the levels at the frames' centres."""
    return samples[200 : len(samples) - 200 : 320].round().astype(int).clip(0)


def quality_data(**more) -> SimpleNamespace:
    texts = ["ABAB", "AABA"]
    phones, ends = [" ".join(text) for text in texts], ["0.25 0.5 0.75 1"] * 2
    numbers = [torch.from_numpy(levels(spell(text)) - 1) for text in texts]
    aligned = Clips(map(spell, texts), phones=phones, phone_ends=ends)
    nothing = {"words": None, "voices": None, "noise": None}
    return SimpleNamespace(aligned=aligned, known=["A", "B"], phones=numbers, **nothing | more)


def test_units_that_are_the_phones_are_perfect():
    noise = [np.zeros(16000, np.float32), np.tile(np.float32([3, -3]), 8000)]  # of which each clip has its own
    texts = ["AAAA", "BBBB", "AAAA", "BBBB"]
    words = Clips(map(spell, texts), word=texts, speaker=["x", "x", "y", "y"])
    found = unit_quality.measure(levels, quality_data(noise=noise, words=words), ARGUMENTS)
    assert (found["purity"], found["pnmi"]) == (1, pytest.approx(1)) and found["units_used"] == 2
    assert found["purity_chance"] < 1 and found["pnmi_chance"] < 0.5
    assert found["bits_a_second"] == pytest.approx(7 / 2 * -(4 * np.log2(4 / 7) + 3 * np.log2(3 / 7)) / 7)
    assert found["abx_words_within"] is None, "no voice says a word twice"
    assert (found["abx_words_across"], found["abx_words_across_triplets"]) == (0, 4)
    assert found["noise"] > 0, "that of the second clip is loud"
    assert found["speed"] == 0
    silent = unit_quality.measure(levels, quality_data(noise=noise[:1]), ARGUMENTS)
    assert silent["noise"] == 0 and silent["pnmi"] == found["pnmi"]


def test_mfcc_are_clustered_in_units_of_their_spread(monkeypatch):
    rng, asked = np.random.default_rng(0), []
    features = {True: rng.normal(size=(1, 200, 3)).astype(np.float32)}
    features[False] = features[True] * np.float32([1, 1024, 1])
    monkeypatch.setattr(unit_quality, "open_encoder", lambda name, device, untrained_seed: name)
    monkeypatch.setattr(
        unit_quality,
        "features_of_layers",
        lambda name, layers: asked.append(layers) or (lambda plain: features[plain]),
    )
    found = [
        unit_quality.clustered(name, 2, 5, [{"input_values": plain}], ARGUMENTS)(plain).tolist()
        for name in ("mfcc", "x/y")
        for plain in (True, False)
    ]
    assert found[0] == found[1] and found[2] != found[3] and asked == [[2]] * 4


@pytest.mark.parametrize("fitted", [None, "mfcc"])
def test_the_middle_layer_is_clustered_where_none_is_named(monkeypatch, fitted):
    config = SimpleNamespace(model_type="sjepa", num_hidden_layers=12, mixture_features=fitted)
    model = SimpleNamespace(mixture=SimpleNamespace(num_components=7), config=config)
    monkeypatch.setattr(unit_quality, "open_config", lambda name: config)
    monkeypatch.setattr(unit_quality, "open_pretraining", lambda name: model)
    monkeypatch.setattr(unit_quality, "open_labelled", lambda *_: [])
    monkeypatch.setattr(unit_quality, "clustered", lambda name, layer, components, *_: (name, layer, components))
    opened = []
    monkeypatch.setattr(
        unit_quality, "unit_extractor", lambda name, source, *_: opened.append(source) or SimpleNamespace(extract=None)
    )
    found = dict(unit_quality.subjects("x/y", ARGUMENTS))
    assert found["k-means of encoder, layer 6, 7"] == ("x/y", 6, 7)
    assert found["k-means of untrained, layer 6, 7"] == ("untrained:x/y", 6, 7)
    assert opened == (["mixture", "prediction"] if fitted else ["prediction"])
