"""A generation that this control plane carries from its node to its caller, while another leads.

The leader decides where it is served. Tokens go straight from the node to the caller, and a few
times a second the leader hears which. If the leader is lost, they go on; whoever leads next is told
what the caller has, and where it comes from.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Final

from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import replica_service_pb2 as pb

from sllm import errors, statuses
from sllm.clock import Clock
from sllm.control.replicas.leader_link import LeaderLink, Reach
from sllm.control.replicas.node_links import NodeCall, NodeLinks
from sllm.control.replicas.transcript import Transcript

_TELL_SECONDS: Final = 0.25
"""Between two words to the leader on tokens that the caller has."""
_RETRY_SECONDS: Final = 0.1
"""Between two looks for somebody who leads."""


class Carried:
    """One caller's stream. Belongs to the event loop."""

    def __init__(
        self,
        transcript: Transcript,
        reach: Reach,
        nodes: NodeLinks,
        clock: Clock,
        patience: float,
    ) -> None:
        """`reach` leads to whoever leads, for whom it waits for `patience` seconds."""
        self._transcript = transcript
        self._reach = reach
        self._nodes = nodes
        self._clock = clock
        self._patience = patience
        self._changed = asyncio.Event()
        self._link: LeaderLink | None = None
        self._call: NodeCall | None = None
        self._instance_id = ""
        """Where it is served, as far as anybody knows."""
        self._direct = False
        """Whether what the node gives is for the caller at once."""
        self._waits = False
        """Whether the first tokens of a call are on their way through the leader's books."""
        self._ordered = False
        """Whether the leader of now has said where it is served, and so hears what comes of it."""
        self._kept: node_pb.CallOutput | None = None
        """The end of it all, until some leader has passed it."""
        self._ending = False
        self._telling: asyncio.TimerHandle | None = None
        self._without_since = clock.now()

    async def events(self) -> AsyncGenerator[inference_pb.GenerateResponse]:
        """What the caller is to see, up to `finished`.

        Raises:
            errors.SllmError: Why it has ended without.
            grpc.aio.AioRpcError: The same, as the leader has said it.
        """
        try:
            while True:
                event = self._next()
                if event is None:
                    await self._more()
                    continue
                yield self._transcript.stamp(event)
                if event.HasField("finished"):
                    return
        finally:
            await self._close()

    def end(self) -> None:
        """Has it end with ShuttingDown."""
        self._ending = True
        self._changed.set()

    async def _close(self) -> None:
        if self._telling:
            self._telling.cancel()
        self._hang_up()
        if self._link:
            await self._link.close()

    def _hang_up(self) -> None:
        call, self._call = self._call, None
        if call:
            call.close()

    # --- what comes ---------------------------------------------------------------------------

    def _next(self) -> inference_pb.GenerateResponse | None:
        """What has come for the caller. None: nothing yet."""
        while self._link and self._link.responses:
            if event := self._said(self._link.responses.popleft()):
                return event
        while self._call and not self._waits and (self._direct or self._led):
            number = self._call.number
            try:
                event = self._call.call.take_now()
            except errors.SllmError as error:
                self._failed(error)
                return None
            if event is None:
                return None
            if given := self._given(number, event):
                return given
        return None

    async def _more(self) -> None:
        """Returns when there may be more.

        Raises:
            errors.NoLeader: Nobody leads, and nothing comes of it meanwhile.
            errors.ShuttingDown: This control plane goes down.
            errors.SllmError: Why the leader has ended it.
        """
        if self._ending:
            raise errors.ShuttingDown("the control plane is going down; read on elsewhere")
        if self._link is None:
            self._link = LeaderLink(self._reach, self._begin(), self._changed)
        elif self._link.refusal:
            raise self._link.refusal
        elif self._link.gone:
            await self._leader_gone(self._link, self._link.gone)
            return
        await self._changed.wait()
        self._changed.clear()

    async def _leader_gone(self, link: LeaderLink, why: Exception) -> None:
        """Waits a moment before another one is looked for; what the node gives goes on."""
        await link.close()
        now = self._clock.now()
        self._without_since = now if link.answered else self._without_since
        going = self._call and self._direct
        if not going and now >= self._without_since + self._patience:
            raise errors.NoLeader(
                f"no control plane has led for {self._patience:g} s ({why}); one has to run, and a "
                "majority of etcd's members: try again",
                retry_after=1.0,
            ) from why
        self._link, self._ordered = None, False
        await self._pause()

    async def _pause(self) -> None:
        """Returns after a moment, or when more comes of the node's call."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), _RETRY_SECONDS)

    def _begin(self) -> pb.CarryBegin:
        self._waits = self._waits or not self._direct
        return pb.CarryBegin(request=self._transcript.request(), instance_id=self._instance_id)

    # --- what the leader says -----------------------------------------------------------------

    def _said(self, response: pb.CarryResponse) -> inference_pb.GenerateResponse | None:
        """What of it is for the caller."""
        match response.WhichOneof("response"):
            case "open":
                self._open(response.open)
            case "give_up":
                self._give_up(response.give_up)
            case "event":
                if response.event.HasField("tokens"):
                    self._waits, self._direct = False, self._call is not None
                return self._transcript.news(response.event)
        return None

    def _open(self, order: pb.CarryOpen) -> None:
        """Calls a node; one that was called before has come to its end, or was another leader's."""
        number, request = order.call.number, order.call.request
        self._direct = self._waits = False
        self._ordered = True
        self._instance_id = request.instance_id
        behind = self._transcript.untold
        self._transcript.go_on(request)
        if self._kept is None:
            former, self._call = self._call, self._nodes.open(order)
            self._call.call.tell(self._changed)
            if former:
                former.close()
        if behind:
            self._tell_tokens(number)
            self._waits = True
        if self._kept:
            self._kept.number = number
            self._tell(self._kept)

    def _give_up(self, number: int) -> None:
        if self._call and self._call.number == number:
            self._end(number, errors.NodeLost("it was given up"))

    # --- what the node gives ------------------------------------------------------------------

    def _given(
        self, number: int, event: inference_pb.GenerateResponse
    ) -> inference_pb.GenerateResponse | None:
        """What of it is for the caller at once."""
        if not event.HasField("tokens"):
            self._tell_tokens(number)
            output = node_pb.CallOutput(number=number, event=event)
            self._tell(output)
            if event.HasField("moved"):
                self._instance_id = event.moved.instance_id
                self._hang_up()
            elif event.HasField("finished"):
                self._kept = output
                self._hang_up()
            return None
        if self._direct:
            self._transcript.carry(event.tokens)
            self._tell_soon()
            return event
        self._waits = True
        self._tell(node_pb.CallOutput(number=number, event=event))
        return None

    def _failed(self, error: errors.SllmError) -> None:
        """The call has ended without an end; the leader says where it goes on."""
        call = self._call
        assert call is not None
        if isinstance(error, (errors.WorkerDied, errors.InstanceNotFound)):
            self._instance_id = ""
        self._end(call.number, call.said(error))

    def _end(self, number: int, error: errors.SllmError) -> None:
        self._hang_up()
        self._tell_tokens(number)
        self._direct = False
        self._tell(node_pb.CallOutput(number=number, failure=statuses.to_failure(error)))

    # --- what the leader is told --------------------------------------------------------------

    @property
    def _led(self) -> bool:
        """Whether a leader hears what it is told."""
        return self._ordered and self._link is not None and not self._link.gone

    def _tell(self, output: node_pb.CallOutput) -> None:
        if self._link and self._led:
            self._link.tell(output)

    def _tell_soon(self) -> None:
        if self._telling is None:
            loop = asyncio.get_running_loop()
            self._telling = loop.call_later(_TELL_SECONDS, self._tell_now)

    def _tell_now(self) -> None:
        if self._call and self._direct:
            self._tell_tokens(self._call.number)

    def _tell_tokens(self, number: int) -> None:
        """Tells which tokens the caller has had, if the leader does not know."""
        if self._telling:
            self._telling.cancel()
            self._telling = None
        if self._led and (tokens := self._transcript.tell()):
            event = inference_pb.GenerateResponse(tokens=tokens)
            self._tell(node_pb.CallOutput(number=number, event=event))
