"""vLLM, as workers know it."""

import importlib
import json
import logging
import os
import queue
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
import transformers
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from sllm.embedding.purpose import Purpose, Task
from sllm.errors import UnsupportedModel
from sllm.node.worker.backends.names import VLLM
from sllm.node.worker.backends.vllm_images import VllmImages
from sllm.node.worker.engine.encoder import Encoder
from sllm.node.worker.engine.group import ALONE, Group, Rank
from sllm.node.worker.engine.interface import Capacity, Engine, EngineRequest, Step
from sllm.node.worker.engine.vllm.config import PAGE_TOKENS, VllmModel
from sllm.node.worker.engine.vllm.engine import VllmEngine
from sllm.node.worker.engine.vllm.follower import follow, make_ready_part
from sllm.node.worker.messages import NO_PARSERS, ParserNames
from sllm.node.worker.model.description import Architecture, context_tokens, kv_bytes_per_token
from sllm.node.worker.model.dividing import check_divisible
from sllm.node.worker.model.module import ModelFiles, run_dtype
from sllm.node.worker.model.parsing import Parsers
from sllm.node.worker.model.quantisation import check_plain
from sllm.node.worker.model.refusing import CANNOT_RUN, refusing
from sllm.node.worker.model.seeing import ImageReader
from sllm.node.worker.ready_made.contents import ReadyMade, Weights
from sllm.process import die_with_parent
from sllm.sampling import Sampling

import vllm  # isort: skip - after the engine, which sets its environment
from vllm.model_executor.models import ModelRegistry, supports_lora  # isort: skip
from sllm.node.worker.backends.vllm_parsing import VllmParsers, import_parsers  # isort: skip
from vllm.platforms import current_platform  # isort: skip
from sllm.node.worker.backends.vllm_checks import check_head_size, check_quantisation  # isort: skip

_FAMILIES: Final = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "MixtralForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Phi3ForCausalLM",
    "GPT2LMHeadModel",
    "OPTForCausalLM",
)
"""Architectures whose modules a zygote imports, for starts to find them."""
_LEAST_CAPACITY: Final = Capacity(PAGE_TOKENS, max_requests=1)
"""Of an engine that never computes."""
_REHEARSALS: Final = 4
_TOKEN_TIMEOUT: Final = 120.0
"""Seconds that a rehearsal's token may take, which imports a lot where others compute."""


class LoadedForVllm:
    """A model that vLLM makes when its engine starts."""

    def __init__(self, model: VllmModel, group: Group = ALONE) -> None:
        self._model = model
        self._group = group
        self._engine: VllmEngine | None = None

    def parameters(self) -> Iterable[tuple[str, torch.Tensor]]:
        """See `Loaded.parameters`: vLLM has copies of its own."""
        return ()

    def engine(self, capacity: Capacity) -> Engine:
        """See `Loaded.engine`."""
        self._engine = VllmEngine(self._model, capacity, self._group)
        return self._engine

    def read_bytes(self) -> tuple[int, ...]:
        """See `Loaded.read_bytes`."""
        return self._engine.read_bytes if self._engine else ()

    def parts(self) -> None:
        """See `Loaded.parts`: vLLM reads all weights when its engine starts."""

    def encoder(self, purpose: Purpose, pass_tokens: int) -> Encoder:
        """See `Loaded.encoder`: `check` refuses such models before any is loaded."""
        raise UnsupportedModel(f"vLLM runs no models to {purpose.task} with here")


class VllmBackend:
    """See `Backend`."""

    name = VLLM
    page_tokens = PAGE_TOKENS
    whole_pages = True
    versions: tuple[str, ...] = (torch.__version__, transformers.__version__, vllm.__version__)

    def check(self, architecture: Architecture) -> None:
        """See `Backend.check`."""
        name, task = architecture.name, architecture.use.purpose.task
        if task is not Task.GENERATE:
            raise UnsupportedModel(
                f"{name} is a model to {task} with, which transformers runs here, and not vLLM: "
                "deploy with engine 'transformers', or 'auto', and without tensor_parallel",
                metadata={"architecture": name},
            )
        if name not in ModelRegistry.get_supported_archs():
            raise UnsupportedModel(
                f"{name} is not among the architectures that vLLM {vllm.__version__} knows",
                metadata={"architecture": name},
            )
        check_quantisation(architecture)
        with refusing(f"vLLM's {name} cannot be used"):
            know(name)
            check_head_size(architecture)

    def check_ranks(self, architecture: Architecture, ranks: int) -> None:
        """See `Backend.check_ranks`."""
        if ranks > 1 and architecture.use.purpose.takes_images:
            raise UnsupportedModel(
                f"{architecture.name} sees images, and is run in one process: deploy it with "
                "tensor_parallel 1",
                metadata={"architecture": architecture.name},
            )
        if ranks > 1:
            instead = "and is run in one process: deploy it with tensor_parallel 1"
            check_plain(architecture.name, architecture.config, instead)
        check_divisible(architecture, ranks)

    def check_adapters(self, architecture: Architecture) -> None:
        """See `Backend.check_adapters`."""
        name = architecture.name
        if architecture.use.purpose.takes_images:
            raise UnsupportedModel(
                f"{name} sees images, and takes no adapters here: deploy it without max_adapters",
                metadata={"architecture": name},
            )
        instead = "and takes no adapters here: deploy it without max_adapters"
        check_plain(name, architecture.config, instead)
        if not current_platform.is_cpu():
            raise UnsupportedModel(
                "vLLM takes adapters here on processors alone: deploy with engine 'transformers' "
                "and max_adapters",
                metadata={"architecture": name},
            )
        with refusing(f"vLLM's {name} cannot be used"):
            known = supports_lora(ModelRegistry.models[name].load_model_cls())
        if not known:
            raise UnsupportedModel(
                f"vLLM's {name} takes no adapters: deploy with engine 'transformers' and "
                "max_adapters",
                metadata={"architecture": name},
            )

    @contextmanager
    def engine_over(self, model: Any, capacity: Capacity) -> Iterator[Engine]:
        """See `Backend.engine_over`. It gets the tensors by the names that checkpoints have."""
        with TemporaryDirectory() as name:
            directory = Path(name)
            model.save_pretrained(directory)
            weights = {
                name: tensor
                for file in directory.glob("*.safetensors")
                for name, tensor in load_file(file).items()
            }
            yield loaded(directory, model.config, weights).engine(capacity)

    def load(
        self, files: ModelFiles, weights: Weights, *, on_device: bool, group: Group = ALONE
    ) -> LoadedForVllm:
        """See `Backend.load`. What vLLM copies, it copies as its engine starts."""
        config, sees = files.architecture.config, files.architecture.use.purpose.takes_images
        model = vllm_model(files.directory, config, weights, group.rank.size, sees=sees)
        return LoadedForVllm(model, group)

    def follow(
        self,
        directory: Path,
        config: Any,
        weights: Weights,
        capacity: Capacity,
        pipe: Connection,
        rank: Rank,
    ) -> None:
        """See `Backend.follow`."""
        model = vllm_model(directory, config, weights, rank.size)
        follow(model, capacity, pipe, rank, lambda: refusing(CANNOT_RUN))

    def make_ready(
        self, files: ModelFiles, weights: Mapping[str, torch.Tensor], group: Group = ALONE
    ) -> ReadyMade:
        """See `Backend.make_ready`: what vLLM has made of the weights before it packs them."""
        if files.architecture.use.purpose.takes_images:
            raise UnsupportedModel("weights of models that see images are not made ready")
        config = files.architecture.config
        model = vllm_model(files.directory, config, weights, group.rank.size)
        return VllmEngine(model, _LEAST_CAPACITY, group).make_ready()

    def make_ready_part(
        self, directory: Path, config: Any, weights: Mapping[str, torch.Tensor], rank: Rank
    ) -> ReadyMade:
        """See `Backend.make_ready_part`."""
        return make_ready_part(
            vllm_model(directory, config, weights, rank.size), _LEAST_CAPACITY, rank
        )

    def parsers(self, names: ParserNames, tokenizer: Any) -> Parsers | None:
        """See `Backend.parsers`."""
        return VllmParsers(names, tokenizer) if names != NO_PARSERS else None

    def images(self, files: ModelFiles, dtype: str) -> ImageReader | None:
        """See `Backend.images`."""
        sees = files.architecture.use.purpose.takes_images
        return VllmImages(files, dtype) if sees else None

    def rehearse(self) -> None:
        """See `Backend.rehearse`. Imports what a start imports: children tell what that is.

        An engine that has run leaves groups of processes, threads and settings behind, which no
        start after it would get rid of. So it runs in children alone.
        """
        logging.getLogger("vllm").setLevel(logging.ERROR)  # advice at every start otherwise
        warnings.filterwarnings("ignore", module="vllm")
        for name in _FAMILIES:
            know(name)
        import_parsers()
        for _ in range(_REHEARSALS):
            missing = imported_by_a_start()
            if not missing:
                return
            for name in missing:
                with suppress(Exception):  # what comes into being only as others are imported
                    importlib.import_module(name)
            _replace_kernels_once()
        raise RuntimeError("each start of the engine on vLLM imports something else")


def loaded(directory: Path, config: Any, weights: Weights) -> LoadedForVllm:
    """A model of a directory's `config.json`, with these weights."""
    return LoadedForVllm(vllm_model(directory, config, weights))


def vllm_model(
    directory: Path, config: Any, weights: Weights, ranks: int = 1, *, sees: bool = False
) -> VllmModel:
    """The same, as the engine wants it, on so many ranks; whether it is shown images."""
    dtype = run_dtype(config, weights)
    per_token = kv_bytes_per_token(config, dtype, ranks)
    return VllmModel(directory, weights, dtype, context_tokens(config), per_token, ranks, sees)


def know(name: str) -> None:
    """Has vLLM's registry know a model's class itself.

    It would start a process to look at the class, for seconds, or find in a file what an earlier
    one has found.

    Raises:
        Exception: Whatever importing the model's module raises.
    """
    entry = ModelRegistry.models[name]
    if hasattr(entry, "module_name"):
        ModelRegistry.register_model(name, entry.load_model_cls())


def _replace_kernels_once() -> None:
    """Puts kernels for processors where others are, which takes a look at every module there is.

    Each worker would do so again, for most of a second.
    """
    current_platform.register_triton_kernel_overrides()
    type(current_platform).register_triton_kernel_overrides = classmethod(lambda cls: None)


def imported_by_a_start() -> list[str]:
    """What a child imports that starts an engine and has it generate, beside what is there.

    Raises:
        RuntimeError: The engine does not work.
    """
    parent = os.getpid()
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        die_with_parent(parent)
        _rehearse_in_child(write)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        told = answer.read()
    _, status = os.waitpid(pid, 0)
    if status or not told:
        raise RuntimeError(f"a rehearsal of the engine on vLLM has ended with status {status}")
    names: list[str] = json.loads(told)
    return names


def _rehearse_in_child(answer: int) -> None:
    status = 1
    try:
        before = set(sys.modules)
        _generate()
        os.write(answer, json.dumps([name for name in sys.modules if name not in before]).encode())
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def _generate() -> None:
    """Starts an engine over a small model and has it give a token."""
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        dtype="bfloat16",
    )
    weights = LlamaForCausalLM(config).to(torch.bfloat16).state_dict()
    steps: queue.Queue[Step | Exception] = queue.Queue()
    with TemporaryDirectory() as directory:
        config.save_pretrained(directory)
        engine = loaded(Path(directory), config, weights).engine(Capacity(64, 1))
        engine.start(steps.put, steps.put)
    engine.submit(EngineRequest("rehearsal", (1, 2), Sampling(temperature=0.7, seed=0), 1))
    step = steps.get(timeout=_TOKEN_TIMEOUT)
    if isinstance(step, Exception):
        raise step
