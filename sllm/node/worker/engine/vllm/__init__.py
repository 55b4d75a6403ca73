"""The engine on vLLM's EngineCore, in this process: no server, no second process, no files."""

import os

# vLLM reads these when it is imported, which no module does before this one.
os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",  # the core runs in a thread of ours
    VLLM_CONFIGURE_LOGGING="0",  # logging is set up by whoever runs the engine
    VLLM_NO_USAGE_STATS="1",
    VLLM_PLUGINS="",  # nothing that happens to be installed changes what is served
)
