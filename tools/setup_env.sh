#!/usr/bin/env bash
# Makes the virtual environment .venv: a torch that suits this machine, then this project with all its extras.
#
#   make env                          # or tools/setup_env.sh
#   make env TORCH="torch==2.9.0"     # choose torch yourself: whatever `pip install` takes
#   make env PYTHON=python3.12
set -euo pipefail
cd "$(dirname "$0")/.."

any_torch="torch>=2.7"  # as in pyproject.toml

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
python=""
for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
    if new_enough "$candidate"; then python="$candidate"; break; fi
done
if [ -z "$python" ]; then
    echo "Python 3.11 or newer is needed; name one with: make env PYTHON=/path/to/python3" >&2
    exit 1
fi

[ -x .venv/bin/python ] || "$python" -m venv .venv
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

# On Linux, PyPI's torch brings gigabytes of CUDA. Without an NVIDIA driver: a build that is installed or lies in a
# local folder of wheels (find-links), else PyTorch's index of CPU builds, else whatever the configured index has.
if [ -n "${TORCH:-}" ]; then
    pip install "$TORCH"
elif [ "$(uname)" != Linux ] || nvidia-smi -L >/dev/null 2>&1; then
    pip install "$any_torch"
else
    cpu_index=https://download.pytorch.org/whl/cpu
    pip install --quiet --no-index --no-deps "$any_torch" 2>/dev/null ||
        pip install --retries 0 --timeout 20 --no-deps --index-url "$cpu_index" "$any_torch" 2>/dev/null ||
        pip install "$any_torch"
fi

pip install --editable ".[train,demo,onnx,page,test]"

# torchaudio's compiled libraries are built for one flavour of torch, and its import stops where they do not fit (they
# ask for CUDA on a CPU build). What this project uses of it is Python code, which runs without them.
if ! .venv/bin/python -c "import torchaudio" >/dev/null 2>&1; then
    site=$(.venv/bin/python -c "import sysconfig; print(sysconfig.get_path('platlib'))")
    rm -f "$site"/torchaudio/lib/*.so
fi

.venv/bin/python - <<'EOF'
import torch, torchaudio, transformers
cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
print(f"torch {torch.__version__}, torchaudio {torchaudio.__version__}, transformers {transformers.__version__}, CUDA device: {cuda}")
EOF
touch .venv/.ready
