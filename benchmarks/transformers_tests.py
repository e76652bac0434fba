"""Transformers' own tests of its models, over the classes of sjepa_hf.

    pip install parameterized
    git clone --depth 1 --branch v5.24.0 https://github.com/huggingface/transformers
    python -m benchmarks.transformers_tests transformers

These tests are not part of Transformers' wheel, so they come from a checkout, of the version that is installed.
`transformers_suite/suite.py` says what they are given, and which of them are left out and why. All that follows the
checkout goes to pytest, for example `-k LogMel -x`. It takes a minute of one core, with RUN_SLOW=1 in the environment
eight, most of them for exports.
"""

import os
import subprocess
import sys
from pathlib import Path

from sjepa_hf.command import CommandParser, command


ROOT = Path(__file__).parents[1]
SUITE = ROOT / "benchmarks" / "transformers_suite" / "suite.py"


def run(checkout: Path, options: list[str]) -> int:
    """
    pytest over `suite.py`, with the tests of `checkout` within reach. Returns its exit status.

    Raises:
        ValueError: `checkout` holds no tests of Transformers' models.
    """
    if not (checkout / "tests" / "test_modeling_common.py").is_file():
        raise ValueError(f"{checkout} is no checkout of Transformers: it has no tests/test_modeling_common.py.")
    path = os.pathsep.join([str(checkout.resolve()), str(ROOT), os.environ.get("PYTHONPATH", "")])
    pytest = [sys.executable, "-m", "pytest", str(SUITE), "-q", "-rs", "-W", "ignore"]
    pytest += ["-c", os.devnull, "--rootdir", str(checkout.resolve()), "-p", "no:cacheprovider", *options]
    return subprocess.run(pytest, cwd=checkout, env={**os.environ, "PYTHONPATH": path}).returncode


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("checkout", type=Path, help="folder of a clone of Transformers")
    arguments, options = parser.parse_known_args(argv)
    sys.exit(run(arguments.checkout, options))


if __name__ == "__main__":
    main()
