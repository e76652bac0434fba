"""Transcripts of clips by a CTC model, greedy and with a language model, and their error rates."""

import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from sjepa_hf.encoding import pad_waveforms
from training.common.learned import cer
from training.common.metrics import load_metric
from training.common.progress import Progress
from training.data.labelled import LabelledClips
from training.finetuning.beam_search import BeamSearchDecoder, greedy_decode
from training.finetuning.model import scored_at_once


def evaluate_clips(
    model: torch.nn.Module,
    processor,
    clips: LabelledClips,
    references: Sequence[str],
    decoder: BeamSearchDecoder | None = None,
    batch_size: int = 8,
) -> tuple[dict, list[dict]]:
    """
    Error rates of a model over clips, greedy and, given a decoder, with the language model.

    Returns:
        `{"clips": n, "greedy": {"wer", "cer"}, "lm": {...}}` and, for each clip, its name and transcripts.

    Raises:
        ValueError: if no clip could be used.
    """
    rows, progress = [], Progress("Decoding")
    for i, log_probs in frame_log_probs(model, processor, clips, batch_size):
        row = {"clip": clips.clip(i).name, "reference": references[i]}
        row["greedy"] = greedy_decode(log_probs, processor.tokenizer)
        if decoder is not None:
            row["lm"] = decoder.decode(log_probs)
        rows.append(row)
        progress(f"{len(rows)} of {len(clips)} clips")
    if not rows:
        raise ValueError("None of the clips to evaluate could be used; the log names them.")
    kinds = ("greedy",) if decoder is None else ("greedy", "lm")
    wanted = [row["reference"] for row in rows]
    return {"clips": len(rows)} | {kind: error_rates([r[kind] for r in rows], wanted) for kind in kinds}, rows


@torch.inference_mode()
def frame_log_probs(
    model: torch.nn.Module, processor, clips: LabelledClips, batch_size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """
    Number of each clip and ln P of its labels, `(num_frames, vocab_size)`; longest first, without bad audio. Models
    that padding may reach are given one clip at a time.
    """
    model.eval()
    batch_size = scored_at_once(model, batch_size)
    order = sorted(range(len(clips)), key=clips.num_samples.__getitem__, reverse=True)
    for start in range(0, len(order), batch_size):
        batch = [(i, clips[i]) for i in order[start : start + batch_size]]
        batch = [(i, clip) for i, clip in batch if clip is not None]
        if not batch:
            continue
        waveforms = [clip["input_values"] for _, clip in batch]
        inputs = pad_waveforms(processor.feature_extractor, waveforms).to(model.device)
        log_probs = model(**inputs).logits.float().log_softmax(-1).cpu().numpy()
        lengths = model._get_feat_extract_output_lengths(inputs["attention_mask"].sum(-1)).tolist()
        yield from ((i, values[:length]) for (i, _), values, length in zip(batch, log_probs, lengths))


def error_rates(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Word and character error rate."""
    pairs = {"predictions": list(predictions), "references": list(references)}
    return load_metric("wer").compute(**pairs) | load_metric("cer").compute(**pairs)


def examples(rows: Sequence[dict], count: int) -> list[str]:
    """Lines with the worst transcripts of some clips and as many others, what was said above what was heard."""
    heard = "lm" if rows and "lm" in rows[0] else "greedy"
    order = sorted(rows, key=lambda row: cer([row[heard]], [row["reference"]]), reverse=True)
    worst, others = order[:count], order[count:]
    drawn = random.Random(0).sample(others, min(count, len(others)))
    lines = []
    for title, chosen in (("worst", worst), ("drawn at random", drawn)):
        for row in chosen:
            lines += [f"{row['clip']} ({title})", f"  said   {row['reference']}", f"  heard  {row[heard]}"]
    return lines
