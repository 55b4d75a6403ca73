#!/usr/bin/env bash
# Fetches into .whl what a bare GPU machine with torch and transformers lacks: pure wheels and those
# for Python 3.12 on x86-64, in the versions of constraints.txt. See bench/gpu.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
names=(
    grpcio grpcio-status grpcio-health-checking grpcio-reflection googleapis-common-protos protobuf
    structlog obstore typer rich pydantic pydantic_core annotated-types annotated-doc
    typing_extensions typing-inspection shellingham prometheus_client psutil
    opentelemetry-api opentelemetry-sdk opentelemetry-proto opentelemetry-semantic-conventions
    opentelemetry-exporter-otlp-common opentelemetry-exporter-otlp-proto-common
    opentelemetry-exporter-otlp-proto-grpc opentelemetry-exporter-prometheus
    hypothesis sortedcontainers pytest pytest-asyncio pytest-timeout pluggy iniconfig uvloop xxhash
)
platforms=()
for version in 2_34 2_28 2_27 2_17; do platforms+=(--platform "manylinux_${version}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64)
rm -rf .whl
for name in "${names[@]}"; do
    pinned=$(grep -iE "^${name//[-_]/[-_]}==" constraints.txt) || { echo "$name is not pinned"; exit 1; }
    "${PYTHON:-python3}" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 \
        --implementation cp "${platforms[@]}" -d .whl "$pinned"
done
du -sh .whl
