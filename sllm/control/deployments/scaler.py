"""Carries the autoscaler's plans out: ends what has idled too long, and tells what is lacking."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from sllm.clock import Clock
from sllm.control.cluster.instances import InstanceState
from sllm.control.cluster.specs import Deployment
from sllm.control.deployments import autoscaler
from sllm.control.state.state import State


class Scaler:
    """Looks at deployments one by one. Belongs to the event loop."""

    def __init__(
        self,
        state: State,
        clock: Clock,
        end: Callable[[str], None],
        later: Callable[[str, float], None],
    ) -> None:
        """`end` ends an instance.

        `later` is told when time alone makes a deployment due, in the clock's seconds.
        """
        self._state = state
        self._clock = clock
        self._end = end
        self._later = later

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
        plan = autoscaler.plan(load, deployment.spec.scaling, now)
        for instance_id in plan.stop:
            self._end(instance_id)
        if plan.next_expiry is not None:
            self._later(name, plan.next_expiry)
        return plan.start if load.waiting else self._unasked(name, plan.start, now)

    def _load(self, deployment: Deployment) -> autoscaler.Load:
        instances = self._state.fleet.instances_of(deployment.name)
        uses = self._state.slots.uses
        return autoscaler.Load(
            waiting=self._state.queue.count(deployment.name),
            ready=[
                autoscaler.Replica(one.instance_id, use.in_flight, use.last_used, use.kept_until)
                for one in self._state.ready_replicas(deployment.name)
                if (use := uses.get(one.instance_id))
            ],
            starting=sum(one.state is InstanceState.STARTING for one in instances),
            max_concurrency=deployment.spec.engine.max_concurrency,
        )

    def _unasked(self, name: str, count: int, now: float) -> int:
        """How many starts that no request waits for to make now; after a failure they pause."""
        failed = self._state.failed_starts.get(name)
        if not count or failed is None:
            return count
        if failed.retry_at > now:
            self._later(name, failed.retry_at)
            return 0
        self._state.failed_starts[name] = failed.forgiven()
        return count
