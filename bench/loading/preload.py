"""What the process imports that contenders are forked from."""

import importlib
from contextlib import suppress

LIBRARIES = (
    "torch",
    "safetensors.torch",
    "transformers.models.llama.modeling_llama",
    "runai_model_streamer",
    "fastsafetensors",
    "tensorizer",
    "bench.loading.node",
    "bench.loading.peers",
    "bench.loading.process",
)

for library in LIBRARIES:
    with suppress(ImportError):
        importlib.import_module(library)
