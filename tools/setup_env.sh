#!/usr/bin/env bash
# Makes the virtual environment .venv: a torch that suits this machine, then this project with all its extras.
#
#   make env                          # or tools/setup_env.sh
#   make env TORCH="torch==2.13.0"    # choose torch yourself: whatever `pip install` takes
#   make env PYTHON=python3.12
set -euo pipefail
cd "$(dirname "$0")/.."

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

if [ -n "${TORCH:-}" ]; then
    pip install "$TORCH"
else
    tools/install_torch.sh .venv "$(sed -n 's/^ *"\(torch>=[^"]*\)".*/\1/p' pyproject.toml)"
fi

# uv takes seconds where pip takes minutes; it does not read pip's configuration, so pip has the last word.
pip install --quiet uv && .venv/bin/python -m uv pip install --python .venv/bin/python --editable ".[test]" ||
    pip install --editable ".[test]"

# Features and resampling are tested against torchaudio's. Its compiled libraries are built for one flavour of torch, and
# its import stops where they do not fit (they ask for CUDA on a CPU build); its Python code runs without them.
pip install --no-deps "torchaudio>=2.11"
if ! .venv/bin/python -c "import torchaudio" >/dev/null 2>&1; then
    site=$(.venv/bin/python -c "import sysconfig; print(sysconfig.get_path('platlib'))")
    rm -f "$site"/torchaudio/lib/*.so
fi

.venv/bin/python - <<'EOF'
import torch, transformers
cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
print(f"torch {torch.__version__}, transformers {transformers.__version__}, CUDA device: {cuda}")
EOF
touch .venv/.ready
