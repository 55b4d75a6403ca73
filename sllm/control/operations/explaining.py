"""What placement would decide for one more request of a deployment, and why."""

from dataclasses import replace
from typing import Any

from sllm.clock import Clock
from sllm.control.cluster.zones import Origins
from sllm.control.deployments.scaler import Scaler
from sllm.control.orchestration.placer import Placer
from sllm.control.placement.explain import Coming, explain
from sllm.control.state.starts import StartUnderWay
from sllm.control.state.state import State
from sllm.control.state.statuses import tuned_of
from sllm.control.types.operations import Explanation


class Explaining:
    """Asks the very questions that one more request would raise, and changes nothing."""

    def __init__(
        self, state: State, placer: Placer, scaler: Scaler, clock: Clock, *, lends: bool = False
    ) -> None:
        """`lends`: whether idle nodes compute layers for one that starts."""
        self._lends = lends
        self._state = state
        self._placer = placer
        self._scaler = scaler
        self._clock = clock

    def explain(self, name: str, zone: str = "") -> Explanation:
        """Says what would be decided now.

        Args:
            name: The deployment.
            zone: Where the request would come from. Empty: it does not say.

        Raises:
            errors.DeploymentNotFound: There is no such deployment.
        """
        deployment = self._state.serving(name)
        name = deployment.name
        demand = self._placer.demand(name)
        origins = Origins.of(self._state.zones, [zone])
        demand = replace(demand, waiting=demand.waiting + 1, origins=origins)
        decision = self._placer.decide(demand)
        known: dict[str, Any] = {
            "learned": self._state.learned.get(name),
            "tuned": tuned_of(self._state, name),
        }
        if self._scaler.would_add(name):
            return replace(explain(decision, lends=self._lends), **known)
        start, most = self._state.first_start(name), deployment.spec.scaling.max_replicas
        full = (
            f"no instance has a free slot, and there may be no more of them (max_replicas {most})"
        )
        coming = self._coming(start) if start else None
        return replace(explain(decision, coming, full), **known)

    def _coming(self, start: StartUnderWay) -> Coming:
        if start.estimate is None:
            return Coming(start.instance, None)
        remaining = start.decided_at + start.estimate - self._clock.now()
        return Coming(start.instance, max(0.0, remaining))
