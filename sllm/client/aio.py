"""The client for programs that run an event loop."""

import inspect
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Concatenate, ParamSpec

from serverlessllm.v1 import deployment_service_pb2 as deployment_pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb

from sllm import errors
from sllm.client.batches import BatchClient
from sllm.client.embedding import EmbeddingClient
from sllm.client.operator import PAGE_SIZE
from sllm.client.stream import AsyncStream, ResumableCall
from sllm.client.text import TextClient
from sllm.client.types.chats import (
    ChatMessage,
    NamedTool,
    StructuredOutput,
    Tool,
    ToolChoice,
)
from sllm.client.types.deployments import Deployment
from sllm.client.types.enums import DeploymentState
from sllm.client.types.events import Progress, Result
from sllm.client.wire import listings, requests
from sllm.client.wire.chats import Chat

P = ParamSpec("P")


def _whole(
    generate: Callable[Concatenate["AsyncClient", P], AsyncStream],
) -> Callable[Concatenate["AsyncClient", P], Coroutine[Any, Any, Result]]:
    """`generate` with the same arguments, and the result of its stream."""

    async def complete(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> Result:
        async with generate(self, *args, **kwargs) as stream:
            return await stream.result()

    signature = inspect.signature(generate)
    vars(complete)["__signature__"] = signature.replace(return_annotation=Result)
    complete.__doc__ = "A whole generation: the result of `generate`, with the same arguments."
    return complete


class AsyncClient(TextClient, EmbeddingClient, BatchClient):
    """A client of one control plane. The tasks of one event loop may share it.

    Every method raises the class of `sllm.errors` that says what went wrong, `errors.Unreachable`
    if there is no control plane at the address.

    Example:
        async with sllm.AsyncClient() as client:
            await client.deploy("tiny", "/models/tiny", keep_alive=60.0)
            prompts = ["Once upon a time", "The for statement"]
            calls = [client.complete("tiny", prompt, max_tokens=32) for prompt in prompts]
            for result in await asyncio.gather(*calls):
                print(result.text, result.usage.completion_tokens)
    """

    # --- deployments --------------------------------------------------------------------------

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
        pack: bool = False,
        tool_parser: str = "",
        reasoning_parser: str = "",
        base: str = "",
        max_adapters: int = 0,
        max_adapter_rank: int | None = None,
        chat_template: str = "",
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
            pack: whether local safetensors are packed on each node, and not read where they lie.
            tool_parser: vLLM's, such as "hermes", that takes calls of tools out of answers. Empty:
                they stay text.
            reasoning_parser: the same of thoughts, such as "qwen3".
            base: name of another deployment, whose instances serve requests for this one: then
                the source is a LoRA adapter over its model, as PEFT saves it, and only
                keep_alive, dtype and pack are its own. Empty: it is a model of its own.
            max_adapters: adapters over this deployment that an instance has at once. 0: none.
            max_adapter_rank: the greatest rank that they may have. None: 64.
            chat_template: in Jinja, what conversations are rendered with. Empty: the model's own.
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
            chat_template=chat_template,
            min_replicas=min_replicas,
            max_replicas=max_replicas,
            keep_alive=keep_alive,
            target_concurrency=target_concurrency,
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
        request = deployment_pb.WatchDeploymentRequest(name=name)
        watch = self._connection.stream(
            self._connection.deployments.WatchDeployment, request, timeout
        )
        async with aclosing(watch) as watched:
            async for message in watched:
                deployment = listings.deployment(message.deployment)
                if deployment.state is DeploymentState.AVAILABLE:
                    return deployment
                if deployment.state is DeploymentState.FAILED:
                    raise errors.DeploymentFailed(f"{name}: {deployment.message}")
                if deployment.loading and on_progress:
                    on_progress(deployment.loading)
        raise errors.DeploymentNotFound(f"{name} was deleted before a node held its checkpoint")

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

    # --- generations --------------------------------------------------------------------------

    def generate(
        self,
        deployment: str,
        prompt: str | None = None,
        *,
        prompt_token_ids: Sequence[int] | None = None,
        messages: Sequence[ChatMessage] | None = None,
        tools: Sequence[Tool] | None = None,
        tool_choice: ToolChoice | NamedTool | None = None,
        template_arguments: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        logit_bias: Mapping[int, float] | None = None,
        min_tokens: int | None = None,
        bad_words: Sequence[str] | None = None,
        allowed_token_ids: Sequence[int] | None = None,
        structured_output: StructuredOutput | None = None,
        stop: str | Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        n: int | None = None,
        ignore_eos: bool = False,
        failover: bool = True,
        priority: int = 0,
        keep_alive: float | None = None,
        request_id: str | None = None,
        attach: bool = False,
        linger: float = 0.0,
        reattach: float = 30.0,
        timeout: float | None = None,
    ) -> AsyncStream:
        """Begins a generation and returns the stream of its events. What fails, fails there.

        Args:
            deployment: name of the deployment.
            prompt: text, tokenised as it is; or
            prompt_token_ids: ids in the model's vocabulary; or
            messages: a conversation, rendered with the model's chat template.
            tools: what the template tells the model of, beside messages. None: none.
            tool_choice: "auto", "none", "required", or the tool to call; with the last two the
                answer is nothing but calls. None: "auto".
            template_arguments: variables for it, such as {"enable_thinking": False}. None: none.
            add_generation_prompt: whether it writes what an answer begins with. None: yes, unless
                the last message is gone on with.
            continue_final_message: go on with the last message.
            max_tokens: tokens to generate at most. None: as many as the context leaves.
            temperature: 0 is greedy. None: 1.
            top_p: keep the smallest set of tokens whose probability reaches this. None: all.
            top_k: keep the k most likely tokens; 0 keeps all. None: 0.
            min_p: keep tokens at least this fraction as likely as the likeliest. None: all.
            seed: makes the draws repeatable. None: a random one.
            repetition_penalty: above 1, tokens of prompt and generation get less likely. None: 1.
            presence_penalty: -2 to 2, taken from the logits of tokens that were generated. None: 0.
            frequency_penalty: the same for each time that they were. None: 0.
            logit_bias: -100 to 100, added to the logits of tokens, by their ids. None: nothing.
            min_tokens: nothing ends the generation before it has so many. None: 0.
            bad_words: texts that are not generated, as the tokenizer divides them. None: none.
            allowed_token_ids: the only tokens that may be generated. None: all.
            structured_output: the form that the text is to have. None: any.
            stop: the text ends before the first of these to appear.
            stop_token_ids: the generation ends with the first of these.
            include_stop: whether the text ends behind the stop string or token, and not before it.
            skip_special_tokens: whether special tokens are left out of the text.
            logprobs: give logprobs, with this many alternatives for every token. None: no.
            prompt_logprobs: the same for the prompt's tokens, told before the first that is
                generated; all of the prompt is computed for it. None: no.
            n: samples of the prompt, 1 to 128, that are generated side by side: each is one of
                `Result.choices`, and events say which they are about. Each has its own seed, one
                more than the sample's before it. None: one.
            ignore_eos: go on after the model's own end-of-text token.
            failover: go on elsewhere if the instance that serves it, or its node, is lost. False:
                fail with it.
            priority: -100 to 100; those of a higher one are served first, over all deployments.
            keep_alive: seconds that the instance stays at least when this request has ended,
                unless its room is needed. None: as the deployment's policy says.
            request_id: unique among the requests under way. None: one is made.
            attach: read the generation of this id, of the same arguments, that is under way or
                lingers, from its beginning; who reads it now is cancelled. Where there is none it
                begins, with a seed that the id decides if none is given.
            linger: seconds for which it goes on when nobody reads it any more. 0: it ends with
                its stream.
            reattach: seconds for which a control plane that is lost is waited for, to read on.
            timeout: seconds for all of it; work that cannot meet it is refused at once.

        Raises:
            errors.InvalidPrompt: Not exactly one of the prompts was given.
            errors.InvalidStructuredOutput: Not exactly one form was given, or it is no JSON.
        """
        sampling = {
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "seed": seed,
            "repetition_penalty": repetition_penalty,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "logit_bias": logit_bias,
            "min_tokens": min_tokens,
            "bad_words": bad_words,
            "allowed_token_ids": allowed_token_ids,
        }
        request = requests.generate(
            deployment,
            prompt,
            prompt_token_ids,
            messages,
            chat=Chat(
                tools,
                template_arguments,
                add_generation_prompt,
                continue_final_message,
                tool_choice,
            ),
            request_id=request_id,
            sampling=sampling,
            structured_output=structured_output,
            stop=stop,
            stop_token_ids=stop_token_ids,
            include_stop=include_stop,
            skip_special_tokens=skip_special_tokens,
            max_tokens=max_tokens,
            ignore_eos=ignore_eos,
            logprobs=logprobs,
            failover=failover,
            priority=priority,
            keep_alive=keep_alive,
            linger=linger,
            n=n,
            prompt_logprobs=prompt_logprobs,
        )
        if attach:
            requests.attach(request, chooses_seed=seed is None)
        call = ResumableCall(request, self._connection, timeout)
        return AsyncStream(call, wants_logprobs=logprobs is not None, reattach=reattach)

    complete = _whole(generate)

    async def cancel(self, request_id: str) -> None:
        """Ends a generation from outside its stream, which then fails with `errors.Cancelled`.

        One that lingers without a reader is ended as well.

        Raises:
            errors.RequestNotFound: No request under way has this id.
        """
        with requests.fitting():
            request = inference_pb.CancelRequest(request_id=request_id)
        await self._connection.call(self._connection.inference.Cancel, request)
