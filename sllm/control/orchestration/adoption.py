"""What becomes of instances that this control plane has not started itself."""

import time
from typing import Final

import structlog

from sllm.clock import Clock
from sllm.control.cluster.instances import Instance
from sllm.control.cluster.specs import Deployment
from sllm.control.config import ControlConfig
from sllm.control.orchestration.agenda import Agenda
from sllm.control.orchestration.launcher import Launcher
from sllm.control.state.orphans import Orphan
from sllm.control.state.state import State

_NO_DEPLOYMENT: Final = ""
"""What the agenda knows them by: no deployment is named so."""

log = structlog.get_logger()


class Adoption:
    """Keeps instances that no deployment explains, until one does or their time is up."""

    def __init__(
        self, state: State, launcher: Launcher, agenda: Agenda, clock: Clock, config: ControlConfig
    ) -> None:
        self._state = state
        self._launcher = launcher
        self._agenda = agenda
        self._clock = clock
        self._grace = config.orphan_grace_seconds

    def keeps(self, instance: Instance) -> bool:
        """Whether an instance without a deployment stays for now."""
        orphans, now = self._state.orphans, self._clock.now()
        known = orphans.ends_at(instance.instance_id) is not None
        kept = orphans.keeps(instance, Orphan(now + self._grace, time.time() + self._grace))
        if kept and not known:
            log.warning(
                "control.orphan_kept",
                instance=instance.instance_id,
                deployment=instance.deployment,
                node=instance.node_id,
                seconds=self._grace,
            )
        return kept

    def adopt(self, deployment: Deployment) -> None:
        """Has a deployment that was made take over what is found of it; ends what it may not."""
        orphans = self._state.orphans
        orphans.deployment_made(deployment.name)
        for instance in self._state.fleet.instances_of(deployment.name):
            was_kept = orphans.forget([instance.instance_id])
            if was_kept and not _may_adopt(deployment, instance):
                self._launcher.end(instance)

    def end_due(self, now: float) -> None:
        """Ends those whose time is up, and has the next be looked at when it is."""
        for instance_id in self._state.orphans.take_due(now):
            self._launcher.dismiss(instance_id)
        if (deadline := self._state.orphans.next_deadline) is not None:
            self._agenda.later(_NO_DEPLOYMENT, deadline)


def _may_adopt(deployment: Deployment, instance: Instance) -> bool:
    """Whether an instance serves what a deployment is to serve, as far as both are known."""
    return len({deployment.model.digest, instance.digest} - {""}) <= 1
