"""Carries the autoscaler's plans out: ends what has idled too long, and tells what is lacking."""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from sllm.clock import Clock
from sllm.control.cluster.instances import InstanceState
from sllm.control.cluster.specs import Deployment
from sllm.control.deployments import autoscaler
from sllm.control.deployments.keeping import Keeping
from sllm.control.placement.placement import slots_each
from sllm.control.state.state import State


class Scaler:
    """Looks at deployments one by one. Belongs to the event loop."""

    def __init__(
        self,
        state: State,
        keeping: Keeping,
        clock: Clock,
        end: Callable[[str, float | None], None],
        retire: Callable[[str], None],
        later: Callable[[str, float], None],
        settle_seconds: float,
    ) -> None:
        """`end` ends an instance at once, and `retire` one when its requests have ended.

        The former is told for how many seconds its weights are worth their room in DRAM, if known.

        `later` is told when time alone makes a deployment due, in the clock's seconds. Within
        `settle_seconds` from now on nodes join that run instances already.
        """
        self._state = state
        self._keeping = keeping
        self._clock = clock
        self._end = end
        self._retire = retire
        self._later = later
        self._began = time.time()
        self._settled_at = clock.now() + settle_seconds

    def wanted(self, names: Iterable[str], now: float) -> dict[str, int]:
        """How many instances to add, for each deployment that lacks any."""
        return {name: count for name in names if (count := self._scale(name, now))}

    def would_add(self, name: str) -> int:
        """How many instances would be added if one more request came now."""
        deployment = self._state.deployment(name)
        load = self._load(deployment)
        load = replace(load, waiting=load.waiting + 1)
        return autoscaler.plan(load, deployment.spec.scaling, self._clock.now()).start

    def _scale(self, name: str, now: float) -> int:
        """Stops what has been idle for too long; returns how many instances to add."""
        deployment = self._state.deployments[name]
        load = self._load(deployment)
        plan = autoscaler.plan(load, self._keeping.policy(deployment), now)
        for instance_id in plan.stop:
            self._end(instance_id, self._keeping.keep_weights(name))
        for instance_id in plan.retire:
            self._retire(instance_id)
        if plan.next_expiry is not None:
            self._later(name, plan.next_expiry)
        return plan.start if load.waiting else self._unasked(name, plan.start, now)

    def _load(self, deployment: Deployment) -> autoscaler.Load:
        instances = self._state.fleet.instances_of(deployment.name)
        replicas, outdated = self._replicas(deployment.name), self._state.outdated
        uses, most = self._state.slots.uses, deployment.spec.engine.max_concurrency
        return autoscaler.Load(
            waiting=self._state.queue.count(deployment.name),
            ready=[one for one in replicas if one.instance_id not in outdated],
            starting=sum(one.state is InstanceState.STARTING for one in instances),
            max_concurrency=slots_each(instances, uses, most),
            outdated=[one for one in replicas if one.instance_id in outdated],
            background=self._state.background.count(deployment.name),
        )

    def _replicas(self, name: str) -> list[autoscaler.Replica]:
        uses = self._state.slots.uses
        return [
            autoscaler.Replica(
                one.instance_id, use.in_flight, use.last_used, use.kept_until, use.background
            )
            for one in self._state.ready_replicas(name)
            if (use := uses.get(one.instance_id))
        ]

    def _unasked(self, name: str, count: int, now: float) -> int:
        """How many starts that no request waits for to make now; after a failure they pause."""
        if count and self._may_be_there(name, now):
            self._later(name, self._settled_at)
            return 0
        failed = self._state.failed_starts.get(name)
        if not count or failed is None:
            return count
        if failed.retry_at > now:
            self._later(name, failed.retry_at)
            return 0
        self._state.failed_starts[name] = failed.forgiven()
        return count

    def _may_be_there(self, name: str, now: float) -> bool:
        """Whether what is lacking may run on a node that has not joined since a restart."""
        is_older = self._state.deployments[name].created_at < self._began
        return is_older and now < self._settled_at
