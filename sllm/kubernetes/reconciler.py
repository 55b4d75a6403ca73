"""Brings the cluster's deployments into line with resources, and tells these how it goes."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from sllm import AsyncClient, errors
from sllm.client.types.deployments import Deployment
from sllm.clock import Clock
from sllm.kubernetes import resources
from sllm.kubernetes.resources import Resource

log = structlog.get_logger()

_RETRY_SECONDS: Final = 5.0
"""Until what the control plane did not take is tried again, if waiting may help."""
_REFUSED_SECONDS: Final = 60.0
"""The same if the spec, or something in the cluster, has to change first."""
_MAY_PASS: Final = (
    errors.Unavailable,
    errors.NotFound,
    errors.DeadlineExceeded,
    errors.Internal,
    errors.AdaptersLeft,
)
Key = tuple[str, str]
"""Namespace and name."""


@dataclass(slots=True)
class _Entry:
    """What is known of one resource's deployment."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    generation: int | None = None
    """Of the spec that the control plane has taken. None: none yet, or it is gone again."""
    refused: errors.SllmError | None = None
    """Why the latest spec was not taken."""
    refused_generation: int = 0
    retry_at: float = 0.0
    seen: Deployment | None = None
    following: asyncio.Task[None] | None = None


class Reconciler:
    """A client of the control plane. `bring` may be called at any time, and any number of times."""

    def __init__(self, client: AsyncClient, clock: Clock, wall: Callable[[], datetime]) -> None:
        """Calls nobody yet.

        Args:
            client: of the control plane; stays the caller's.
            clock: tells when something is to be tried again.
            wall: the time of day, for people.
        """
        self._client = client
        self._clock = clock
        self._wall = wall
        self._entries: dict[Key, _Entry] = {}

    async def bring(self, resource: Resource) -> dict[str, Any]:
        """Has a resource's deployment be what it says, if it is not; gives its status."""
        entry = self._entries.setdefault((resource.namespace, resource.name), _Entry())
        async with entry.turn:
            if self._is_due(resource, entry):
                await self._deploy(resource, entry)
            if entry.refused:
                return resources.refused(resource, entry.refused, self._now())
            assert entry.seen is not None
            return resources.told(resource, entry.seen, self._now())

    async def remove(self, resource: Resource) -> None:
        """Ends a resource's deployment, if it has one.

        Raises:
            errors.SllmError: It cannot be ended now, such as while adapters are left over it.
        """
        entry = self._entries.setdefault((resource.namespace, resource.name), _Entry())
        async with entry.turn:
            await self._stop_following(entry)
            if await self._is_ours(resource, entry):
                try:
                    await self._client.delete(resource.name)
                except errors.DeploymentNotFound:
                    log.info("operator.already_gone", deployment=resource.name)
            self._entries.pop((resource.namespace, resource.name), None)

    async def close(self) -> None:
        """Ends what goes on in the background. Deployments stay."""
        for entry in self._entries.values():
            await self._stop_following(entry)

    async def _is_ours(self, resource: Resource, entry: _Entry) -> bool:
        """Whether the deployment of a resource's name is there because of it.

        An operator that ended between the control plane's word and the resource's status has told
        nobody. Then the deployment is looked at, and left as it is: it is of the resource if it is
        of what that names.

        Raises:
            errors.SllmError: The control plane cannot be asked.
        """
        if resource.is_deployed or entry.generation is not None:
            return True
        if resource.status or entry.refused:
            return False
        try:
            there = await self._client.deployment(resource.name)
        except errors.DeploymentNotFound:
            return False
        if not (ours := resources.is_of(resource, there)):
            log.info("operator.not_ours", deployment=resource.name, source=there.source)
        return ours

    def _is_due(self, resource: Resource, entry: _Entry) -> bool:
        if entry.refused and entry.refused_generation == resource.generation:
            return self._clock.now() >= entry.retry_at
        return entry.generation != resource.generation

    async def _deploy(self, resource: Resource, entry: _Entry) -> None:
        try:
            entry.seen = await self._client.deploy(
                resource.name, **resource.arguments(), wait=False
            )
        except (errors.SllmError, TypeError) as error:
            refused = error if isinstance(error, errors.SllmError) else _wrong_type(error)
            entry.refused, entry.refused_generation = refused, resource.generation
            waits = _RETRY_SECONDS if isinstance(refused, _MAY_PASS) else _REFUSED_SECONDS
            entry.retry_at = self._clock.now() + waits
            log.warning("operator.refused", deployment=resource.name, problem=refused.message)
            return
        entry.refused, entry.generation = None, resource.generation
        log.info("operator.deployed", deployment=resource.name, generation=resource.generation)
        if entry.following is None or entry.following.done():
            work = self._follow(resource.name, entry)
            entry.following = asyncio.create_task(work, name=f"following {resource.name}")

    async def _follow(self, name: str, entry: _Entry) -> None:
        """Keeps what is seen of a deployment up to date, until it is gone."""
        while True:
            try:
                async with aclosing(self._client.watch_deployment(name)) as watched:
                    async for entry.seen in watched:
                        pass
                break  # it was deleted, by somebody else than us
            except errors.DeploymentNotFound:
                break
            except errors.SllmError as error:
                log.warning("operator.watch_broken", deployment=name, problem=error.message)
            await self._clock.sleep(_RETRY_SECONDS)
        entry.generation = None  # the next look deploys it again

    async def _stop_following(self, entry: _Entry) -> None:
        if entry.following:
            entry.following.cancel()
            await asyncio.gather(entry.following, return_exceptions=True)
            entry.following = None

    def _now(self) -> str:
        return self._wall().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _wrong_type(error: TypeError) -> errors.SllmError:
    """What the resource's schema would have refused, had the API server known it."""
    return errors.InvalidArgument(f"the spec cannot be read: {error}")
