"""The engine on vLLM's EngineCore, in this process: no server, no second process, no files."""

import os

# vLLM reads these when it is imported, which no module does before this one.
os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",  # the core runs in a thread of ours
    VLLM_CONFIGURE_LOGGING="0",  # logging is set up by whoever runs the engine
    VLLM_NO_USAGE_STATS="1",
    VLLM_PLUGINS="",  # nothing that happens to be installed changes what is served
    # Attention of a long sequence is not divided among threads: how it is divided depends on who
    # else is in the step, and so do the last bits of what comes out; and the threads wait for one
    # another without giving up their processors, which another program may have taken.
    VLLM_CPU_ATTN_SPLIT_KV="0",
    # Weights in 4 bits are multiplied by activations as they are, on every processor: those with
    # AMX would quantise these as well, and give other tokens than the others.
    VLLM_CPU_INT4_W4A8="0",
)
