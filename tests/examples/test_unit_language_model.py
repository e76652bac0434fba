"""The language model of units: better than a unigram where order matters, on corpora of every format; sentences."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from examples.unit_language_model import batch, main, ngram_perplexity, perplexity, pieces, read_units
from training.corpus.extraction import Extracted
from training.corpus.reading import Row
from training.corpus.tables import write_units


SETTINGS = {"what": "units", "weights": "1", "clusters": "prediction", "layers": None, "components": 12}
SMALL = ["--context", "16", "--hidden_size", "32", "--num_layers", "1", "--num_epochs", "15"]


def write_corpus(folder: Path, clips: list[list[int]], form: str = "text", complete: bool = True, **changes) -> str:
    """A corpus as `training.units` leaves it, of frames in which each unit of the clips stands twice."""
    folder.mkdir()
    settings = SETTINGS | {"format": form} | changes
    record = {"settings": settings, "complete": complete, "clips": len(clips)}
    (folder / "corpus.json").write_text(json.dumps(record))
    rows = [Row(n, "here", SimpleNamespace(name=f"{n}.wav"), {}) for n in range(len(clips))]
    found = {n: {"units": torch.tensor(clip).int().repeat_interleave(2)} for n, clip in enumerate(clips)}
    write_units(folder, "units-00000", form, rows, Extracted(found, dict.fromkeys(found, 1.0), {}), (), 0)
    return str(folder)


def cycles(starts: range) -> list[list[int]]:
    """Ten units in turn, three times, from another one on in each clip."""
    return [[(start + n) % 10 for n in range(30)] for start in starts]


def test_a_cycle_is_learned(tmp_path, capsys):
    known, others = cycles(range(10)), [clip[:20] for clip in cycles(range(4))]
    train, test = write_corpus(tmp_path / "a", known), write_corpus(tmp_path / "b", others)
    main([train, test, "--output", str(tmp_path / "lm"), *SMALL, "--learning_rate", "1e-2"])
    found = json.loads((tmp_path / "lm" / "perplexities.json").read_text())
    assert 10 < found["unigram"] < 13
    assert 1 < found["trigram"] < 2 and 1 < found["GPT-2"] < found["unigram"] / 3
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "lm").eval()
    known, others = pieces(known, 14), pieces(others, 14)
    assert found["GPT-2"] == pytest.approx(perplexity(model, others), rel=1e-4)
    ngrams = {name: ngram_perplexity(order, known, others) for name, order in (("unigram", 1), ("trigram", 3))}
    assert ngrams == pytest.approx({name: found[name] for name in ngrams})
    said = capsys.readouterr().out
    assert "300 units to learn from, 80 of " in said and f"{found['GPT-2']:8.1f}" in said
    begun, drawn, true = ([*map(int, line.split()[1:])] for line in said.splitlines()[-3:])
    assert len(begun) == len(true) == 7 and set(np.diff([*begun, *true]) % 10) == {1}
    assert np.mean(np.diff([*begun[-1:], *drawn]) % 10 == 1) > 0.7


def test_perplexity_is_that_of_every_unit_and_end():
    """Whatever else is in the batch; of a model that knows nothing it is the number of choices."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=5, n_positions=16, n_embd=32, n_layer=1, n_head=1, bos_token_id=4, initializer_range=0.5)
    ).eval()
    clips = [[0, 1, 2], [3], [2, 2, 0, 1, 3, 1]]
    assert batch(clips[:2], 4)["input_ids"].tolist() == [[4, 0, 1, 2, 4], [4, 3, 4, 4, 4]]
    assert batch(clips[:2], 4)["labels"].tolist() == [[4, 0, 1, 2, 4], [4, 3, 4, -100, -100]]
    logs = [(len(clip) + 1) * np.log(perplexity(model, [clip])) for clip in clips]
    assert perplexity(model, clips) == pytest.approx(np.exp(sum(logs) / (4 + 2 + 7)))
    torch.nn.init.zeros_(model.transformer.wte.weight)
    assert perplexity(model, clips) == pytest.approx(5)


@pytest.mark.parametrize("form", ["text", "jsonl", "parquet"])
def test_every_format_is_read(form, tmp_path):
    clips = [[3, 1, 3], [7], [0, 11]]
    assert read_units(write_corpus(tmp_path / "units", clips, form))[0] == clips
    assert pieces(clips, 2) == [[3, 1], [3], [7], [0, 11]]


def test_what_cannot_be_gets_a_sentence(tmp_path):
    good, torn = write_corpus(tmp_path / "good", [[1, 2]]), tmp_path / "torn"
    torn.mkdir()
    (torn / "corpus.json").write_text('{"settings": {"wh')
    out = ["--output", str(tmp_path / "lm")]
    for test, said in (
        (write_corpus(tmp_path / "other", [[1, 2]], weights="2"), "`weights` is '2', not '1'. Make both with one"),
        (write_corpus(tmp_path / "more", [[1, 2]], components=13), "`components` is 13, not 12. Make both with"),
        (write_corpus(tmp_path / "ema", [[1, 2]], **{"ema encoder": True}), "`ema encoder` is True, not None"),
        (write_corpus(tmp_path / "half", [[1, 2]], complete=False), "is not whole, or has no clip: run the command"),
        (write_corpus(tmp_path / "features", [[1, 2]], what="features"), "holds features, not units"),
        (str(tmp_path), "holds no corpus of units: python -m training.units writes one"),
        (write_corpus(tmp_path / "empty", []), "has no clip"),
        (str(torn), "is not whole: run the command that wrote it again"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{said}"):
            main([good, test, *out])
    for options, said in (
        (["--context", "7"], "`context` is 7; it must be at least 8"),
        (["--hidden_size", "40"], "`hidden_size` must be a multiple of 32, got 40"),
        (["--output", good], "is there already: name a folder that is not"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{said}"):
            main([good, good, *out, *options])
    assert not (tmp_path / "lm").exists()
