"""Hostile settings: every one of them must work or be refused in one sentence.

    python -m benchmarks.fuzz_configurations --count 120 --seed 0

Each trial puts one to three odd values into a recipe, into `model_config`, or on the command line of pretraining, then
parses the arguments and builds the model. It prints how many were taken and how many refused, and each that ended in
any other way or took too long; the exit status is 1 where there was one.
"""

import contextlib
import io
import json
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import fields
from pathlib import Path

import yaml

from sjepa_hf import SJepaConfig, SJepaForPreTraining
from sjepa_hf.command import CommandParser, command, sentence
from training.pretraining.arguments import ARGUMENTS, parse_arguments


SECONDS = 20  # a trial may take
ODD = (
    *(0, -1, 1, 2, 3, 7, 10**8, 10**30, 0.5, -0.5, 1.5, 1e-30, 1e30, float("nan"), float("inf"), -float("inf")),
    *(True, False, None, "", "0", "nan", "abc", "größer", "1e3", "[1, 2]", "\x00", "a" * 10_000, "../..", "/dev/null"),
    *([], [0], [1, -1], [1e9], ["a"], [[1]], [None], {}, {"a": 1}, [10**8] * 7, [1] * 7, [0] * 7, [3] * 200),
)
SMALL = {"front_end": "log_mel", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 32, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
SMALL |= {"predictor_num_attention_heads": 2, "predictor_intermediate_size": 32}
RECIPE = {"train_data": ["nowhere"], "phase1_steps": 20, "phase2_steps": 20, "phase1_warmup_steps": 2}
RECIPE |= {"phase2_warmup_steps": 2, "start_layer": 1, "phase1_components": 8, "phase2_components": 8}


class TookTooLong(Exception):
    """A trial did not end in time."""


def trial(rng: random.Random, directory: Path) -> list[str]:
    """A command line with odd values in it."""
    recipe, model_config, argv = dict(RECIPE), dict(SMALL), []
    names = [field.name for group in ARGUMENTS for field in fields(group) if field.init]
    for _ in range(rng.randint(1, 3)):
        value = rng.choice(ODD)
        where = rng.choice(("recipe", "model", "model", "command line"))
        if where == "recipe":
            recipe[rng.choice(names)] = value
        elif where == "model":
            model_config[rng.choice([field.name for field in fields(SJepaConfig)])] = value
        else:
            argv += [f"--{rng.choice(names)}", str(value).replace("\x00", "")]
    recipe.setdefault("model_config", model_config)
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True))
    return ["--config", str(path), *argv]


def outcome(argv: list[str]) -> str:
    """`taken`, or `refused` with a sentence; whatever else comes, comes out."""

    def too_long(number, frame):
        raise TookTooLong

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            SJepaForPreTraining(parse_arguments(argv).sjepa_config())
    except SystemExit as end:  # argparse
        assert end.code == 2 and "error:" in said.getvalue(), end.code
        return "refused"
    except Exception as error:
        if sentence(error) is None:
            raise
        return "refused"
    finally:
        signal.alarm(0)
    return "taken"


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("--count", type=int, default=120, help="trials")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    found, slowest = Counter(), 0.0
    with tempfile.TemporaryDirectory() as directory:
        for number in range(arguments.count):
            line = trial(random.Random(f"{arguments.seed} {number}"), Path(directory))
            began = time.monotonic()
            try:
                result = outcome(line)
            except Exception as error:
                result = f"FAULT {type(error).__name__}"
                recipe = json.dumps(yaml.safe_load((Path(directory) / "recipe.yaml").read_text()))
                last = traceback.extract_tb(error.__traceback__)[-1]
                print(f"{number}: {type(error).__name__}: {str(error)[:200]} at {last.filename}:{last.lineno}")
                print(f"    {recipe[:1500]} {line[2:]}", flush=True)
            found[result] += 1
            slowest = max(slowest, time.monotonic() - began)
    print(f"{dict(found)}; the slowest took {slowest:.1f} s")
    sys.exit(any(name.startswith("FAULT") for name in found))


if __name__ == "__main__":
    main()
