"""Has instances work on as many requests at once as their deployment's target leaves time for."""

import structlog

from sllm.clock import Clock
from sllm.control import metrics
from sllm.control.cluster.instances import Instance
from sllm.control.cluster.specs import Deployment
from sllm.control.cluster.usage import Limit, Use
from sllm.control.orchestration.agenda import Agenda
from sllm.control.requests.concurrency import tuned
from sllm.control.state.state import State

log = structlog.get_logger()


class Tuning:
    """Told of the tokens of all instances. Belongs to the event loop."""

    def __init__(self, state: State, agenda: Agenda, clock: Clock) -> None:
        self._state = state
        self._agenda = agenda
        self._clock = clock

    def token(self, instance: Instance, seconds: float) -> None:
        """A token has come from an instance so long after the one before it of its request."""
        deployment = self._state.deployments.get(instance.deployment)
        use = self._state.slots.uses.get(instance.instance_id)
        if deployment is None or use is None:
            return
        scaling, most = deployment.spec.scaling, deployment.spec.engine.max_concurrency
        if scaling.target_time_per_token is not None:
            self._look(instance, use, seconds, scaling.target_time_per_token, most)

    def deployment_changed(self, deployment: Deployment) -> None:
        """Without a target, instances have as many requests at once as their deployment says.

        Also those of which no token will come: they may have none, or each of their requests one.
        """
        if deployment.spec.scaling.target_time_per_token is None:
            for instance in self._state.fleet.instances_of(deployment.name):
                self._state.slots.limit(instance.instance_id, None)

    def _look(self, instance: Instance, use: Use, seconds: float, target: float, most: int) -> None:
        now, slots = self._clock.now(), self._state.slots
        window = slots.window(instance.instance_id, now)
        window.add(seconds, use.taken(most))
        if window.suffices(now):
            slots.close_window(instance.instance_id)
            known = use.limit if use.limit and use.limit.target == target else None
            found = tuned(known or Limit(most, target=target), window, target, most, now)
            self._set(instance, use, found)

    def _set(self, instance: Instance, use: Use, limit: Limit) -> None:
        self._state.slots.limit(instance.instance_id, limit)
        if use.limit and limit.requests == use.limit.requests:
            return
        log.info(
            "control.tuned",
            instance=instance.instance_id,
            requests=limit.requests,
            time_per_token=limit.time_per_token,
        )
        metrics.concurrency.set(limit.requests, {"deployment": instance.deployment})
        self._agenda.wake(instance.deployment)
