"""Fine-tune an encoder for speech recognition with CTC.

    python -m training.finetune_ctc --model_name_or_path runs/mine/final --train_data my_clips/ --output_dir runs/asr
    python -m training.finetune_ctc --model_name_or_path facebook/hubert-base-ls960 --train_data train/ \\
        --eval_data dev/ --test_data test/ --lm lm.arpa --output_dir runs/asr --num_train_epochs 60

`accelerate launch -m training.finetune_ctc ...` uses several GPUs. Without `--config` the settings are those of
`training/recipes/finetune_ctc.yaml`; there and on the command line any field below and any of
`transformers.TrainingArguments` can stand.

The result is `OUTPUT_DIR/final`: `pipeline("automatic-speech-recognition", "OUTPUT_DIR/final")` opens it. Beside the
model lie results.json, transcripts.jsonl, learning_curve.png and text_normalization.json. With `--lora_rank` the model
there has its adapters merged; they are in `final/adapter`, for `PeftModel.from_pretrained(model, ".../adapter")`.
"""

import logging
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transformers import AutoModelForCTC, TrainingArguments, Wav2Vec2Processor, set_seed

from sjepa_hf.command import command
from sjepa_hf.scores import json_text
from training.common.learned import judge_texts
from training.common.progress import Heartbeat
from training.data.labelled import TEXT_COLUMNS, LabelledClips, choose_column
from training.finetuning.arguments import FineTuningArguments, FineTuningSettings, finetuning_settings
from training.finetuning.beam_search import ALPHA, BEAM_WIDTH, BETA, BeamSearchDecoder, check_language_model
from training.finetuning.ctc import (
    CtcCollator,
    CtcFineTuner,
    greedy_error_rates,
    long_enough,
    normalized,
    open_tokenizer,
    save_text_tools,
    tell_too_short,
)
from training.finetuning.data import by_length, open_splits
from training.finetuning.model import open_extractor, open_with_head
from training.finetuning.ngram import NGram
from training.finetuning.plan import log_plan
from training.finetuning.result import FineTuningResult, save_output
from training.finetuning.resuming import check_normalization, check_vocabulary, check_weights
from training.finetuning.text import DROPPED, SPACES, TextNormalizer, check_characters, log_examples, log_spaceless
from training.finetuning.trainer import run_training
from training.finetuning.trainer_settings import settle_steps
from training.finetuning.transcribe import evaluate_clips, examples


logger = logging.getLogger(__name__)

RECIPE = Path(__file__).parent / "recipes" / "finetune_ctc.yaml"
HIGHER_IS_BETTER = {"cer": False, "wer": False, "loss": False}
EXAMPLES = 2  # transcripts of each kind that are shown at the end


@dataclass
class CtcArguments(FineTuningArguments):
    """What fine-tuning with CTC needs besides: transcripts and decoding."""

    text_column: str | None = field(
        default=None, metadata={"help": f"Column of the transcripts. Default: the first of {', '.join(TEXT_COLUMNS)}."}
    )
    text_case: str = field(default="upper", metadata={"help": "Case of the transcripts: upper, lower or keep."})
    drop_characters: str = field(default=DROPPED, metadata={"help": "Characters removed from the transcripts."})
    space_characters: str = field(default=SPACES, metadata={"help": "Characters that become spaces in them."})
    tokenizer_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Wav2Vec2CTCTokenizer to use, with the checkpoint's head if it fits. Default: a new one."},
    )
    lm: str | None = field(
        default=None,
        metadata={"help": "ARPA word n-gram: the final scores are given with it too (see training.decoding)"},
    )
    lm_alpha: float = field(default=ALPHA, metadata={"help": "Weight of the language model."})
    lm_beta: float = field(default=BETA, metadata={"help": "Bonus of a word."})
    beam_width: int = field(default=BEAM_WIDTH, metadata={"help": "Strings kept per frame in the beam search."})


@dataclass
class CtcFineTuning:
    """A run that is ready to start."""

    arguments: CtcArguments
    hub: dict | None
    trainer: CtcFineTuner
    processor: Wav2Vec2Processor
    normalizer: TextNormalizer
    evaluation: dict[str, LabelledClips]
    test: dict[str, LabelledClips]
    column: str
    decoder: BeamSearchDecoder | None


@command
def main(argv: list[str] | None = None) -> None:
    """Run the fine-tuning that the command line asks for."""
    with Heartbeat("opening checkpoint and data") as heartbeat, settings(argv) as asked:
        run = prepare(*asked)
        if not run.arguments.dry_run:
            train(run, heartbeat)


def settings(argv: list[str] | None = None) -> AbstractContextManager[FineTuningSettings]:
    """What the command line asks for; within a `with` block the output directory is this run's alone."""
    description = "Fine-tune an encoder for speech recognition with CTC."
    return finetuning_settings(argv, CtcArguments, RECIPE, description, HIGHER_IS_BETTER)


def prepare(arguments: CtcArguments, training: TrainingArguments, hub: dict | None) -> CtcFineTuning:
    """
    Everything before the first step, from the `settings`.

    Raises:
        ValueError: for settings, data or a checkpoint that cannot work.
    """
    if training.label_smoothing_factor:
        raise ValueError("`label_smoothing_factor` has no meaning for CTC, which sums over alignments: leave it out.")
    normalizer = TextNormalizer(arguments.text_case, arguments.drop_characters, arguments.space_characters)
    extractor = open_extractor(arguments.model_name_or_path, AutoModelForCTC, "CTC")
    lm = NGram.load(arguments.lm) if arguments.lm else None
    set_seed(training.seed)

    column = choose_column(
        arguments.train_data, arguments.text_column, TEXT_COLUMNS, "text_column", "transcripts", arguments.audio_column
    )
    train, evaluation, test = open_splits(arguments, column)
    log_examples(train.labels[column], normalizer)
    train = normalized(train, column, normalizer, "train_data")
    evaluation = {name: normalized(clips, column, normalizer, name) for name, clips in evaluation.items()}
    test = {name: normalized(clips, column, normalizer, name) for name, clips in test.items()}

    tokenizer = open_tokenizer(arguments.tokenizer_name_or_path, train.labels[column])
    for name, clips in ({"train_data": train} | evaluation | test).items():
        check_characters(clips.labels[column], tokenizer, name)
    log_spaceless(train.labels[column])
    resumed = training.resume_from_checkpoint
    if resumed:
        check_vocabulary(resumed, tokenizer)
        check_normalization(resumed, asdict(normalizer))
    model = open_with_head(
        AutoModelForCTC,
        arguments,
        keep_head=arguments.tokenizer_name_or_path is not None,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        ctc_loss_reduction="mean",
        ctc_zero_infinity=True,
    )
    if resumed:
        check_weights(resumed, model)
    train = long_enough(train, column, tokenizer, model)
    for name, clips in (evaluation | test).items():
        tell_too_short(clips, column, tokenizer, model, name)
    settle_steps(training, arguments.min_steps, len(train))
    processor = Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer)
    trainer = CtcFineTuner(
        model=model,
        args=training,
        data_collator=CtcCollator(processor, column),
        train_dataset=train.filled(),
        eval_dataset=by_length(list(evaluation.values())),
        compute_metrics=lambda prediction: greedy_error_rates(prediction, tokenizer),
        head_learning_rate=arguments.head_learning_rate,
        p_noise=arguments.p_noise,
        save_beside=lambda directory: save_text_tools(directory, processor, normalizer),
    )
    decoder = None
    if lm is not None:
        check_language_model(lm, arguments.lm, tokenizer, train.labels[column])
        weights = {"alpha": arguments.lm_alpha, "beta": arguments.lm_beta, "beam_width": arguments.beam_width}
        decoder = BeamSearchDecoder(tokenizer, lm, **weights)
    log_plan(trainer, evaluation | test, arguments)
    return CtcFineTuning(arguments, hub, trainer, processor, normalizer, evaluation, test, column, decoder)


def train(run: CtcFineTuning, heartbeat: Heartbeat) -> None:
    """Train, score the best model on every source, and save it with all that inference needs."""
    model = run_training(run.trainer, run.arguments, heartbeat, run.hub)
    run.trainer.end()
    if not run.trainer.is_world_process_zero():
        return
    scores, transcripts, judged = {}, [], []
    for name, clips in (run.evaluation | run.test).items():
        references = clips.labels[run.column]
        batch_size = run.trainer.args.per_device_eval_batch_size
        scores[name], rows = evaluate_clips(model, run.processor, clips, references, run.decoder, batch_size)
        transcripts += [{"data": name} | row for row in rows]
        judged += rows if name in run.evaluation else []
    verdict = judge_texts([row["greedy"] for row in judged], [row["reference"] for row in judged])
    outcome = FineTuningResult.of(run.trainer, verdict, scores)

    def save_others(directory: Path) -> None:
        save_text_tools(directory, run.processor, run.normalizer)
        lines = (json_text(row) + "\n" for row in transcripts)
        (directory / "transcripts.jsonl").write_text("".join(lines), encoding="utf-8")

    save_output(run.trainer, run.arguments, model, outcome, ("wer", "cer"), save_others, run.hub)
    for name in scores:
        for line in examples([row for row in transcripts if row["data"] == name], EXAMPLES):
            logger.info("%s", line)


if __name__ == "__main__":
    main()
