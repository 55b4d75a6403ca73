"""vLLM's own loader as its own programs have it: a model's files, read into a module of vLLM's."""

import gc
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from bench.disk import bring_into_page_cache


class PlainLoader:
    """A process that has imported vLLM, and loads a model as often as it is asked to."""

    def __init__(self, model: Path) -> None:
        """Loads nothing yet.

        Args:
            model: its directory, in Hugging Face format.
        """
        self._model = model
        self._process = ProcessPoolExecutor(1, get_context("spawn"))

    def seconds(self) -> float:
        """What `DefaultModelLoader` takes, with the model's files in the page cache."""
        return self._process.submit(_load, self._model).result()

    def close(self) -> None:
        """Ends the process."""
        self._process.shutdown()


def _load(model: Path) -> float:
    import vllm.v1.worker.cpu_worker  # noqa: F401 - torch's calls for accelerators do nothing then
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model

    bring_into_page_cache(model.glob("*.safetensors"))
    args = EngineArgs(model=str(model), dtype="auto", enforce_eager=True, skip_tokenizer_init=True)
    config = args.create_engine_config()
    with set_current_vllm_config(config):
        _join()
        began = time.perf_counter()
        module = get_model(vllm_config=config)
        seconds = time.perf_counter() - began
    del module, config
    gc.collect()  # layers and configuration refer to each other
    return seconds


def _join() -> None:
    """Makes the group of one process that vLLM's layers ask for."""
    from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
    from vllm.utils.network_utils import get_distributed_init_method, get_open_port

    address = get_distributed_init_method("127.0.0.1", get_open_port())
    init_distributed_environment(1, 0, address, 0, backend="gloo")
    ensure_model_parallel_initialized(1, 1)
