"""CTC head: its clips, tokenizer, batches and error rates, from normalised transcripts."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import EvalPrediction, Wav2Vec2CTCTokenizer, Wav2Vec2Processor

from sjepa_hf.encoding import pad_waveforms
from sjepa_hf.frames import length_mask
from sjepa_hf.opening import open_pretrained
from training.common.learned import judge_texts
from training.common.naming import several
from training.data.labelled import LabelledClips
from training.finetuning.text import TextNormalizer, build_tokenizer, needed_frames, read_labels
from training.finetuning.trainer import FineTuner
from training.finetuning.transcribe import error_rates


logger = logging.getLogger(__name__)

NAMED = 10  # clips that are named when several are left out or too short


def normalized(clips: LabelledClips, column: str, normalizer: TextNormalizer, name: str) -> LabelledClips:
    """The clips with normalised transcripts; those of which nothing is left are left out, counted and named."""
    texts = [normalizer(text) for text in clips.labels[column]]
    kept = left_in(clips, [bool(text) for text in texts], f"{name}: {{}} clips have an empty transcript")
    kept.labels[column] = [text for text in texts if text]
    if not kept.labels[column]:
        raise ValueError(f"{name} has no transcript with a character once normalised: see `drop_characters`.")
    return kept


def open_tokenizer(path: str | None, texts: Sequence[str]) -> Wav2Vec2CTCTokenizer:
    """
    The tokenizer at `path`, a directory or a name on the Hub; None: a new one over the characters of the texts.

    Raises:
        ValueError: if it cannot be opened.
    """
    if path is None:
        return build_tokenizer(texts)
    try:
        return open_pretrained(Wav2Vec2CTCTokenizer, path)
    except ValueError as error:
        raise ValueError(f"`tokenizer_name_or_path` {path} is no Wav2Vec2CTCTokenizer: {error}") from None


def fitting(clips: LabelledClips, column: str, tokenizer: Wav2Vec2CTCTokenizer, model: torch.nn.Module) -> list[bool]:
    """Which clips have frames enough for their labels."""
    frames = model._get_feat_extract_output_lengths(torch.tensor(clips.num_samples)).tolist()
    needed = [needed_frames(labels) for labels in tokenizer(clips.labels[column]).input_ids]
    return [n <= available for n, available in zip(needed, frames)]


def long_enough(
    clips: LabelledClips, column: str, tokenizer: Wav2Vec2CTCTokenizer, model: torch.nn.Module
) -> LabelledClips:
    """The training clips with frames enough for their labels; the others are left out, counted and named."""
    enough = fitting(clips, column, tokenizer, model)
    if not any(enough):
        raise ValueError("No training clip has as many frames as its transcript has characters: are they in seconds?")
    return left_in(clips, enough, "train_data: {} clips have more characters than frames")


def tell_too_short(
    clips: LabelledClips, column: str, tokenizer: Wav2Vec2CTCTokenizer, model: torch.nn.Module, name: str
) -> None:
    """Count and name in the log scored clips without frames enough for their labels."""
    short = [i for i, fits in enumerate(fitting(clips, column, tokenizer, model)) if not fits]
    if short:
        logger.warning(
            "%s: %d clips have more characters than frames: are their transcripts those of other clips? Error rates"
            " count them, eval_loss takes their losses for 0: %s.",
            name,
            len(short),
            named(clips, short),
        )


def left_in(clips: LabelledClips, chosen: Sequence[bool], message: str) -> LabelledClips:
    """The chosen clips; how many are not, and which, is logged as `message`."""
    left_out = [i for i, kept in enumerate(chosen) if not kept]
    if left_out:
        logger.warning("%s and are left out: %s.", message.format(len(left_out)), named(clips, left_out))
    return clips.select([i for i, kept in enumerate(chosen) if kept])


def named(clips: LabelledClips, numbers: Sequence[int]) -> str:
    """Names of the first of these clips."""
    return several((clips.clip(i).name for i in numbers[: NAMED + 1]), NAMED)


class CtcCollator:
    """
    Clips with transcripts in `column` -> waveforms with attention mask, labels padded with -100, and `references`: the
    transcripts as code points, padded alike, since labels do not tell one unknown character from another.
    """

    def __init__(self, processor: Wav2Vec2Processor, column: str):
        self.processor, self.column = processor, column

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        batch = pad_waveforms(self.processor.feature_extractor, [example["input_values"] for example in examples])
        texts = [example[self.column] for example in examples]
        labels = self.processor.tokenizer(texts).input_ids
        return dict(batch) | {"labels": padded(labels), "references": padded([list(map(ord, text)) for text in texts])}


def padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Rows of numbers as one tensor `(rows, longest)`, filled up with -100."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=-100)


class CtcFineTuner(FineTuner):
    """Evaluates the best label of every real frame against the transcripts themselves."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        return super().compute_loss(model, {k: v for k, v in inputs.items() if k != "references"}, *args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        loss, logits, _ = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if logits is None:
            return loss, None, None
        lengths = self.model._get_feat_extract_output_lengths(inputs["attention_mask"].sum(-1)).to(logits.device)
        padding = ~length_mask(lengths, logits.shape[1])
        return loss, logits.argmax(-1).masked_fill(padding, -100), inputs["references"].to(logits.device)


def greedy_error_rates(prediction: EvalPrediction, tokenizer: Wav2Vec2CTCTokenizer) -> dict[str, float]:
    """
    WER and CER of the labels of all frames, `(clips, num_frames)`, against the code points of the transcripts; shares
    of empty texts and of frames with the blank; and `learned`, 1 or 0, where that can be told.
    """
    labels = prediction.predictions
    texts = [read_labels(row[row >= 0].tolist(), tokenizer) for row in labels]
    references = ["".join(map(chr, row[row >= 0])) for row in prediction.label_ids]
    verdict = judge_texts(texts, references)
    shares = {
        "empty_texts": sum(not text for text in texts) / len(texts),
        "blank_frames": float((labels == tokenizer.pad_token_id).sum() / (labels >= 0).sum()),
    }
    learned = {} if verdict.learned is None else {"learned": float(verdict.learned)}
    return error_rates(texts, references) | shares | learned


def save_text_tools(directory: Path, processor: Wav2Vec2Processor, normalizer: TextNormalizer) -> None:
    """Write what turns audio and text into numbers, and back, beside a model."""
    processor.save_pretrained(directory)
    normalizer.save(directory)
