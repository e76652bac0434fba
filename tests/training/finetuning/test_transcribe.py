import numpy as np
import pytest
import torch
from other_encoders import KINDS
from transformers import AutoModelForCTC, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

from training.common import progress
from training.data.labelled import open_labelled
from training.finetuning import transcribe
from training.finetuning.text import build_tokenizer
from training.finetuning.transcribe import error_rates, evaluate_clips, examples, frame_log_probs


ROWS = [{"clip": f"{n}.wav", "reference": "A B", "greedy": heard} for n, heard in enumerate(["A B", "", "A A", "A B"])]


def test_the_worst_come_first_and_others_are_drawn(monkeypatch):
    monkeypatch.setattr(transcribe, "load_metric", None)  # far too slow for single clips
    lines = examples(ROWS, 1)
    assert lines[:3] == ["1.wav (worst)", "  said   A B", "  heard  "] and "drawn at random" in lines[3]
    assert len(lines) == 6 and lines == examples(ROWS, 1) and examples([], 3) == []
    assert examples([row | {"lm": "B"} for row in ROWS], 1)[2] == "  heard  B"


def test_error_rates():
    assert error_rates(["A B", "A"], ["A B", "A B"]) == {"wer": 0.25, "cer": pytest.approx(1 / 3)}


def test_clips_are_read_longest_first_and_without_padding(mine, checkpoint, monkeypatch, caplog):
    from transformers import AutoModelForCTC

    from sjepa_hf.feature_extraction import feature_extractor

    tokenizer = build_tokenizer(["AB"])
    processor = Wav2Vec2Processor(feature_extractor=feature_extractor(), tokenizer=tokenizer)
    model = AutoModelForCTC.from_pretrained(checkpoint, vocab_size=len(tokenizer)).eval()
    clips = open_labelled([str(mine)], ["text"]).select(range(5))
    found = dict(frame_log_probs(model, processor, clips, batch_size=3))
    lengths = [clips.num_samples[i] for i in found]
    assert sorted(found) == list(range(5)) and lengths == sorted(lengths, reverse=True)
    for i, values in found.items():
        with torch.no_grad():
            alone = model(torch.from_numpy(clips[i]["input_values"])[None]).logits[0].log_softmax(-1).numpy()
        assert values.shape == alone.shape and np.abs(values - alone).max() < 1e-3
    monkeypatch.setattr(progress, "SILENCE", 0.0)
    caplog.set_level("INFO")
    scores, rows = evaluate_clips(model, processor, clips, ["A"] * 5)
    assert caplog.messages[-5:] == [f"Decoding: {number} of 5 clips." for number in range(1, 6)]
    assert scores["clips"] == len(rows) == 5 and scores.keys() == {"clips", "greedy"}


@pytest.mark.parametrize(("kind", "passes", "within"), [("hubert", 3, 0.0), ("wavlm", 1, 1e-5)])
def test_no_clip_hears_another(kind, passes, within, mine):
    """HuBERT base norms over padding, and gets each clip alone; encoders of layer norms get batches."""
    tokenizer = build_tokenizer(["AB"])
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    processor = Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer)
    model, calls = AutoModelForCTC.from_config(KINDS[kind]).eval(), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    clips = open_labelled([str(mine)], ["text"]).select(range(3))
    together = dict(frame_log_probs(model, processor, clips, 3))
    assert len(calls) == passes
    alone = dict(frame_log_probs(model, processor, clips, 1))
    assert len({len(values) for values in alone.values()}) > 1, "there is padding"
    assert all(np.allclose(values, together[i], rtol=0, atol=within) for i, values in alone.items())
