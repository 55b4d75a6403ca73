"""The client for programs that run an event loop."""

import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec

from serverlessllm.v1 import inference_service_pb2 as inference_pb

from sllm.client.batches import BatchClient
from sllm.client.cluster import ClusterClient
from sllm.client.deployments import DeploymentClient
from sllm.client.embedding import EmbeddingClient
from sllm.client.keys import KeyClient
from sllm.client.stream import AsyncStream, ResumableCall
from sllm.client.tenants import TenantClient
from sllm.client.text import TextClient
from sllm.client.types.chats import (
    ChatMessage,
    NamedTool,
    StructuredOutput,
    Tool,
    ToolChoice,
)
from sllm.client.types.events import Result
from sllm.client.wire import requests
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


class AsyncClient(
    DeploymentClient,
    TextClient,
    EmbeddingClient,
    BatchClient,
    ClusterClient,
    KeyClient,
    TenantClient,
):
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
        zone: str | None = None,
        request_id: str | None = None,
        attach: bool = False,
        linger: float = 0.0,
        attempt: str | None = None,
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
            zone: where the caller is; it is served near there, unless that would be later for all
                that the way elsewhere costs. None: it does not say, and nothing is far.
            request_id: unique among the requests under way. None: one is made.
            attach: read the generation of this id, of the same arguments, that is under way or
                lingers, from its beginning; who reads it now is cancelled. Where there is none it
                begins, with a seed that the id decides if none is given.
            linger: seconds for which it goes on when nobody reads it any more. 0: it ends with
                its stream.
            attempt: names this call among those that ask for `request_id`, for `cancel`.
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
            zone=zone,
            linger=linger,
            attempt=attempt,
            n=n,
            prompt_logprobs=prompt_logprobs,
        )
        if attach:
            requests.attach(request, chooses_seed=seed is None)
        call = ResumableCall(request, self._connection, timeout)
        return AsyncStream(call, wants_logprobs=logprobs is not None, reattach=reattach)

    complete = _whole(generate)

    async def cancel(self, request_id: str, *, attempt: str | None = None) -> None:
        """Ends a generation from outside its stream, which then fails with `errors.Cancelled`.

        One that lingers without a reader is ended as well. `attempt`: it is left alone if another
        call of `generate` than the one so named has read it on meanwhile. None: it ends.

        Raises:
            errors.RequestNotFound: No request under way has this id, or not of this attempt.
        """
        with requests.fitting():
            request = inference_pb.CancelRequest(request_id=request_id, attempt=attempt)
        await self._connection.call(self._connection.inference.Cancel, request)
