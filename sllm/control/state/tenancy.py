"""What tenants have at this moment, read from what the control plane knows."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Final

from sllm import errors
from sllm.control.cluster.tiers import Copy, Tier
from sllm.control.state.accounts import in_instances, owners
from sllm.control.state.state import State
from sllm.control.tenants.names import tenant_of, whole
from sllm.control.tenants.portions import fits
from sllm.control.tenants.shares import Shares
from sllm.control.tenants.usage import Held

_ANY: Final = "any"
"""Stands for any deployment of a tenant."""


def check_requests(
    state: State, deployment: str, now: float, *, more: int = 1, to_wait: int = 0
) -> None:
    """Refuses requests for a deployment that its tenant may not make now.

    Args:
        state: What is known.
        deployment: Its whole name.
        now: Clock's seconds.
        more: How many they are.
        to_wait: How many of them would wait.

    Raises:
        errors.TenantLimit: Names the bound.
    """
    tenant = tenant_of(deployment)
    if tenant in state.tenants.limits:
        queued = _queued(state, tenant) if to_wait else 0
        state.tenants.check(deployment, more=more, to_wait=to_wait, queued=queued, now=now)


def check_share(state: State, deployment: str, to_wait: int, room: int) -> None:
    """Refuses requests that would wait where others' part of the queue is.

    Args:
        state: What is known.
        deployment: Its whole name.
        to_wait: How many they are.
        room: How many may wait altogether.

    Raises:
        errors.TenantLimit: With the numbers.
    """
    if not to_wait or len(state.queue) + to_wait <= room / 2:
        return  # as usual: what is kept for others is empty still
    used = Counter[str]()
    for one in state.queue.deployments():
        used[tenant_of(one)] += state.queue.count(one)
    _check_share(state, deployment, "requests wait", to_wait, room, used)


def check_image_share(
    state: State, deployment: str, more: int, room: int, held: Mapping[str, int]
) -> None:
    """The same of bytes of images, of which `held` tells what each tenant has under way."""
    _check_share(state, deployment, "bytes of images are held", more, room, held)


def check_looking_share(state: State, room: int, deployment: str, held: Mapping[str, int]) -> None:
    """The same of one request more whose images are looked at."""
    _check_share(state, deployment, "requests have their images looked at", 1, room, held)


def _check_share(
    state: State, deployment: str, what: str, more: int, room: int, used: Mapping[str, int]
) -> None:
    tenant, weights = tenant_of(deployment), _weights(state)
    if weights.keys() <= {tenant} or fits(tenant, more, room, used, weights):
        return
    raise errors.TenantLimit(
        f"{used.get(tenant, 0)} {what} for tenant {tenant}, and with {more} more it would have "
        "what is kept for others; try again when some are done",
        metadata={"tenant": tenant, "limit": "share"},
        retry_after=1.0,
    )


def _weights(state: State) -> Mapping[str, float]:
    """Of all tenants that have deployments."""
    tenants = set(map(tenant_of, state.deployments))
    return {one: state.tenants.limits_of(one).weight for one in tenants}


def has_all(state: State, tenant: str, now: float, room: int) -> errors.TenantLimit | None:
    """Why a tenant may make no request more. None: it may make one, for all that is known.

    Of whom nothing waits a further request need not wait either, whatever may wait of it.
    `room`: how many may wait altogether.
    """
    to_wait = 1 if _queued(state, tenant) else 0
    try:
        check_requests(state, whole(tenant, _ANY), now, to_wait=to_wait)
        check_share(state, whole(tenant, _ANY), to_wait, room)
    except errors.TenantLimit as error:
        return error
    return None


def _queued(state: State, tenant: str) -> int:
    queue = state.queue
    return sum(queue.count(one) for one in queue.deployments() if tenant_of(one) == tenant)


def shares(state: State) -> Shares:
    """What tenants have of their shares; instances that are on their way, or leave, count."""
    return state.tenants.shares(one.deployment for one in state.fleet.known_instances())


def held(state: State) -> Mapping[str, Held]:
    """What each tenant holds: devices of its instances, and bytes of its checkpoints."""
    devices: dict[str, int] = defaultdict(int)
    for instance in state.fleet.known_instances():
        together = instance.config.tensor_parallel if instance.config else 1
        devices[tenant_of(instance.deployment)] += together
    sizes = _sizes(state)
    return {one: Held(devices[one], sizes.get(one, {})) for one in devices.keys() | sizes}


def _sizes(state: State) -> Mapping[str, Mapping[str, float]]:
    """Bytes of each tenant's checkpoints by the name of the tier, over all nodes.

    What instances have in memory of their own, and in no pool, is among them.
    """
    having = owners(state)
    sizes: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for copy in _copies(state):
        its = having.get(copy.serves, ())
        for tenant in its:
            sizes[tenant][copy.tier.name] += copy.resident_bytes / len(its)
    for tenant, size in in_instances(state).items():
        sizes[tenant][Tier.DRAM.name] += size
    return sizes


def _copies(state: State) -> Iterator[Copy]:
    for view in state.fleet.nodes.values():
        yield from view.copies.values()
