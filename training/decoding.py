"""CTC decoding: greedy, and a beam search with a word n-gram.

    python -m training.decoding build-ngram --text book.txt --order 4 --output lm.arpa --model runs/ctc/final
    python -m training.decoding decode --model runs/ctc/final --data test/ --lm lm.arpa

`--text` takes a text file, one sentence a line, or any source with a column of transcripts; `--model` normalises it as
that model's transcripts are. `decode` prints word and character error rates without and, given `--lm`, with the
language model. Only transcripts that the evaluation does not use belong into the n-gram.
"""

import argparse
import json
import logging
import math
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCTC, Wav2Vec2CTCTokenizer

import sjepa_hf  # noqa: F401  (registers its classes with the Auto classes)
from sjepa_hf.command import command
from sjepa_hf.opening import open_model, open_processor
from sjepa_hf.saving import write_text_aside
from training.common.heartbeat import Heartbeat
from training.common.metrics import load_metric
from training.common.naming import several
from training.data.labelled import LabelledClips, open_labelled, pad_waveforms
from training.data.metadata import decoded
from training.data.sources import open_source
from training.finetuning.arguments import choose_column
from training.finetuning.ngram import BEGIN, END, UNKNOWN, Gram, NGram, estimate
from training.finetuning.text import TextNormalizer
from training.pretraining.arguments import default_device


logger = logging.getLogger(__name__)

TEXT_COLUMNS = ("transcription", "text", "sentence", "transcript")
ALPHA, BETA, BEAM_WIDTH = 0.5, 1.5, 100  # the paper's
UNKNOWN_WORD, USUAL_LENGTH = -10.0, 6  # see `unknown_penalty`; pyctcdecode's values
NOT_LISTED = -10.0  # log10 P of <unk> and </s> in a language model that has no entry for them
USELESS, FITTING = 0.05, 0.5  # shares of words that a language model and a recogniser have in common
LN10 = math.log(10)


class Prefix:
    """
    A string of labels, one node of the tree of all strings that the search has met.

    Attributes:
        blank, label: ln P of the alignments so far that end in the blank, or in the last label.
        words: score of the words that are complete, alpha * ln P_LM + beta each.
        context: what the language model remembers of them.
        word: the word that is being spelled.
    """

    __slots__ = ("parent", "token", "children", "blank", "label", "new_blank", "new_label", "words", "context", "word")

    def __init__(self, parent: "Prefix | None", token: int, words: float, context: Gram, word: str):
        self.parent, self.token, self.children = parent, token, {}
        self.blank = self.label = self.new_blank = self.new_label = -math.inf
        self.words, self.context, self.word = words, context, word

    def tokens(self) -> list[int]:
        found, node = [], self
        while node.parent is not None:
            found.append(node.token)
            node = node.parent
        return found[::-1]


class BeamSearchDecoder:
    """
    CTC prefix beam search (Hannun et al., arXiv 1408.2873) with shallow fusion of a word n-gram. It looks for the
    string of labels of the highest

        ln P_CTC(labels) + alpha * ln P_LM(words, </s>) + beta * number of words,

    P_CTC summed over all alignments. Words are not limited to a lexicon: one that the n-gram does not know has its
    P(<unk>) and `unknown_penalty`, which is charged as soon as no known word begins like it. Exact but for the beam
    and for the labels below `min_log_prob`.

    Args:
        tokenizer: its special tokens other than the blank are never written.
        lm: word n-gram, or None.
        alpha, beta, beam_width: as above; strings that are kept from frame to frame.
        min_log_prob: labels of a frame that are less likely are not tried, its best one always is.
    """

    def __init__(
        self,
        tokenizer: Wav2Vec2CTCTokenizer,
        lm: NGram | None = None,
        *,
        alpha: float = ALPHA,
        beta: float = BETA,
        beam_width: int = BEAM_WIDTH,
        min_log_prob: float = -5.0,
    ):
        if beam_width < 1:
            raise ValueError(f"`beam_width` is {beam_width}; the search needs at least 1.")
        self.blank, self.delimiter = tokenizer.pad_token_id, tokenizer.word_delimiter_token_id
        special = set(tokenizer.all_special_ids) - {self.blank, self.delimiter}
        vocabulary = tokenizer.get_vocab().items()
        self.characters = {number: token for token, number in vocabulary if number not in special}
        self.alpha, self.beta, self.beam_width, self.min_log_prob = alpha, beta, beam_width, min_log_prob
        self.lm = lm
        self.known = lm.words if lm else set()
        self.beginnings = {word[:n] for word in self.known for n in range(1, len(word) + 1)}

    def decode(self, log_probs: np.ndarray) -> str:
        """The best text for ln P of the labels of each frame, `(num_frames, vocab_size)`."""
        return self.text(max(self.search(log_probs), key=self.final_score))

    def search(self, log_probs: np.ndarray) -> list[Prefix]:
        """The strings that are left after the last frame."""
        root = Prefix(None, self.blank, 0.0, (BEGIN,), "")
        root.blank = 0.0
        beam = [root]
        for frame in log_probs:
            tried = set(np.flatnonzero(frame >= self.min_log_prob).tolist()) & self.characters.keys()
            best = max(self.characters, key=frame.__getitem__) if not tried else None
            labels = [(token, float(frame[token])) for token in (tried or {best})]
            beam = self.step(beam, labels)
        return beam

    def step(self, beam: list[Prefix], labels: list[tuple[int, float]]) -> list[Prefix]:
        """Extend every string by one frame; keep the best ones."""
        reached: dict[Prefix, None] = {}  # in the order they are met, so that ties are settled alike in every run
        for prefix in beam:
            total = log_add(prefix.blank, prefix.label)
            for token, log_prob in labels:
                if token == self.blank:
                    prefix.new_blank = log_add(prefix.new_blank, total + log_prob)
                    reached[prefix] = None
                    continue
                if token == prefix.token:  # the same label goes on, or comes again after a blank
                    prefix.new_label = log_add(prefix.new_label, prefix.label + log_prob)
                    reached[prefix] = None
                    before = prefix.blank
                else:
                    before = total
                child = prefix.children.get(token) or self.extend(prefix, token)
                child.new_label = log_add(child.new_label, before + log_prob)
                reached[child] = None
        for prefix in reached:
            prefix.blank, prefix.label = prefix.new_blank, prefix.new_label
            prefix.new_blank = prefix.new_label = -math.inf
        alive = [prefix for prefix in reached if prefix.blank > -math.inf or prefix.label > -math.inf]
        return sorted(alive, key=self.score, reverse=True)[: self.beam_width]

    def extend(self, prefix: Prefix, token: int) -> Prefix:
        """The string with one more label; a word delimiter completes the word."""
        if token == self.delimiter:
            child = Prefix(prefix, token, *self.complete(prefix), "")
        else:
            child = Prefix(prefix, token, prefix.words, prefix.context, prefix.word + self.characters[token])
        prefix.children[token] = child
        return child

    def complete(self, prefix: Prefix) -> tuple[float, Gram]:
        """Score and context once the word that is being spelled, if any, is complete."""
        if not prefix.word or self.lm is None:
            return prefix.words, prefix.context
        known = prefix.word in self.known
        log10 = self.lm.log10_probability(prefix.context, prefix.word if known else UNKNOWN)
        log10 = log10 if known else max(log10, NOT_LISTED) + unknown_penalty(prefix.word)
        context = self.lm.context((*prefix.context, prefix.word if known else UNKNOWN))
        return prefix.words + self.alpha * LN10 * log10 + self.beta, context

    def score(self, prefix: Prefix) -> float:
        """Score of a string while the search goes on."""
        unknown = self.lm is not None and prefix.word and prefix.word not in self.beginnings
        penalty = self.alpha * LN10 * unknown_penalty(prefix.word) if unknown else 0.0
        return log_add(prefix.blank, prefix.label) + prefix.words + penalty

    def final_score(self, prefix: Prefix) -> float:
        """Score of a string that ends here."""
        words, context = self.complete(prefix)
        if self.lm is not None:
            words += self.alpha * LN10 * max(self.lm.log10_probability(context, END), NOT_LISTED)
        return log_add(prefix.blank, prefix.label) + words

    def text(self, prefix: Prefix) -> str:
        spelled = (" " if token == self.delimiter else self.characters[token] for token in prefix.tokens())
        return " ".join("".join(spelled).split())


def unknown_penalty(word: str) -> float:
    """What is added to log10 P of a word outside the language model: the longer, the less likely its spelling."""
    return UNKNOWN_WORD * max(1.0, len(word) / USUAL_LENGTH)


def log_add(a: float, b: float) -> float:
    """ln(e^a + e^b)."""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))


def greedy_decode(log_probs: np.ndarray, tokenizer: Wav2Vec2CTCTokenizer) -> str:
    """The text of the best label of each frame, `(num_frames, vocab_size)`."""
    return " ".join(tokenizer.decode(log_probs.argmax(-1).tolist()).split())


@torch.inference_mode()
def frame_log_probs(
    model: torch.nn.Module, processor, clips: LabelledClips, batch_size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Number of each clip and ln P of its labels, `(num_frames, vocab_size)`; longest first, without bad audio."""
    model.eval()
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
        ValueError: if no clip could be decoded.
    """
    rows = []
    for i, log_probs in frame_log_probs(model, processor, clips, batch_size):
        row = {"clip": clips.clip(i).name, "reference": references[i]}
        row["greedy"] = greedy_decode(log_probs, processor.tokenizer)
        if decoder is not None:
            row["lm"] = decoder.decode(log_probs)
        rows.append(row)
    if not rows:
        raise ValueError("None of the clips to evaluate could be decoded; the log names them.")
    kinds = ("greedy",) if decoder is None else ("greedy", "lm")
    wanted = [row["reference"] for row in rows]
    return {"clips": len(rows)} | {kind: error_rates([r[kind] for r in rows], wanted) for kind in kinds}, rows


def check_language_model(lm: NGram, name: str, tokenizer: Wav2Vec2CTCTokenizer, texts: Sequence[str]) -> None:
    """
    Say how far a language model fits: which share of its words the tokenizer can write, weighted by how likely they
    are, and which share of the words of normalised transcripts it knows.

    Raises:
        ValueError: if one of them is below 5 %.
    """
    characters = set(tokenizer.get_vocab())
    chances = {word: 10 ** lm.tables[0][(word,)][0] for word in lm.words}
    writable = sum(chance for word, chance in chances.items() if characters.issuperset(word))
    writable /= sum(chances.values()) or 1.0
    counts = Counter(word for text in texts for word in text.split())
    unknown = Counter({word: count for word, count in counts.items() if word not in chances})
    known = 1 - unknown.total() / max(1, counts.total())
    said = (
        f"the tokenizer can write {writable:.1%} of the words of {name} (by their probability), and {known:.1%} of the"
        f" words of the transcripts are among its {len(chances)}"
    )
    if min(writable, known) >= FITTING:
        logger.info("Language model: %s.", said)
        return
    most = several(sorted(chances, key=chances.get, reverse=True), 5)
    said += f"; its most likely ones are {most}, the transcripts' are {several(dict(counts.most_common(5)))}"
    folded = {word.casefold() for word in chances}
    if known < FITTING and counts.total() and all(word.casefold() in folded for word, _ in unknown.most_common(5)):
        said += ": they differ in case"
    if min(writable, known) < USELESS:
        raise ValueError(f"`lm`: {said}. `training.decoding build-ngram --model MODEL` makes one that fits.")
    logger.warning("Language model: %s.", said)


def read_sentences(text: str, column: str | None, normalizer: TextNormalizer) -> list[str]:
    """Normalised sentences of a text file, or of a source's transcripts. Raises ValueError if there are none."""
    path = Path(text)
    if path.is_file() and path.suffix.lower() in (".txt", ".text", ""):
        lines = decoded(path).splitlines()
    else:
        column = choose_column([text], column, TEXT_COLUMNS, "text_column", "transcripts")
        lines = [row[column] or "" for row in open_source(text, labels=[column]).dataset]
    return [sentence for sentence in map(normalizer, lines) if sentence]


def build_ngram(arguments: argparse.Namespace) -> None:
    normalizer = TextNormalizer.load(arguments.model) if arguments.model else TextNormalizer()
    sentences = read_sentences(arguments.text, arguments.text_column, normalizer)
    lm = estimate(sentences, arguments.order)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    lm.save(arguments.output)
    sizes = ", ".join(f"{len(table)} {n}-grams" for n, table in enumerate(lm.tables, start=1))
    print(f"{arguments.output}: {len(sentences)} sentences, {sizes}, their perplexity {lm.perplexity(sentences):.1f}")


def open_recogniser(checkpoint: str) -> tuple:
    """
    The processor and the model of a CTC checkpoint.

    Raises:
        ValueError: if it is none, or damaged.
    """
    processor = open_processor(checkpoint)
    model = open_model(AutoModelForCTC, checkpoint)
    outputs, labels = model.config.vocab_size, len(processor.tokenizer)
    if outputs > labels:
        raise ValueError(
            f"`model` {checkpoint} has {outputs} outputs, but its tokenizer only {labels} labels: the two do not"
            " belong together."
        )
    return processor, model


def decode(arguments: argparse.Namespace) -> None:
    settings = {name: getattr(arguments, name) for name in ("alpha", "beta", "beam_width")}
    settings = {name: value for name, value in settings.items() if value is not None}
    if settings and not arguments.lm:
        raise ValueError(f"--{next(iter(settings))} belongs to the beam search, which needs --lm.")
    processor, model = open_recogniser(arguments.model)
    device = default_device()
    normalizer = TextNormalizer.load(arguments.model)
    column = choose_column(arguments.data, arguments.text_column, TEXT_COLUMNS, "text_column", "transcripts")
    with Heartbeat("reading the data"):
        parts = {spec: open_labelled([spec], [column]) for spec in arguments.data}
    wanted = {spec: [normalizer(text) for text in clips.labels[column]] for spec, clips in parts.items()}
    decoder = None
    if arguments.lm:
        lm = NGram.load(arguments.lm)
        check_language_model(
            lm, arguments.lm, processor.tokenizer, [text for texts in wanted.values() for text in texts]
        )
        decoder = BeamSearchDecoder(processor.tokenizer, lm, **settings)
    transcripts = []
    for spec, clips in parts.items():
        with Heartbeat(f"decoding {spec}, {len(clips)} clips"):
            results, rows = evaluate_clips(
                model.to(device), processor, clips, wanted[spec], decoder, arguments.batch_size
            )
        print(f"{spec}: {in_words(results, rows)}")
        print("\n".join(examples(rows, arguments.examples)))
        print(json.dumps({spec: rounded(results)}, ensure_ascii=False))
        transcripts += rows
    if arguments.transcripts:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in transcripts)
        write_text_aside(arguments.transcripts, "".join(lines))
        print(f"all {len(transcripts)} transcripts: {arguments.transcripts}", file=sys.stderr)


def in_words(results: dict, rows: Sequence[dict]) -> str:
    """Error rates of some clips in percent, with what they are over."""
    references = [row["reference"] for row in rows]
    words, characters = sum(len(text.split()) for text in references), sum(map(len, references))
    rates = "; ".join(
        f"{how}: WER {100 * rate['wer']:.2f} %, CER {100 * rate['cer']:.2f} %"
        for how, rate in results.items()
        if how != "clips"
    )
    return f"{len(rows)} clips, {words} words, {characters} characters; {rates}"


def examples(rows: Sequence[dict], count: int) -> list[str]:
    """Lines with the worst transcripts of some clips and as many others, what was said above what was heard."""
    heard = "lm" if rows and "lm" in rows[0] else "greedy"
    order = sorted(rows, key=lambda row: error_rates([row[heard]], [row["reference"]])["cer"], reverse=True)
    worst, others = order[:count], order[count:]
    drawn = random.Random(0).sample(others, min(count, len(others)))
    lines = []
    for title, chosen in (("worst", worst), ("drawn at random", drawn)):
        for row in chosen:
            lines += [f"{row['clip']} ({title})", f"  said   {row['reference']}", f"  heard  {row[heard]}"]
    return lines


def rounded(values: dict) -> dict:
    """The figures with four digits behind the point."""
    return {name: rounded(value) if isinstance(value, dict) else round(value, 4) for name, value in values.items()}


def parser() -> argparse.ArgumentParser:
    commands = argparse.ArgumentParser(description="CTC decoding with a word n-gram.")
    kinds = commands.add_subparsers(required=True)

    build = kinds.add_parser("build-ngram", help="estimate a word n-gram from text and write an ARPA file")
    build.set_defaults(run=build_ngram)
    build.add_argument("--text", required=True, help="text file, a sentence a line, or a source with transcripts")
    build.add_argument("--order", type=int, default=4, help="longest n-gram (default: 4)")
    build.add_argument("--output", type=Path, required=True, help="ARPA file to write")
    build.add_argument("--model", help="fine-tuned model whose text normalisation applies (default: upper case)")

    score = kinds.add_parser("decode", help="word and character error rates of a CTC model")
    score.set_defaults(run=decode)
    score.add_argument("--model", required=True, help="folder of a fine-tuned CTC model with its processor")
    score.add_argument("--data", nargs="+", required=True, help="sources with transcripts")
    score.add_argument("--lm", help="ARPA file")
    score.add_argument("--alpha", type=float, help=f"weight of the language model (default: {ALPHA})")
    score.add_argument("--beta", type=float, help=f"bonus of a word (default: {BETA})")
    score.add_argument("--beam_width", type=int, help=f"strings kept per frame (default: {BEAM_WIDTH})")
    score.add_argument("--batch_size", type=int, default=8, help="clips per batch (default: 8)")
    score.add_argument("--examples", type=int, default=3, help="worst and other transcripts to show (default: 3)")
    score.add_argument("--transcripts", help="JSONL file to write every clip's transcripts to")
    for each in (build, score):
        each.add_argument("--text_column", help=f"default: the first of {', '.join(TEXT_COLUMNS)}")
    return commands


@command
def main(argv: list[str] | None = None) -> None:
    """Run the command that the command line asks for."""
    arguments = parser().parse_args(argv)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
