"""One generation's migration to another node, as its source sees it: rounds, and the cutover."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import migration_service_pb2 as pb
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import types_pb2 as types_pb

from sllm import errors
from sllm.clock import Clock
from sllm.durations import to_duration
from sllm.node.generations import wire
from sllm.node.generations.generation import Generation, until_grown
from sllm.node.generations.migration_stream import MigrationStream
from sllm.node.instances.page_keeping import WorkersPages
from sllm.node.peers.types import Peer

SMALL_GAP: Final = 4
"""Tokens that are not worth another round."""
LAST_ROUNDS: Final = 4
"""That one generation takes by itself before it is cut over, at most."""
BEGIN_SECONDS: Final = 60.0
"""Time that a request has to be taken by the engine."""
ROUND_SECONDS: Final = 120.0
"""Time that a destination has to compute a round."""
BOUNDARY_SECONDS: Final = 2.0
"""How long the next token is waited for, to stop right after it."""
CUTOVER_SECONDS: Final = 2.0
"""Time that a destination has to go on; after it the generation goes on here."""

Tell = Callable[[node_pb.StartMigrationResponse], None]


@dataclass(frozen=True, slots=True)
class Destination:
    """Where generations are to go on."""

    node_id: str
    address: str
    """host:port."""
    instance_id: str


@dataclass(frozen=True, slots=True)
class Terms:
    """What a generation moves under."""

    destination: Destination
    reason: inference_pb.MigrationReason.ValueType
    context_tokens: int
    """What one request may have at the source, which it keeps wherever it goes."""
    identity: str
    """Of what the source's instance serves."""
    pages: WorkersPages | None = None
    """Of its KV cache, which the destination may ask for. None: it has none to give."""
    way: types_pb.MoveWay.ValueType = types_pb.MOVE_WAY_UNSPECIFIED
    """How the KV cache is to come there. Unspecified: by what is sooner."""
    here: Peer | None = None
    """This node, as others have pages from it. None: they have none."""


class OutgoingGeneration:
    """One generation on its way. Each step of it ends with what the destination says."""

    def __init__(
        self, one: Generation, terms: Terms, stream: MigrationStream, clock: Clock, tell: Tell
    ) -> None:
        """`tell`: takes what has come of each step."""
        self._one = one
        self._terms = terms
        self._stream = stream
        self._clock = clock
        self._tell = tell
        self._began = clock.now()
        self._rounds = 0
        self._sent = 0
        """Tokens of the generation that the destination has computed."""
        self._cache = types_pb.CacheMove()
        """How the KV cache has come there, so far."""
        self._moved_there = False

    @property
    def gap(self) -> int:
        """Tokens that the destination lacks."""
        return len(self._one.outputs.token_ids) - self._sent

    @property
    def over(self) -> bool:
        """Whether nothing more happens to it here: it has moved, or ended before."""
        return self._one.over

    @property
    def moved(self) -> bool:
        """Whether it goes on at the destination."""
        return self._moved_there

    @property
    def moved_by_another(self) -> inference_pb.Moved | None:
        """Where another migration has taken it meanwhile. None: none has."""
        return None if self._moved_there else self._one.outputs.moved

    async def begin(self) -> None:
        """Returns once the prompt's tokens are known.

        Raises:
            errors.DeadlineExceeded: The engine has not taken it.
        """
        while not self._one.outputs.prompt and not self._one.over:
            if not await until_grown(self._one, BEGIN_SECONDS):
                raise errors.DeadlineExceeded("the engine has not taken the request in time")
        self._began = self._clock.now()

    async def round(self) -> None:
        """Has the destination compute what it lacks, while the engine here goes on.

        Raises:
            errors.SllmError: It cannot.
        """
        one, tokens = self._one, self._one.outputs.token_ids
        if self._rounds and not self.gap:
            return
        step = pb.MigrationRound(request_id=one.request_id, token_ids=tokens[self._sent :])
        if not self._rounds:
            step.request.CopyFrom(self._request())
        self._rounds, self._sent = self._rounds + 1, len(tokens)
        self._stream.send(round=step)
        answer = await self._stream.answer(one.request_id, "computed", ROUND_SECONDS)
        wire.add_cache(self._cache, answer.computed.cache, first=self._rounds == 1)
        progress = node_pb.MigrationProgress(
            round=self._rounds,
            computed_tokens=len(one.outputs.prompt) + self._sent,
            gap_tokens=self.gap,
        )
        self._tell(node_pb.StartMigrationResponse(request_id=one.request_id, progress=progress))

    async def catch_up(self) -> None:
        """Rounds, while the gap is worth one and shrinks: what it is now, the pause computes.

        Raises:
            errors.SllmError: As a round does.
        """
        for _ in range(LAST_ROUNDS):
            before = self.gap
            if before <= SMALL_GAP:
                break
            await self.round()
            if self.gap >= before:
                break

    async def cut_over(self) -> None:
        """Stops it here, right after a token; it goes on there, or, if that fails, here again.

        Raises:
            errors.SllmError: It goes on here.
        """
        # Two migrations of one generation would have it go on in two places.
        async with self._one.cutting_over:
            if self._one.outputs.token_ids:
                # Right after a token: the engine's step would otherwise be computed in vain.
                await until_grown(self._one, BOUNDARY_SECONDS)
            if not self._one.over:
                await self._hand_over()

    async def _hand_over(self) -> None:
        one, stopped = self._one, self._clock.now()
        one.halt()
        try:
            self._stream.send(cutover=self._cutover())
            await self._stream.answer(one.request_id, "taken", CUTOVER_SECONDS)
            if one.closed:
                raise errors.Cancelled(f"request {one.request_id} was cancelled")
        except BaseException:  # also a caller that leaves: the generation is not its own
            _resume(one)
            raise
        one.outputs.move(self._moved())
        self._moved_there = True
        done = self._done(stopped)
        self._tell(node_pb.StartMigrationResponse(request_id=one.request_id, done=done))

    def stay(self, error: errors.SllmError | None) -> None:
        """Tells that it does not move: for this reason, or because it has ended."""
        request_id = self._one.request_id
        self._stream.send(drop=pb.MigrationDrop(request_id=request_id))
        failure = wire.migration_failure(error) if error else None
        ended = None if error else node_pb.MigrationEnded()
        self._tell(
            node_pb.StartMigrationResponse(request_id=request_id, failure=failure, ended=ended)
        )

    def _request(self) -> inference_pb.GenerateRequest:
        """The request for the destination, with the limit that it had when it began."""
        request = self._one.portable()
        request.instance_id = self._terms.destination.instance_id
        if not request.HasField("max_tokens"):
            request.max_tokens = self._terms.context_tokens - len(self._one.outputs.prompt)
        return request

    def _cutover(self) -> pb.MigrationCutover:
        outputs = self._one.outputs
        return pb.MigrationCutover(
            request_id=self._one.request_id,
            token_ids=outputs.token_ids[self._sent :],
            total_tokens=len(outputs.token_ids),
            digest=wire.token_digest(outputs.prompt, outputs.token_ids),
        )

    def _moved(self) -> inference_pb.Moved:
        destination = self._terms.destination
        return inference_pb.Moved(
            node_id=destination.node_id,
            instance_id=destination.instance_id,
            reason=self._terms.reason,
            tokens=len(self._one.outputs.token_ids),
            cache=self._cache,
        )

    def _done(self, stopped: float) -> node_pb.MigrationDone:
        outputs, now = self._one.outputs, self._clock.now()
        return node_pb.MigrationDone(
            rounds=self._rounds,
            tokens=len(outputs.prompt) + len(outputs.token_ids),
            duration=to_duration(now - self._began),
            cutover=to_duration(now - stopped),
            gap_tokens=self.gap,
            cache=self._cache,
        )


def _resume(one: Generation) -> None:
    try:
        one.resume()
    except errors.SllmError as error:
        one.outputs.fail(error)
