"""The engine of a process, by name. Only that one is imported."""

from sllm.errors import EngineUnavailable
from sllm.node.worker.backends.interface import Backend
from sllm.node.worker.backends.names import TRANSFORMERS, VLLM


def backend_of(name: str) -> Backend:
    """Imports an engine with all that it needs: that takes seconds.

    Raises:
        EngineUnavailable: There is none of this name.
        ImportError: It is not installed.
    """
    if name == TRANSFORMERS:
        from sllm.node.worker.backends.transformers_backend import TransformersBackend

        return TransformersBackend()
    if name == VLLM:
        from sllm.node.worker.backends.vllm_backend import VllmBackend

        return VllmBackend()
    raise EngineUnavailable(f"there is no engine {name!r}")
