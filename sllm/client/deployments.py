"""The client as those use it who say what models there are."""

import os
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from serverlessllm.v1 import deployment_service_pb2 as deployment_pb

from sllm import errors
from sllm.client.base import BaseClient
from sllm.client.connection import PAGE_SIZE
from sllm.client.types.deployments import Deployment
from sllm.client.types.enums import DeploymentState
from sllm.client.types.events import Progress
from sllm.client.wire import listings, requests


class DeploymentClient(BaseClient):
    """The part of a client that is about deployments: see `AsyncClient`."""

    async def deploy(
        self,
        name: str,
        source: str | os.PathLike[str],
        *,
        keep_alive: float = 60.0,
        min_replicas: int = 0,
        max_replicas: int = 1,
        engine: str = "",
        dtype: str | None = None,
        kv_cache_tokens: int | None = None,
        max_concurrency: int | None = None,
        target_concurrency: int | None = None,
        learn_keep_alive: bool | None = None,
        target_time_per_token: float | None = None,
        pack: bool = False,
        tool_parser: str = "",
        reasoning_parser: str = "",
        tensor_parallel: int | None = None,
        expert_memory: int | None = None,
        base: str = "",
        max_adapters: int = 0,
        max_adapter_rank: int | None = None,
        chat_template: str = "",
        image_hosts: Sequence[str] = (),
        wait: bool = True,
        timeout: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Deployment:
        """Creates a deployment, or changes the policy of the one with this name and source.

        Instances that run on another engine or with another context are replaced as new ones get
        ready, and end with the requests that they have.

        Args:
            name: 1-63 of [a-z0-9._-], beginning with a letter or digit.
            source: a URL such as file:///models/tiny, or a path on the nodes.
            keep_alive: seconds that an idle instance stays; 0 ends it with its last request.
            min_replicas: instances kept even without requests.
            max_replicas: instances at most.
            engine: "vllm", "transformers" or "auto". Empty: "auto", the first engine of a node, in
                the node's own order, that the model runs on.
            dtype: torch dtype ("float32", "bfloat16", "float16") to convert weights to, once,
                when they are imported. None: as they are stored.
            kv_cache_tokens: tokens that one instance's KV cache can hold. None: the default.
            max_concurrency: requests that one instance works on at once. None: the default.
            target_concurrency: requests that an instance should have before another one is
                started. None: max_concurrency.
            learn_keep_alive: whether idle instances end before keep_alive is over where the pauses
                between requests say that more is not worth its memory. None: as the control plane
                is set up.
            target_time_per_token: seconds between two tokens of a request; where they come slower,
                an instance works on fewer requests at once. None: on max_concurrency.
            pack: whether local safetensors are packed on each node, and not read where they lie.
            tool_parser: vLLM's, such as "hermes", that takes calls of tools out of answers. Empty:
                they stay text.
            reasoning_parser: the same of thoughts, such as "qwen3".
            tensor_parallel: devices of one node that an instance runs on together, each with its
                part of the model; on nodes without accelerators, processes. It needs vLLM. None: 1.
            expert_memory: bytes that the experts of one instance may take. All others stay on SSD
                until requests use them, so that a mixture of experts need not fit in memory. It
                needs transformers. None: all weights are in memory.
            base: name of another deployment, whose instances serve requests for this one: then
                the source is a LoRA adapter over its model, as PEFT saves it, and only
                keep_alive, dtype and pack are its own. Empty: it is a model of its own.
            max_adapters: adapters over this deployment that an instance has at once. 0: none.
            max_adapter_rank: the greatest rank that they may have. None: 64.
            chat_template: in Jinja, what conversations are rendered with. Empty: the model's own.
            image_hosts: hosts that images may be fetched from: names, "*." before a name for all
                below it, "*" for any that is public. Empty: images come with their requests.
            wait: whether to return only when a node holds the checkpoint.
            timeout: seconds for all of it. None: as long as the checkpoint takes.
            on_progress: told how far the checkpoint has come, in the event loop's thread.

        Raises:
            errors.InvalidRequest: The name, the source or the policy makes no sense.
            errors.SourceNotFound: There is nothing at the source.
            errors.EngineUnavailable: No node has the engine.
            errors.UnsupportedModel: The engine does not run the model.
            errors.UnsupportedAdapter: The adapter does not fit its base, which says how.
            errors.AdaptersLeft: There are adapters over it that would not fit any more.
            errors.DeploymentExists: The name serves another source.
            errors.DeploymentFailed: The checkpoint could not be brought to any node.
        """
        request = requests.deploy(
            name,
            source,
            engine=engine,
            dtype=dtype,
            kv_cache_tokens=kv_cache_tokens,
            max_concurrency=max_concurrency,
            pack=pack,
            tool_parser=tool_parser,
            reasoning_parser=reasoning_parser,
            tensor_parallel=tensor_parallel,
            expert_memory=expert_memory,
            chat_template=chat_template,
            image_hosts=image_hosts,
            min_replicas=min_replicas,
            max_replicas=max_replicas,
            keep_alive=keep_alive,
            target_concurrency=target_concurrency,
            learn_keep_alive=learn_keep_alive,
            target_time_per_token=target_time_per_token,
            base=base,
            max_adapters=max_adapters,
            max_adapter_rank=max_adapter_rank,
        )
        deadline = None if timeout is None else time.monotonic() + timeout
        response = await self._connection.call(
            self._connection.deployments.Deploy, request, timeout
        )
        deployment = listings.deployment(response.deployment)
        if not wait or deployment.state is DeploymentState.AVAILABLE:
            return deployment
        return await self._available(name, deadline, on_progress)

    async def _available(
        self, name: str, deadline: float | None, on_progress: Callable[[Progress], None] | None
    ) -> Deployment:
        """Waits until a node holds the checkpoint."""
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        async with aclosing(self.watch_deployment(name, timeout)) as watched:
            async for deployment in watched:
                if deployment.state is DeploymentState.AVAILABLE:
                    return deployment
                if deployment.state is DeploymentState.FAILED:
                    raise errors.DeploymentFailed(f"{name}: {deployment.message}")
                if deployment.loading and on_progress:
                    on_progress(deployment.loading)
        raise errors.DeploymentNotFound(f"{name} was deleted before a node held its checkpoint")

    async def watch_deployment(
        self, name: str, timeout: float | None = None
    ) -> AsyncGenerator[Deployment]:
        """One deployment, now and whenever it has changed, until it is deleted or this is left.

        Args:
            name: the deployment's.
            timeout: seconds for all of it. None: as long as it takes.

        Raises:
            errors.DeploymentNotFound: There is none of this name.
        """
        with requests.fitting():
            request = deployment_pb.WatchDeploymentRequest(name=name)
        watch = self._connection.stream(
            self._connection.deployments.WatchDeployment, request, timeout
        )
        async with aclosing(watch) as watched:
            async for message in watched:
                yield listings.deployment(message.deployment)

    async def deployment(self, name: str) -> Deployment:
        """One deployment.

        Raises:
            errors.DeploymentNotFound: There is none of this name.
        """
        with requests.fitting():
            request = deployment_pb.GetDeploymentRequest(name=name)
        response = await self._connection.call(self._connection.deployments.GetDeployment, request)
        return listings.deployment(response.deployment)

    async def deployments(self) -> list[Deployment]:
        """All deployments, in order of their names."""
        request = deployment_pb.ListDeploymentsRequest(page_size=PAGE_SIZE)
        pages = self._connection.pages(self._connection.deployments.ListDeployments, request)
        return [listings.deployment(one) async for page in pages for one in page.deployments]

    async def delete(self, name: str) -> None:
        """Ends a deployment: its requests are cancelled, its instances stopped.

        Raises:
            errors.DeploymentNotFound: There is none of this name.
        """
        with requests.fitting():
            request = deployment_pb.DeleteDeploymentRequest(
                request_id=requests.new_request_id(), name=name
            )
        await self._connection.call(self._connection.deployments.DeleteDeployment, request)
