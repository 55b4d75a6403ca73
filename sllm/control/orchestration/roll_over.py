"""Instances that run as their deployment was to before it changed: others replace them.

They are only found here. Where today's instances are lacking, the autoscaler asks for them; those
from before take requests meanwhile, and leave as today's get ready, each with what it has: between
engines no generation moves. If none gets ready, they go on.
"""

import structlog

from sllm.control.cluster.instances import Instance, InstanceState
from sllm.control.cluster.specs import Deployment
from sllm.control.orchestration.launcher import Launcher
from sllm.control.state.state import State

log = structlog.get_logger()


class RollOver:
    """Compares what instances were started with and what their deployment is now."""

    def __init__(self, state: State, launcher: Launcher) -> None:
        self._state = state
        self._launcher = launcher

    def deployment_changed(self, deployment: Deployment) -> None:
        """Looks at all instances of a deployment: it may be what it was before, too."""
        before = len(self._state.outdated)
        for instance in self._state.fleet.instances_of(deployment.name):
            self.replaces(deployment, instance)
        if len(self._state.outdated) > before:
            # What has failed so far was started otherwise, and tells nothing of what comes now.
            self._state.failed_starts.pop(deployment.name, None)

    def replaces(self, deployment: Deployment, instance: Instance) -> bool:
        """Whether others replace an instance; if it still starts, nobody waits for it any more."""
        if _runs_as_now(deployment, instance):
            self._state.outdated.discard(instance.instance_id)
            return False
        if instance.state is InstanceState.STARTING:
            self._launcher.end(instance)
        elif instance.state is InstanceState.READY:
            self._mark(instance)
        return True

    def _mark(self, instance: Instance) -> None:
        if instance.instance_id not in self._state.outdated:
            self._state.outdated.add(instance.instance_id)
            log.info("control.outdated", instance=instance.instance_id, node=instance.node_id)


def _runs_as_now(deployment: Deployment, instance: Instance) -> bool:
    """Nodes of earlier versions tell the engine alone, or nothing: that is taken for the same."""
    if instance.config:
        return deployment.runs_as(instance.config)
    return instance.engine in ("", deployment.spec.engine.engine)
