"""Write a checkpoint's model card: what it is, how it was trained, what was measured, and nothing else.

    python -m sjepa_hf.model_card runs/mine/final --facts facts.yaml --results superb/ks.jsonl probes/probes.json

The card (README.md) comes from the configuration, from training.json (what the training scripts leave beside the
weights), from pictures in the directory and from results files. What no run can know stands in a YAML file of facts,
all optional: name, license, language, authors, data (in words: hours and licence), datasets (names on the Hub),
intended_use, limits, and result_data, which gives the data of a result a better name:

    result_data:
      librispeech_train_clean_5/validation: {name: "LibriSpeech, four speakers of train-clean-100"}
      speech_commands::v0.02::test: {dataset_id: google/speech_commands, task_id: default}

Results on data sets of the Hub also go to .eval_results/*.yaml.
"""

import argparse
import json
import math
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from safetensors import safe_open

from .saving import files_written_aside
from .scores import LOWER_IS_BETTER, Score, data_name, grouped, read_scores


CARD, RECORD, RESULTS, EVAL_RESULTS = "README.md", "training.json", "results.json", ".eval_results"
PIPELINES = {
    "SJepaForCTC": "automatic-speech-recognition",
    "SJepaForSequenceClassification": "audio-classification",
}
PICTURES = {
    "loss.png": "Losses in pretraining",
    "effective_rank.png": "Effective rank of every layer in pretraining",
    "predictor_entropy.png": "Entropy of the predictions, without masking",
    "learning_curve.png": "Losses and error rates in fine-tuning",
}
LIMITS = {
    "feature-extraction": [
        "Made for features of speech: as they are, for linear probes, or as the start of fine-tuning. It answers no"
        " question by itself.",
    ],
    "automatic-speech-recognition": [
        "Made to transcribe speech like that of its training data. Elsewhere (other accents, noise, several speakers"
        " at once) expect more errors than the results show.",
    ],
    "audio-classification": [
        "Made to tell the classes of its training data apart, in recordings like those. It has no answer for anything"
        " else, and gives one all the same.",
    ],
}
GENERAL_LIMITS = ["Not for identifying persons, or for decisions about them, without their knowledge."]


@dataclass
class Facts:
    """What no run can know of a model."""

    name: str | None = None
    license: str | None = None
    language: list[str] = field(default_factory=list)
    authors: str | None = None
    data: str | None = None
    datasets: list[str] = field(default_factory=list)
    intended_use: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    result_data: dict[str, dict] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> "Facts":
        """
        Facts of a YAML file.

        Raises:
            ValueError: if it is absent, no YAML, or has a field that is unknown.
        """
        try:
            found = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"The facts in {path} cannot be read: {error}") from None
        known = {f.name for f in fields(cls)}
        if not isinstance(found, dict) or found.keys() - known:
            raise ValueError(f"{path}: the facts are fields among {', '.join(sorted(known))}; see the command's help.")
        return cls(**found)


def card_files(
    checkpoint: str | Path, facts: Facts | None = None, results: list[str | Path] = (), repo_id: str | None = None
) -> dict[str, str]:
    """
    README.md of a checkpoint, and .eval_results/ for data sets of the Hub.

    Args:
        results: files of scores; results.json of the checkpoint itself is read in any case.
        repo_id: where the checkpoint will lie, for the snippets; None: the directory's name.

    Returns:
        path in the repo -> text.

    Raises:
        ValueError: for a directory without configuration, or files that cannot be read.
    """
    checkpoint, facts = Path(checkpoint), facts or Facts()
    if not (checkpoint / "config.json").is_file():
        raise ValueError(f"{checkpoint} is no checkpoint: it has no config.json.")
    own = [checkpoint / RESULTS] if (checkpoint / RESULTS).is_file() else []
    scores = [score for path in (*own, *results) for score in read_scores(Path(path), checkpoint)]
    files = {CARD: str(make_card(checkpoint, facts, scores, repo_id or checkpoint.name))}
    return files | {f"{EVAL_RESULTS}/{name}": text for name, text in eval_result_files(scores, facts).items()}


def write_card(checkpoint: Path, files: dict[str, str]) -> None:
    """Write the texts of `card_files` into a checkpoint directory."""
    for folder in {Path(name).parent for name in files}:
        with files_written_aside(checkpoint / folder) as aside:
            for name, text in files.items():
                if Path(name).parent == folder:
                    (aside / Path(name).name).write_text(text, encoding="utf-8")


def make_card(checkpoint: Path, facts: Facts, scores: list[Score], repo_id: str) -> ModelCard:
    """The card, from the template."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    record = {}
    if (checkpoint / RECORD).is_file():
        record = json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))
    pipeline = PIPELINES.get((config.get("architectures") or [""])[0], "feature-extraction")
    name = facts.name or repo_id.split("/")[-1]
    index = [model_index_entry(score, facts) for score in scores]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=pipeline,
        license=facts.license,
        language=facts.language or None,
        datasets=facts.datasets or None,
        base_model=record.get("base_model"),
        tags=["speech", "s-jepa", "self-supervised-learning"],
        model_name=name if index else None,
        eval_results=index or None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(template()),
        name=name,
        summary=summary(config, checkpoint, pipeline),
        usage=usage(repo_id, pipeline),
        limits=[*(facts.intended_use or LIMITS[pipeline]), *facts.limits, *GENERAL_LIMITS],
        training=training_lines(config, record, facts),
        settings=shown_settings(record.get("settings", {})),
        pictures=[(title, file) for file, title in PICTURES.items() if (checkpoint / file).is_file()],
        scores=tables(scores, facts),
    )


def template() -> Path:
    """The template: in the installed package, or in model_cards/ beside it."""
    installed = Path(__file__).with_name("model_card_template.md")
    return installed if installed.is_file() else Path(__file__).parents[1] / "model_cards" / "template.md"


def shown_settings(settings: dict) -> list[tuple[str, object]]:
    """Settings in order, without those of a phase that had no steps."""
    unused = tuple(f"phase{phase}_" for phase in (1, 2) if settings.get(f"phase{phase}_steps") == 0)
    return sorted((name, value) for name, value in settings.items() if not name.startswith(unused or "\0"))


def summary(config: dict, checkpoint: Path, pipeline: str) -> str:
    """What the model is, in two sentences."""
    if config.get("model_type") != "sjepa":
        return f"A {config.get('model_type')} model for {pipeline.replace('-', ' ')}, fine-tuned with sjepa_hf."
    count = parameters(checkpoint)
    front = "log-mel frames" if config.get("front_end") == "log_mel" else "the waveform, by seven convolutions"
    text = (
        "[S-JEPA](https://arxiv.org/abs/2606.19398): a speech encoder that learned without labels to predict, at"
        " hidden frames, the soft posterior of a Gaussian mixture."
        f" {config['num_hidden_layers']} Transformer layers of {config['hidden_size']} dimensions over {front};"
        f" {count / 1e6:.1f}M parameters in the encoder; 16 kHz mono in, a vector every 20 ms out."
    )
    if pipeline == "automatic-speech-recognition":
        text += " Fine-tuned with CTC for speech recognition."
    elif pipeline == "audio-classification":
        text += f" Fine-tuned to tell {len(config.get('id2label', {}))} classes apart."
    return text


def parameters(checkpoint: Path) -> int:
    """Numbers in the weights of a checkpoint's encoder."""
    sizes = {}
    for path in checkpoint.glob("model*.safetensors"):
        with safe_open(path, "pt") as file:
            sizes |= {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}
    encoder = {name: size for name, size in sizes.items() if name.startswith("sjepa.")}
    return sum((encoder or sizes).values())  # a checkpoint of the bare encoder has no prefix


def usage(repo_id: str, pipeline: str) -> str:
    """Code that opens the model where this package is not installed."""
    if pipeline == "feature-extraction":
        code = f"""
            import torch
            from transformers import AutoFeatureExtractor, AutoModel

            extractor = AutoFeatureExtractor.from_pretrained("{repo_id}")
            model = AutoModel.from_pretrained("{repo_id}", trust_remote_code=True).eval()
            audio = torch.randn(16000).numpy()  # mono, 16 kHz: put your own here
            with torch.no_grad():
                outputs = model(**extractor(audio, sampling_rate=16000, return_tensors="pt"))
            print(outputs.last_hidden_state.shape)  # (1, 49, hidden_size)"""
    else:
        code = f"""
            import numpy as np
            from transformers import pipeline

            model = pipeline("{pipeline}", "{repo_id}", trust_remote_code=True)
            audio = np.random.randn(16000)  # mono: put your own here
            print(model({{"raw": audio, "sampling_rate": 16000}}))"""
    lines = [line[12:] for line in code.strip("\n").splitlines()]
    return "\n".join(["```python", *lines, "```", "", "With `import sjepa_hf` no remote code is needed."])


def training_lines(config: dict, record: dict, facts: Facts) -> list[str]:
    """How the model was trained, as far as it is known."""
    lines = [f"Data: {facts.data}"] if facts.data else []
    known = record.get("data", {})
    if known:
        hours = f", {known['hours']:.2f} hours" if known.get("hours") is not None else ""
        clips = f", {known['clips']} clips" if known.get("clips") is not None else ""
        lines.append(f"Sources: {', '.join(map(data_name, known['sources']))}{clips}{hours}")
    if "base_checkpoint" in record:
        start = "from scratch, with the configuration of" if record.get("from_scratch") else "from"
        lines.append(f"Fine-tuned {start} {record['base_checkpoint']}")
    if "hours_heard" in record:
        lines.append(f"Heard {record['hours_heard']:.1f} hours of audio (repeats counted) in {record['steps']} steps")
    elif "steps" in record:
        lines.append(f"{record['steps']} steps")
    if record.get("hours_taken") is not None:
        lines.append(f"Took {record['hours_taken']:.2f} hours on {record['hardware']}")
    if "software" in record:
        lines.append("Software: " + ", ".join(f"{name} {version}" for name, version in record["software"].items()))
    if facts.authors:
        lines.append(f"By {facts.authors}")
    return lines or ["No record of the training was kept with this checkpoint."]


def tables(scores: list[Score], facts: Facts) -> list[str]:
    """A Markdown table for each task and data set, with the protocol above it."""
    blocks = []
    for (task, data, protocol, runs), rows in grouped(
        scores, lambda score: (score.task, shown_data(score, facts), score.protocol, score.runs)
    ).items():
        others = list(dict.fromkeys(name for score in rows for name in score.baselines))
        lines = [f"**{task[0].upper()}{task[1:]}**, on {data} ({protocol}; {runs}):", ""]
        lines += [
            "| metric | this model |" + "".join(f" {name} |" for name in others),
            "|---" * (2 + len(others)) + "|",
        ]
        for score in rows:
            direction = " (lower is better)" if score.metric in LOWER_IS_BETTER else ""
            cells = [
                score.metric + direction,
                f"**{score.text}**",
                *(score.baselines.get(name, "") for name in others),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        blocks.append("\n".join(lines))
    return blocks


def shown_data(score: Score, facts: Facts) -> str:
    """The name of the data that a score was taken on."""
    name = data_name(score.data)
    return facts.result_data.get(name, {}).get("name", name)


def model_index_entry(score: Score, facts: Facts) -> EvalResult:
    """A score as the card's `model-index` has it."""
    name = data_name(score.data)
    return EvalResult(
        task_type=score.task_type,
        task_name=score.task_type.replace("-", " "),
        dataset_type=facts.result_data.get(name, {}).get("dataset_id", name.split("::")[0]),
        dataset_name=shown_data(score, facts),
        metric_type=score.metric,
        metric_name=f"{score.task}: {score.metric} ({score.protocol}; {score.runs})",
        metric_value=round(score.value, 4),
    )


def eval_result_files(scores: list[Score], facts: Facts) -> dict[str, str]:
    """File name -> YAML of the scores on data sets of the Hub that the facts name."""
    entries = {}
    for score in scores:
        known = facts.result_data.get(data_name(score.data), {})
        if "dataset_id" in known:
            entry = EvalResultEntry(
                dataset_id=known["dataset_id"],
                task_id=known.get("task_id", "default"),
                value=round(score.value, 4),
                notes=f"{score.metric}; {score.task}; {score.protocol}; {score.runs}",
            )
            entries.setdefault(known["dataset_id"], []).append(entry)
    return {f"{name.replace('/', '_')}.yaml": dump(found) for name, found in entries.items()}


def dump(entries: list[EvalResultEntry]) -> str:
    """Entries in the Hub's format."""
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)


def main(argv: list[str] | None = None) -> None:
    """Write the card that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="directory of the checkpoint")
    parser.add_argument("--facts", help="YAML file of what no run can know")
    parser.add_argument("--results", nargs="+", default=[], help="files that the evaluation commands wrote")
    parser.add_argument("--repo_id", help="where it will lie on the Hub, for the snippets")
    arguments = parser.parse_args(argv)
    try:
        facts = Facts.read(arguments.facts) if arguments.facts else None
        files = card_files(arguments.checkpoint, facts, arguments.results, arguments.repo_id)
    except ValueError as error:
        sys.exit(f"error: {error}")
    write_card(Path(arguments.checkpoint), files)
    print("\n".join(f"{arguments.checkpoint}/{name}" for name in files))


if __name__ == "__main__":
    main()
