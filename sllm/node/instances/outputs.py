"""What a worker puts out for one request: for its reader, and for those who move it."""

import asyncio
from collections.abc import Callable, Sequence

from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import worker_service_pb2 as pb

from sllm import errors


class OutputStream:
    """One request's outputs, in order, and the generation so far.

    A request that is submitted anew, to go on, puts out to the same stream.
    """

    def __init__(self, request: inference_pb.GenerateRequest, *, keep: bool = False) -> None:
        """`keep`: what was taken is kept, to be taken again by another reader."""
        self.prompt: Sequence[int] = request.token_ids.ids
        """Token ids; empty until the worker has told them, unless they came with the request."""
        self.token_ids: list[int] = list(request.continuation.token_ids)
        """All that were generated, those waiting to be taken included."""
        self.moved: inference_pb.Moved | None = None
        """Where the generation has gone on, if it has."""
        self.ended = False
        """Whether the worker puts out nothing more."""
        self.on_end: Callable[[], None] = lambda: None
        """Called at its end, perhaps more than once."""
        self._keep = keep
        self._outputs: list[pb.RequestOutput] = []
        self._taken = 0
        self._accepted = False
        self._prompt_told = 0
        self._refused = False
        self._error: errors.SllmError | None = None
        self._arrived = asyncio.Event()
        self._grown: asyncio.Event | None = None

    def put(self, output: pb.RequestOutput) -> None:
        """Adds an output."""
        match output.WhichOneof("output"):
            case "accepted":
                if self._accepted:
                    return  # it went on after a move that came to nothing
                self._accepted = True
                self.prompt = output.accepted.prompt_token_ids
            case "prompt_logprobs":
                if not self._is_news(output.prompt_logprobs):
                    return
            case "tokens":
                self.token_ids.extend(output.tokens.token_ids)
            case "completed":
                self.token_ids.extend(output.completed.tokens.token_ids)
                self.ended = True
            case "failure":
                self.ended = self._refused = True
        self._outputs.append(output)
        self._tell_end()

    def _tell_end(self) -> None:
        self._announce()
        if self.ended:
            self.on_end()

    def _is_news(self, told: inference_pb.PromptLogprobs) -> bool:
        """Whether these were not told before a move that came to nothing."""
        if told.first_index < self._prompt_told:
            return False
        self._prompt_told = told.first_index + len(told.tokens)
        return True

    def fail(self, error: errors.SllmError) -> None:
        """Ends the stream with `error`, after the outputs that are waiting."""
        self._error = error
        self.ended = True
        self._announce()
        self.on_end()

    def move(self, moved: inference_pb.Moved) -> None:
        """Ends the stream: the generation goes on elsewhere."""
        self.moved = moved
        self._announce()

    def grown(self) -> asyncio.Event:
        """An event that is set with the next output, or at the end."""
        if self._grown is None:
            self._grown = asyncio.Event()
        return self._grown

    def rewind(self, count: int) -> bool:
        """Gives the outputs after the first `count` tokens out again, if they are still there.

        Who has no token may lack the acceptance before it as well, and takes that again.
        """
        # The place behind the last output counts as well, unless nothing comes there any more.
        for place in range(len(self._outputs) + (not self.ended)):
            first = self._first_index(place)
            if first is not None and first >= count:
                self._taken = place if count else 0
                self._arrived.set()
                return first == count
        return False

    @property
    def failed(self) -> bool:
        """Whether its end is a failure, taken or not."""
        return self._error is not None or self._refused

    async def take(self) -> Sequence[pb.RequestOutput]:
        """Everything that waits, at least one output; nothing once the generation has moved.

        Raises:
            errors.SllmError: The stream has failed and nothing waits any more.
        """
        await self._arrived.wait()
        taken = self._outputs[self._taken :]
        if not taken and self._error:
            raise self._error
        self._taken = len(self._outputs)
        if not self._keep:
            self._outputs, self._taken = [], 0
        if not (self._error or self.moved):
            self._arrived.clear()
        return taken

    def _announce(self) -> None:
        self._arrived.set()
        if self._grown:
            self._grown.set()
            self._grown = None

    def _first_index(self, place: int) -> int | None:
        """Index of the token with which the outputs from `place` on begin."""
        if place == len(self._outputs):
            return len(self.token_ids)
        output = self._outputs[place]
        kind = output.WhichOneof("output")
        if kind == "tokens":
            return output.tokens.first_index
        return output.completed.tokens.first_index if kind == "completed" else None
