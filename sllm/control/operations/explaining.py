"""What placement would decide for one more request of a deployment, and why."""

from dataclasses import replace

from sllm.clock import Clock
from sllm.control.deployments.scaler import Scaler
from sllm.control.orchestration.placer import Placer
from sllm.control.placement.explain import Coming, explain
from sllm.control.state.state import StartUnderWay, State
from sllm.control.types.operations import Explanation


class Explaining:
    """Asks the very questions that one more request would raise, and changes nothing."""

    def __init__(self, state: State, placer: Placer, scaler: Scaler, clock: Clock) -> None:
        self._state = state
        self._placer = placer
        self._scaler = scaler
        self._clock = clock

    def explain(self, name: str) -> Explanation:
        """Says what would be decided now.

        Raises:
            errors.DeploymentNotFound: There is no such deployment.
        """
        deployment = self._state.serving(name)
        name = deployment.name
        demand = self._placer.demand(name)
        decision = self._placer.decide(replace(demand, waiting=demand.waiting + 1))
        if self._scaler.would_add(name):
            return explain(decision)
        start, most = self._state.first_start(name), deployment.spec.scaling.max_replicas
        full = (
            f"no instance has a free slot, and there may be no more of them (max_replicas {most})"
        )
        return explain(decision, self._coming(start) if start else None, full)

    def _coming(self, start: StartUnderWay) -> Coming:
        if start.estimate is None:
            return Coming(start.instance, None)
        remaining = start.decided_at + start.estimate - self._clock.now()
        return Coming(start.instance, max(0.0, remaining))
