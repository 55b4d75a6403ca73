#!/usr/bin/env bash
# On a bare machine with a GPU, torch and transformers, and no network: the tests marked `cuda` and
# the benchmark, in one call of less than ten minutes. What else is needed is carried as wheels:
# run bench/gpu-wheels.sh where there is a registry, and bring .whl along.
#
#     [MODELS=DIR] [OUT=DIR] ./bench/gpu.sh
#
# Not yet run on a GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-.}
models=${MODELS:-/tmp/sllm-models}
export PYTHONUNBUFFERED=1
if [ -d .whl ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target /tmp/sllm-site .whl/*.whl || exit
    export PYTHONPATH=/tmp/sllm-site
fi
export PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$PWD:$PWD/gen:$PWD/examples
nvidia-smi --query-gpu=name,driver_version,memory.used,memory.total --format=csv
"$python" -c 'import torch, transformers; print("torch", torch.__version__, "transformers", transformers.__version__)'

mkdir -p "$models"
"$python" -c "from pathlib import Path; from bench.gpu import make_models; make_models(Path('$models'))" &
makers=$!

# Only the plugins that are needed: others may be there that do not know this pytest. Warnings of
# libraries in other versions than those of constraints.txt are shown, and fail nothing.
PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 timeout 180 "$python" -m pytest -q -m cuda -W default \
    -p pytest_asyncio.plugin -p pytest_timeout -p no:cacheprovider \
    tests/node/device/test_driver.py tests/e2e/test_device.py 2>&1 |
    tee "$out/gpu-tests.log" | tail -40
wait "$makers" || echo "models were not all made"
timeout 400 "$python" -m bench.gpu --directory "$models" --seconds "${SECONDS_LEFT:-300}" \
    --json "$out/gpu.json" 2>&1 | tee "$out/gpu-bench.log" | tail -120
nvidia-smi --query-gpu=memory.used,memory.total --format=csv
