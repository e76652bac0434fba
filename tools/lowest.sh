#!/usr/bin/env bash
# Tries the lower bounds of pyproject.toml: installs the lowest version of every direct dependency into .venv-lowest and
# runs the fast tests there.
#
#   make lowest                       # or tools/lowest.sh; `make env` first
set -euo pipefail
cd "$(dirname "$0")/.."

python=.venv/bin/python
venv=.venv-lowest
skip() { echo "SKIPPED: the lower bounds are not tried: $1" >&2; exit 0; }

"$python" -m uv --version >/dev/null 2>&1 || "$python" -m pip --disable-pip-version-check install --quiet uv ||
    skip "uv cannot be installed"
"$python" -m venv --clear "$venv"
resolved="$venv/lowest.txt"
if ! "$python" -m uv pip compile --quiet --resolution lowest-direct --all-extras --python "$venv/bin/python" \
    --no-annotate --output-file "$resolved" pyproject.toml 2>"$venv/errors.txt"; then
    cat "$venv/errors.txt" >&2
    # A bound that nothing satisfies is a fault of ours; an index that does not answer is not.
    grep -qiE "failed to fetch|error sending request|connect|timed out|dns" "$venv/errors.txt" || exit 1
    skip "the package index does not answer"
fi

# torch without its CUDA libraries, then all the rest as it was resolved.
tools/install_torch.sh "$venv" "$(grep '^torch==' "$resolved")"
grep -vE '^(torch|triton|nvidia-.*|cuda-.*)==' "$resolved" >"$venv/rest.txt"
"$python" -m uv pip install --quiet --no-deps --python "$venv/bin/python" --requirement "$venv/rest.txt"

# The tests that touch most libraries. Left out is what takes minutes: compiling, `torch.export` by itself, and all exports
# but one, of a recogniser.
PYTHONPATH="$PWD" "$venv/bin/python" -m pytest -q -p no:cacheprovider -W ignore \
    -n logical --maxprocesses 8 --dist loadfile -k "not compiles and not (test_export_onnx and \
        (waveform or classif or cannot_run or its_user_needs or torch_export))" \
    tests/test_installation.py tests/test_docs.py tests/model_cards/space/test_{app,listening,pictures,example_clips}.py \
    tests/sjepa_hf/test_{sharing,export_onnx}.py \
    tests/sjepa_hf/test_{model_card,saving,resampling,modeling_sjepa,modeling_sjepa_heads}.py \
    tests/training/data/test_{clips,order,labelled,manifest}.py tests/sjepa_hf/test_frame_features.py \
    tests/training/common/test_metrics.py tests/training/pretraining/test_monitoring.py \
    tests/training/finetuning/test_text.py
