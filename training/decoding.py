"""Decode with a CTC checkpoint: greedily, or by a beam search with a word n-gram.

    python -m training.decoding build-ngram --text book.txt --order 4 --output lm.arpa --model runs/ctc/final
    python -m training.decoding decode --model runs/ctc/final --data test/ --lm lm.arpa

`--text` takes a text file, one sentence a line, or any source with a column of transcripts; `--model` normalises it as
that model's transcripts are. `decode` prints word and character error rates without and, given `--lm`, with the
language model; it scores the clips that a fine-tuning would. Only transcripts that the evaluation does not use belong
into the n-gram.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sjepa_hf.command import CommandParser, command
from sjepa_hf.opening import open_recogniser
from sjepa_hf.saving import write_text_aside
from sjepa_hf.scores import json_text
from sjepa_hf.writable import check_output_file
from training.common.device import default_device
from training.common.progress import Heartbeat
from training.common.ranges import check_ranges
from training.data.labelled import TEXT_COLUMNS, choose_column, open_labelled
from training.finetuning.arguments import MIN_SECONDS
from training.finetuning.beam_search import ALPHA, BEAM_WIDTH, BETA, BeamSearchDecoder, check_language_model
from training.finetuning.ctc import normalized
from training.finetuning.data import read_sentences
from training.finetuning.ngram import NGram, estimate
from training.finetuning.text import TextNormalizer, log_spaceless
from training.finetuning.transcribe import evaluate_clips, examples


def parser() -> CommandParser:
    commands = CommandParser("CTC decoding with a word n-gram.")
    kinds = commands.add_subparsers(required=True)

    build = kinds.add_parser("build-ngram", help="estimate a word n-gram from text and write an ARPA file")
    build.set_defaults(run=build_ngram)
    build.add_argument("--text", required=True, help="text file, a sentence a line, or a source with transcripts")
    build.add_argument("--order", type=int, default=4, help="longest n-gram (default: 4)")
    build.add_argument("--output", type=Path, required=True, help="ARPA file to write")
    build.add_argument(
        "--model",
        help="fine-tuned model, a folder or Hub name, whose text normalisation applies (default: upper case)",
    )

    score = kinds.add_parser("decode", help="word and character error rates of a CTC model")
    score.set_defaults(run=decode)
    score.add_argument("--model", required=True, help="fine-tuned CTC model with its processor: a folder or Hub name")
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


def build_ngram(arguments: argparse.Namespace) -> None:
    check_ranges(arguments, at_least_1="order")
    check_output_file(arguments.output, "output")
    normalizer = TextNormalizer.load(arguments.model) if arguments.model else TextNormalizer()
    sentences = read_sentences(arguments.text, arguments.text_column, normalizer)
    lm = estimate(sentences, arguments.order)
    lm.save(arguments.output)
    sizes = ", ".join(f"{len(table)} {n}-grams" for n, table in enumerate(lm.tables, start=1))
    print(f"{arguments.output}: {len(sentences)} sentences, {sizes}, their perplexity {lm.perplexity(sentences):.1f}")


def decode(arguments: argparse.Namespace) -> None:
    check_ranges(arguments, at_least_1="batch_size beam_width", not_negative="examples")
    if arguments.transcripts:
        check_output_file(arguments.transcripts, "transcripts")
    settings = {name: getattr(arguments, name) for name in ("alpha", "beta", "beam_width")}
    settings = {name: value for name, value in settings.items() if value is not None}
    if settings and not arguments.lm:
        raise ValueError(f"--{next(iter(settings))} belongs to the beam search, which needs --lm.")
    processor, model = open_recogniser(arguments.model)
    device = default_device()
    normalizer = TextNormalizer.load(arguments.model)
    column = choose_column(arguments.data, arguments.text_column, TEXT_COLUMNS, "text_column", "transcripts")
    with Heartbeat("reading the data"):
        parts = {spec: open_labelled([spec], [column], min_seconds=MIN_SECONDS) for spec in arguments.data}
    parts = {spec: normalized(clips, column, normalizer, spec) for spec, clips in parts.items()}
    texts = [text for clips in parts.values() for text in clips.labels[column]]
    log_spaceless(texts)
    decoder = None
    if arguments.lm:
        lm = NGram.load(arguments.lm)
        check_language_model(lm, arguments.lm, processor.tokenizer, texts)
        decoder = BeamSearchDecoder(processor.tokenizer, lm, **settings)
    found = {}
    for spec, clips in parts.items():
        with Heartbeat(f"decoding {spec}, {len(clips)} clips"):
            found[spec] = evaluate_clips(
                model.to(device), processor, clips, clips.labels[column], decoder, arguments.batch_size
            )
    if arguments.transcripts:
        lines = [json_text(row) + "\n" for _, rows in found.values() for row in rows]
        write_text_aside(arguments.transcripts, "".join(lines))
        print(f"all {len(lines)} transcripts: {arguments.transcripts}", file=sys.stderr)
    for spec, (results, rows) in found.items():
        print(f"{spec}: {error_rates_in_words(results, rows)}")
        print("\n".join(examples(rows, arguments.examples)))
        print(json_text({spec: rounded(results)}))


def error_rates_in_words(results: dict, rows: Sequence[dict]) -> str:
    """Error rates of some clips in percent, with what they are over."""
    references = [row["reference"] for row in rows]
    words, characters = sum(len(text.split()) for text in references), sum(map(len, references))
    rates = "; ".join(
        f"{how}: WER {100 * rate['wer']:.2f} %, CER {100 * rate['cer']:.2f} %"
        for how, rate in results.items()
        if how != "clips"
    )
    return f"{len(rows)} clips, {words} words, {characters} characters; {rates}"


def rounded(values: dict) -> dict:
    """The figures with four digits behind the point."""
    return {name: rounded(value) if isinstance(value, dict) else round(value, 4) for name, value in values.items()}


@command
def main(argv: list[str] | None = None) -> None:
    """Run the command that the command line asks for."""
    arguments = parser().parse_args(argv)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
