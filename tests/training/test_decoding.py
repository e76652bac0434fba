import json
import re
import shutil
from contextlib import redirect_stdout
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from full_disk import FullDisk
from transformers import (
    pipeline,
)

from sjepa_hf import SJepaForPreTraining
from sjepa_hf.feature_extraction import feature_extractor
from training import decoding
from training.data.waveforms import read_audio
from training.finetuning.ngram import NGram
from training.finetuning.text import TextNormalizer


def test_decode_wants_a_model_with_a_ctc_head(make_config, tmp_path):
    SJepaForPreTraining(make_config("log_mel")).save_pretrained(tmp_path)
    feature_extractor().save_pretrained(tmp_path)
    with pytest.raises(
        SystemExit, match="error: .* has no CTC head, which transcripts need: give the result of a fine-tuning"
    ):
        decoding.main(["decode", "--model", str(tmp_path), "--data", str(tmp_path)])


def test_build_ngram_from_text_and_from_transcripts(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("The cat.\n\nThe dog!\n")
    rows = [{"audio_filepath": "none.wav", "sentence": text} for text in ("The cat.", "The dog!")]
    (tmp_path / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)))
    TextNormalizer(case="lower").save(tmp_path)
    for source, case in (("text.txt", str.upper), ("clips.jsonl", str.lower)):
        model = ["--model", str(tmp_path)] if case is str.lower else []
        output = tmp_path / f"{source}.arpa"
        command = ["build-ngram", "--text", str(tmp_path / source), "--order", "2", "--output", str(output)]
        decoding.main([*command, *model])
        lm = NGram.load(output)
        assert lm.words == {case("the"), case("cat"), case("dog")} and lm.order == 2
        assert "2 sentences" in capsys.readouterr().out
    (tmp_path / "latin.txt").write_bytes("A caf\u00e9.".encode("latin-1"))
    with pytest.raises(SystemExit, match="error: .*latin.txt, line 1: the byte 0xe9 is not UTF-8"):
        decoding.main(["build-ngram", "--text", str(tmp_path / "latin.txt"), "--output", str(tmp_path / "x.arpa")])
    with pytest.raises(SystemExit, match="error: .* has no column"):
        bad = ["--text_column", "words", "--output", str(tmp_path / "x.arpa")]
        decoding.main(["build-ngram", "--text", str(tmp_path / "clips.jsonl"), *bad])
    assert not (tmp_path / "x.arpa").exists()


def test_pipeline_and_decode_command_agree_with_the_results(recogniser, mine, tmp_path, capsys):
    """Clips that a fine-tuning would leave out are left out: of no text, and shorter than a frame."""
    ready, final = recogniser
    rows = [json.loads(line) for line in (final / "transcripts.jsonl").read_text().splitlines()]
    recognise = pipeline("automatic-speech-recognition", str(final), device="cpu")
    for row in rows:
        text = recognise({"raw": read_audio(row["clip"]), "sampling_rate": 16000})["text"]
        assert " ".join(text.split()) == row["greedy"]
    data = shutil.copytree(mine, tmp_path / "data")
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000)
    with open(data / "metadata.csv", "a") as file:
        for name, text, samples in (("empty", "...", noise), ("short", "a", noise[:399])):
            file.write(f"{name}.wav,{text}\n")
            soundfile.write(data / f"{name}.wav", samples, 16000)
    decoding.main(["decode", "--model", str(final), "--data", str(data), "--lm", str(final.parent / "lm.arpa")])
    lines = capsys.readouterr().out.splitlines()
    assert re.search(r": 20 clips, 80 words, \d+ characters; greedy: WER \d+\.\d\d %, CER .* %; lm: WER", lines[0])
    shown = [line for line in lines if line.startswith("  heard")]
    assert len(shown) == 6 and sum("(worst)" in line for line in lines) == 3
    (scores,) = json.loads(lines[-1]).values()
    assert scores["clips"] == 20 and scores["lm"].keys() == {"wer", "cer"}


def test_transcripts_are_written_before_anything_is_printed(recogniser, mine, tmp_path):
    transcripts = tmp_path / "transcripts.jsonl"
    with redirect_stdout(FullDisk()), pytest.raises(SystemExit, match="error: .*No space left"):
        decoding.main([
            "decode", "--model", str(recogniser[1]), "--data", str(mine), "--transcripts", str(transcripts)
        ])  # fmt: skip
    assert len(transcripts.read_text().splitlines()) == 20


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["decode", "--batch_size", "0"], "`batch_size` must be at least 1, got 0"),
        (["decode", "--batch_size", "-1"], "`batch_size` must be at least 1, got -1"),
        (["decode", "--examples", "-1"], "`examples` must be at least 0, got -1"),
        (["decode", "--lm", "lm.arpa", "--beam_width", "0"], "`beam_width` must be at least 1, got 0"),
        (["decode", "--transcripts", "FOLDER"], "`transcripts` .* is a directory: name a file"),
        (
            ["decode", "--transcripts", "FOLDER/file/q.jsonl"],
            "`transcripts` .*file/q.jsonl cannot be written: ",
        ),
        (["build-ngram", "--output", "lm.arpa", "--order", "0"], "`order` must be at least 1, got 0"),
        (["build-ngram", "--output", "FOLDER"], "`output` .* is a directory: name a file"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_opened(tmp_path, options, sentence):
    (tmp_path / "file").write_text("")
    rest = {"decode": ["--model", "nowhere", "--data", "nowhere"], "build-ngram": ["--text", "nowhere"]}[options[0]]
    with pytest.raises(SystemExit, match=f"error: {sentence}"):
        decoding.main([option.replace("FOLDER", str(tmp_path)) for option in options] + rest)


class Clips:
    labels = {"said": ["A B"]}

    def __len__(self):
        return 1


def test_all_that_a_command_asks_for_reaches_the_decoder(monkeypatch, capsys):
    told = {}

    def note(name, answer=None):
        def called(*given, **options):
            told[name] = (given, options)
            return answer

        return called

    rates = {"clips": 1, "greedy": {"wer": 0.5, "cer": 0.25}, "lm": {"wer": 0.123456, "cer": 0.1}}
    recogniser = SimpleNamespace(tokenizer="tokens"), SimpleNamespace(to=lambda device: None)
    for name, answer in {
        "open_recogniser": recogniser,
        "choose_column": "said",
        "open_labelled": Clips(),
        "normalized": Clips(),
        "check_language_model": None,
        "BeamSearchDecoder": "decoder",
        "evaluate_clips": (rates, [{"reference": "A B"}]),
        "examples": [],
    }.items():
        monkeypatch.setattr(decoding, name, note(name, answer))
    monkeypatch.setattr(decoding.TextNormalizer, "load", note("load", "normalizer"))
    monkeypatch.setattr(decoding.NGram, "load", note("lm", "n-gram"))
    command = "decode --model m --data d --lm lm.arpa --alpha 0 --beta 0.5 --text_column said --batch_size 3"
    decoding.main(command.split())
    assert told["load"][0] == ("m",) and told["choose_column"][0][:2] == (["d"], "said")
    assert told["open_labelled"][1] == {"min_seconds": decoding.MIN_SECONDS}
    assert told["normalized"][0][1:] == ("said", "normalizer", "d")
    assert told["check_language_model"][0] == ("n-gram", "lm.arpa", "tokens", ["A B"])
    assert told["BeamSearchDecoder"] == (("tokens", "n-gram"), {"alpha": 0.0, "beta": 0.5})
    assert told["evaluate_clips"][0][3:] == (["A B"], "decoder", 3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "d: 1 clips, 2 words, 3 characters; greedy: WER 50.00 %, CER 25.00 %; lm: WER 12.35 %, CER 10.00 %"
    )
    assert json.loads(lines[-1])["d"]["lm"]["wer"] == 0.1235
