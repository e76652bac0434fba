#!/usr/bin/env bash
# Installs torch into a virtual environment: tools/install_torch.sh VENV REQUIREMENT
#
# On Linux, PyPI's torch brings gigabytes of CUDA. Without an NVIDIA driver: a build that is installed or lies in a
# local folder of wheels (find-links), else PyTorch's index of CPU builds, else whatever the configured index has.
set -euo pipefail
venv="$1" torch="$2"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

if [ "$(uname)" != Linux ] || nvidia-smi -L >/dev/null 2>&1; then
    pip install "$torch"
else
    cpu_index=https://download.pytorch.org/whl/cpu
    pip install --quiet --no-index --no-deps "$torch" 2>/dev/null ||
        pip install --retries 0 --timeout 20 --no-deps --index-url "$cpu_index" "$torch" 2>/dev/null ||
        pip install "$torch"
fi
