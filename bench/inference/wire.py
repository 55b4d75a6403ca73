"""Engines as callers have them: a deployment of a cluster, through the SDK."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import psutil

import sllm
from bench.inference.timing import PROMPT_TOKENS, Asked, Rate, new_prompts
from bench.local_cluster import LocalCluster

IDLE_SECONDS = 60.0
DEPLOY_SECONDS = 600.0
"""Time that an import may take."""
KV_TOKENS = 16_384
MAX_REQUESTS = 32


@dataclass(slots=True)
class Deployed:
    """See `Contender`."""

    cluster: LocalCluster
    engine: str
    source: Path
    vocabulary: int
    prefix: str = "on"
    kv_tokens: int = KV_TOKENS

    @property
    def name(self) -> str:
        """Of the deployment."""
        return f"{self.prefix}-{self.engine}"

    def deploy(self, keep_alive: float) -> None:
        """Deploys it, or changes for how many seconds its instance stays without requests."""
        self.cluster.client.deploy(
            self.name,
            f"file://{self.source}",
            engine=self.engine,
            keep_alive=keep_alive,
            kv_cache_tokens=self.kv_tokens,
            max_concurrency=MAX_REQUESTS,
            timeout=DEPLOY_SECONDS,
        )

    def cold_start(self) -> float:
        """Seconds to the first token when the weights are in memory and nothing runs."""
        self.deploy(keep_alive=0.0)
        self.wait_until_idle()
        return self.first_token(PROMPT_TOKENS)

    def wait_until_idle(self) -> None:
        """Returns once none of its instances is there.

        Raises:
            TimeoutError: One has not ended.
        """
        deadline = time.monotonic() + IDLE_SECONDS
        while any(one.deployment == self.name for one in self.cluster.client.instances()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"an instance of {self.name} has not ended")
            time.sleep(0.02)

    def decode(self, streams: int, tokens: int, seeded: bool = False) -> float:
        """See `Contender.decode`."""
        prompts = new_prompts(streams, PROMPT_TOKENS, self.vocabulary)
        return asyncio.run(self._decode(Asked(prompts, tokens, seeded)))

    def first_token(self, prompt_tokens: int) -> float:
        """See `Contender.first_token`."""
        asked = Asked(new_prompts(1, prompt_tokens, self.vocabulary), 1)
        return asyncio.run(self._first_token(asked))

    def relay_seconds(self, streams: int, tokens: int) -> float:
        """Processor seconds of control plane and node for 1,000 tokens of so many streams."""
        servers = [self.cluster.server(name) for name in ("control", "node-1")]
        before = sum(map(_processor_seconds, servers))
        self.decode(streams, tokens)
        spent = sum(map(_processor_seconds, servers)) - before
        return 1000 * spent / (streams * tokens)

    def close(self) -> None:
        """See `Contender.close`."""
        self.cluster.client.delete(self.name)

    async def _decode(self, asked: Asked) -> float:
        rate = Rate(len(asked.prompts))

        async def read(client: sllm.AsyncClient, number: int) -> None:
            async for count in self._tokens(client, asked, number):
                rate.take([str(number)] * count)

        async with sllm.AsyncClient(self.cluster.address) as client, asyncio.TaskGroup() as group:
            for number in range(len(asked.prompts)):
                group.create_task(read(client, number))
        return rate.tokens_per_second

    async def _first_token(self, asked: Asked) -> float:
        async with sllm.AsyncClient(self.cluster.address) as client:
            await client.deployments()  # the connection is there
            began, first = time.perf_counter(), None
            async for _ in self._tokens(client, asked, 0):
                first = first or time.perf_counter()
        if first is None:
            raise RuntimeError(f"{self.name} has given no token")
        return first - began

    async def _tokens(
        self, client: sllm.AsyncClient, asked: Asked, number: int
    ) -> AsyncIterator[int]:
        """How many tokens come at a time."""
        stream = client.generate(
            self.name,
            prompt_token_ids=asked.prompts[number],
            max_tokens=asked.max_tokens,
            temperature=float(asked.seeded),
            seed=number,
            ignore_eos=True,
        )
        async for event in stream:
            if isinstance(event, sllm.Tokens):
                yield len(event.token_ids)


def _processor_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
