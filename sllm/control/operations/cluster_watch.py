"""The cluster as those who watch it see it: all of it first, then what changes."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from itertools import takewhile
from typing import Final

from sllm import errors
from sllm.clock import Clock
from sllm.control.cluster.instances import InstanceState
from sllm.control.state.state import State
from sllm.control.state.statuses import status_of
from sllm.control.tasks import Tasks
from sllm.control.types.views import (
    ClusterDelta,
    ClusterState,
    DeploymentLoad,
    EndedRequest,
    Entry,
    InstanceLoad,
    NodeEntry,
    Part,
    Revision,
)

_LOOK_SECONDS: Final = 0.2
"""Between two looks at the state, of which each makes at most one revision."""
_LOOK_SHARE: Final = 0.05
"""Of the event loop's time that looking may take: in a very large cluster it looks less often."""
_KEPT: Final = 32
"""Changes that are kept for slow readers; one that is further behind starts anew."""


def look(state: State) -> ClusterState:
    """The state as it is now."""
    fleet, uses = state.fleet, state.slots.uses
    return ClusterState(
        nodes={
            node_id: NodeEntry(view, node_id in state.draining)
            for node_id, view in fleet.nodes.items()
        },
        instances={
            one.instance_id: InstanceLoad(
                instance=one,
                in_flight=uses[one.instance_id].in_flight if one.instance_id in uses else 0,
                tokens=state.slots.tokens(one.instance_id),
                loading=start.loading if (start := state.starts.get(one.instance_id)) else None,
                moving_to=tuple(state.moves.get(one.instance_id, ())),
            )
            for one in fleet.known_instances()
        },
        deployments={name: _load(state, name) for name in state.deployments},
        ended=tuple(state.ended),
    )


def _load(state: State, name: str) -> DeploymentLoad:
    states = [one.state for one in state.fleet.instances_of(name)]
    status = status_of(state, name)
    return DeploymentLoad(
        queued=status.queued_requests,
        ready=status.ready_instances,
        starting=states.count(InstanceState.STARTING),
    )


def difference(before: ClusterState, after: ClusterState) -> ClusterDelta:
    """What has changed."""
    return ClusterDelta(
        nodes=_part(before.nodes, after.nodes),
        instances=_part(before.instances, after.instances),
        deployments=_part(before.deployments, after.deployments),
        ended=_ended_since(before.ended, after.ended),
    )


def _part(before: Mapping[str, Entry], after: Mapping[str, Entry]) -> Part[Entry]:
    return Part(
        changed={key: entry for key, entry in after.items() if before.get(key) != entry},
        gone=frozenset(before.keys() - after.keys()),
    )


def _ended_since(
    before: tuple[EndedRequest, ...], after: tuple[EndedRequest, ...]
) -> tuple[EndedRequest, ...]:
    if not before:
        return after
    seen = before[-1]
    newest = takewhile(lambda one: one is not seen, reversed(after))
    return tuple(newest)[::-1]


class ClusterWatch:
    """Follows the state while anybody watches it. What is kept for readers is bounded.

    It looks every so often rather than being told: a change is made of many events in many
    places, and a look at entries that have not changed costs next to nothing.
    """

    def __init__(self, state: State, clock: Clock) -> None:
        self._state = state
        self._clock = clock
        self._view = ClusterState()
        self._number = 0
        self._deltas: deque[Revision] = deque(maxlen=_KEPT)
        self._readers = 0
        self._changed = asyncio.Event()
        self._tasks = Tasks()
        self._looking: asyncio.Task[None] | None = None
        self._closing = False

    async def follow(self) -> AsyncGenerator[Revision]:
        """The whole state, then what changes; the whole state again if the reader is too slow.

        Raises:
            errors.ShuttingDown: The control plane is going down.
        """
        self._readers += 1
        try:
            yield (last := self._begin())
            while True:
                changed = self._changed
                for revision in self._since(last.number):
                    yield (last := revision)
                if last.number == self._number:
                    await changed.wait()
                if self._closing:
                    raise errors.ShuttingDown("the control plane is going down; watch again")
        finally:
            self._readers -= 1

    def end_streams(self) -> None:
        """Ends the streams of readers with ShuttingDown."""
        self._closing = True
        self._wake()

    async def close(self) -> None:
        """Looks no more."""
        await self._tasks.close()

    def _begin(self) -> Revision:
        """Begins to look, if nobody does yet; returns the state as it is now."""
        if self._looking is None or self._looking.done():
            self._looking = self._tasks.spawn(self._keep_looking(), name="watch the cluster")
        self._look()
        return Revision(self._number, self._view)

    def _since(self, number: int) -> list[Revision]:
        """What a reader that has seen revision `number` has to be told."""
        missing = [revision for revision in self._deltas if revision.number > number]
        if missing and missing[0].number > number + 1:
            return [Revision(self._number, self._view)]
        return missing

    async def _keep_looking(self) -> None:
        pause = _LOOK_SECONDS
        while self._readers:
            await self._clock.sleep(pause)
            began = self._clock.now()
            self._look()
            pause = max(_LOOK_SECONDS, (self._clock.now() - began) / _LOOK_SHARE)

    def _look(self) -> None:
        view = look(self._state)
        if delta := difference(self._view, view):
            self._view = view
            self._number += 1
            self._deltas.append(Revision(self._number, delta))
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
