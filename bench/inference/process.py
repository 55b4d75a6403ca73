"""Engines in a process of their own, without a node around them."""

import multiprocessing
import os
import queue
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.inference.timing import PROMPT_TOKENS, Asked, Rate, new_prompts, seconds_to_first

Steps = Callable[[Asked], Iterator[Sequence[str]]]
"""Has requests done, and gives whose tokens each step brought."""
KV_TOKENS = 16_384
MAX_REQUESTS = 32
CONTEXT = 4096
_AS_WORKERS_ARE = {"OMP_WAIT_POLICY": "PASSIVE"}
"""What the zygote sets for workers; the bare engine has what its library has."""


class EngineProcess:
    """See `Contender`."""

    def __init__(self, kind: str, model: Path, vocabulary: int) -> None:
        """Starts it, and returns when it is ready.

        Args:
            kind: "bare" is vLLM's core alone; "vllm" and "transformers" are our engines.
            model: directory in Hugging Face format.
            vocabulary: of the tokens in prompts.
        """
        self._vocabulary = vocabulary
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        environment = {} if kind == "bare" else _AS_WORKERS_ARE
        self.process = context.Process(target=_serve, args=(kind, model, theirs, environment))
        self.process.start()
        theirs.close()
        self._connection.recv()

    def decode(self, streams: int, tokens: int, seeded: bool = False) -> float:
        """See `Contender.decode`."""
        prompts = new_prompts(streams, PROMPT_TOKENS, self._vocabulary)
        return self._ask("decode", Asked(prompts, tokens, seeded))

    def first_token(self, prompt_tokens: int) -> float:
        """See `Contender.first_token`."""
        return self._ask("first", Asked(new_prompts(1, prompt_tokens, self._vocabulary), 1))

    def close(self) -> None:
        """See `Contender.close`."""
        self._connection.close()
        self.process.join()

    def _ask(self, what: str, asked: Asked) -> float:
        self._connection.send((what, asked))
        return float(self._connection.recv())


def _serve(kind: str, model: Path, connection: Connection, environment: dict[str, str]) -> None:
    os.environ.update(environment)  # before torch is imported
    steps = {"bare": _bare, "vllm": _vllm, "transformers": _transformers}[kind](model)
    connection.send("ready")
    while True:
        try:
            what, asked = connection.recv()
        except EOFError:
            os._exit(0)
        if what == "first":
            connection.send(seconds_to_first(steps(asked)))
        else:
            rate = Rate(len(asked.prompts))
            for names in steps(asked):
                rate.take(names)
            connection.send(rate.tokens_per_second)


def _bare(model: Path) -> Steps:
    from transformers import AutoConfig

    from bench.inference.plain_vllm import PlainVllm

    context = min(CONTEXT, AutoConfig.from_pretrained(model).max_position_embeddings)
    core = PlainVllm(
        model, "auto", kv_bytes=1 << 30, max_model_len=context, max_num_seqs=MAX_REQUESTS
    )

    def steps(asked: Asked) -> Iterator[Sequence[str]]:
        sampling = {"temperature": 1.0, "seed": 1} if asked.seeded else {}
        for prompt in asked.prompts:
            core.submit(prompt, asked.max_tokens, **sampling)
        left = len(asked.prompts) * asked.max_tokens
        while left:
            if came := list(core.step()):
                left -= len(came)
                yield came

    return steps


def _vllm(model: Path) -> Steps:
    import torch
    from safetensors.torch import load_file

    from sllm.node.worker.engine.interface import Capacity
    from sllm.node.worker.engine.vllm.config import VllmModel
    from sllm.node.worker.engine.vllm.engine import VllmEngine
    from sllm.node.worker.model.description import (
        context_tokens,
        kv_bytes_per_token,
        load_architecture,
    )

    config = load_architecture(model).config
    dtype: torch.dtype = config.dtype
    weights = {k: v for file in model.glob("*.safetensors") for k, v in load_file(file).items()}
    context = min(CONTEXT, context_tokens(config))
    made = VllmModel(model, weights, dtype, context, kv_bytes_per_token(config, dtype))
    return _ours(VllmEngine(made, Capacity(KV_TOKENS, MAX_REQUESTS)))


def _transformers(model: Path) -> Steps:
    from transformers import AutoModelForCausalLM

    from sllm.node.worker.engine.interface import Capacity
    from sllm.node.worker.engine.transformers_engine import TransformersEngine

    module: Any = AutoModelForCausalLM.from_pretrained(model, dtype="auto").eval()
    return _ours(TransformersEngine(module, Capacity(KV_TOKENS, MAX_REQUESTS)))


def _ours(engine: Any) -> Steps:
    """Steps of an `Engine`, which is started."""
    from sllm.node.worker.engine.interface import EngineRequest
    from sllm.sampling import Sampling

    came: queue.SimpleQueue[Any] = queue.SimpleQueue()
    engine.start(came.put, came.put)
    batches = iter(range(10**9))

    def steps(asked: Asked) -> Iterator[Sequence[str]]:
        batch, temperature = next(batches), float(asked.seeded)
        for number, prompt in enumerate(asked.prompts):
            sampling = Sampling(temperature=temperature, seed=number)
            engine.submit(EngineRequest(f"{batch}-{number}", prompt, sampling, asked.max_tokens))
        left = len(asked.prompts) * asked.max_tokens
        while left:
            step = came.get()
            if isinstance(step, Exception):
                raise step
            if step.tokens:
                left -= len(step.tokens)
                yield [token.request_id for token in step.tokens]

    return steps
