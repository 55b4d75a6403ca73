"""Which engines end-to-end tests run on."""

from sllm.node.worker.backends import names

ENGINES = tuple(sorted(names.installed()))
"""All that are installed here. Sorted, transformers is first, and what names no engine runs on it:
its zygotes and trials take a fraction of vLLM's time."""
SLOW_ON = ENGINES[-1:]
"""For what takes too long to be run on both: what is deployed by default, if it is installed."""
