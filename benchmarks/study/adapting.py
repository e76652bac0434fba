"""Go on from an encoder of another kind on another domain: a small HuBERT, made on read English, then on Arabic words.

    python -m benchmarks.study.adapting --speech ../shared/speech --output_dir adapting --seeds 0

For each seed a HuBERT of 3 million parameters is pretrained from nothing by phase 1 on the training part of
LibriSpeech, and goes on from there on the training voices of the Arabic commands in three ways: phase 2 at once (as
`training/recipes/adapt.yaml` does), phase 1 (the control), and not at all. Probes of both domains, on voices that
nothing was trained on: phones of LJ Speech, and which of 40 words a clip of the commands' other voices says. What is
there already is not made again. The speech is the collection that `speech_manifest.py` describes.
"""

import json
import logging
import os
import sys
from pathlib import Path

import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from benchmarks.study.scores import run_logged
from benchmarks.study.speech_manifest import KEYWORDS, LIBRISPEECH, PHONES, manifest_rows, write_manifest
from sjepa_hf.command import CommandParser, command
from sjepa_hf.contents import CONFIG
from sjepa_hf.saving import written_aside
from sjepa_hf.scores import read_scores
from training.evaluation.probes.results import report


logger = logging.getLogger(__name__)
HUBERT = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "conv_dim": (32, 64, 128, 128, 128, 128, 128),
    "num_conv_pos_embeddings": 64,
    "hidden_dropout": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "layerdrop": 0.0,
}
PREDICTOR = {
    "predictor_num_attention_heads": 4,
    "predictor_intermediate_size": 512,
    "predictor_keeps_hidden": True,
    "predictor_dropout": 0.0,
}
SHARED = (
    "--mixed_precision no --max_seconds 8 --batch_seconds 8 --bucket_buffer_size 1000 --num_workers 0"
    " --mask_prob 0.45 --p_mix 0 --p_noise 0 --phase1_features mfcc_cmn --phase1_components 500 --fit_frames 50000"
    " --fit_hours 0.5 --phase1_schedule linear --phase2_schedule linear --report_to none --resume_from_checkpoint auto"
    " --attn_implementation eager --save_steps 1000 --save_total_limit 1 --logging_steps 100"
).split()
PHASE_1 = "--phase2_steps 0 --phase2_warmup_steps 0"
PHASE_2 = (
    "--config training/recipes/adapt.yaml --phase1_steps 0 --phase2_components 500 --seed_frames 50000"
    " --reseed_frames 20000 --layer_check_steps 500 --ema_switch_steps 500"
)
PROBES = {  # by label
    "phones": ["--phones", "--max_clips", "100", "--max_frames", "5000"],
    "keyword": ["--utterance_labels", "keyword", "--split_by", "speaker"],
}


def make_hubert(folder: Path, seed: int) -> None:
    """A HuBERT with fresh weights, as others publish theirs."""
    torch.manual_seed(seed)
    with written_aside(folder) as aside:
        HubertModel(HubertConfig(**HUBERT)).save_pretrained(aside)
        Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False).save_pretrained(aside)


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("--speech", type=Path, required=True, help="folder that holds the collection")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--source_steps", type=int, default=1000, help="of 8 s, on the first domain")
    parser.add_argument("--target_steps", type=int, default=250, help="of 8 s, on the second one")
    arguments = parser.parse_args(argv)
    speech, out = arguments.speech, arguments.output_dir
    data = {
        "source": manifest_rows(speech, f"{LIBRISPEECH}/train", "train"),
        "target": manifest_rows(speech, KEYWORDS, "train"),
        "phones": manifest_rows(speech, PHONES, "train"),
        "keyword": [row for part in ("validation", "test") for row in manifest_rows(speech, KEYWORDS, part)],
    }
    out.mkdir(parents=True, exist_ok=True)
    manifests = {name: out / f"{name}.jsonl" for name in data}
    for name, rows in data.items():
        write_manifest(manifests[name], rows)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def pretrain(start: Path, result: Path, data: Path, steps: int, rate: float, phase: int, seed: int) -> Path:
        if not (result / "final" / "training.json").is_file():
            flags = (PHASE_1 if phase == 1 else PHASE_2).split()
            flags += [f"--phase{phase}_steps", str(steps), f"--phase{phase}_warmup_steps", str(steps // 20)]
            flags += [f"--phase{phase}_learning_rate", str(rate), "--seed", str(seed), "--train_data", str(data)]
            flags += [
                "--model_config",
                json.dumps(PREDICTOR),
                "--initial_checkpoint",
                str(start),
                "--output_dir",
                str(result),
                *SHARED,
            ]
            run_logged([sys.executable, "-m", "training.pretrain", *flags], out / f"{result.name}.log", environment)
        return result / "final"

    for seed in arguments.seeds:
        fresh = out / f"fresh-s{seed}"
        if not (fresh / CONFIG).is_file():
            make_hubert(fresh, seed)
        source, target = manifests["source"], manifests["target"]
        first = pretrain(fresh, out / f"source-s{seed}", source, arguments.source_steps, 5e-4, 1, seed)
        encoders = {"before": first}
        for phase, rate in ((2, 3e-4), (1, 3e-4)):
            result = out / f"phase{phase}-s{seed}"
            encoders[f"phase {phase}"] = pretrain(first, result, target, arguments.target_steps, rate, phase, seed)
        for name, options in PROBES.items():
            probes = out / f"{name}-s{seed}" / "probes.json"
            if not probes.is_file():
                flags = [*map(str, encoders.values()), "--data", str(manifests[name]), *options]
                flags += ["--output", str(probes.parent)]
                run_logged([sys.executable, "-m", "training.probe", *flags], out / f"{name}-s{seed}.log", environment)
            results = json.loads(probes.read_text()) | {"scores": read_scores(probes)}
            logger.info("Seed %d (%s):\n%s", seed, ", ".join(encoders), report(results))


if __name__ == "__main__":
    main()
