"""How deployments are doing, as callers are told."""

from sllm.control.cluster.specs import Deployment, DeploymentState
from sllm.control.state.state import State
from sllm.control.types.status import DeploymentStatus, Tuned


def status_of(state: State, name: str) -> DeploymentStatus:
    """How a deployment is doing.

    Raises:
        errors.DeploymentNotFound: There is none of this name.
    """
    deployment = state.deployment(name)
    found = state.prepared(deployment)
    ready, queued = _served(state, deployment)
    return DeploymentStatus(
        deployment=state.shown(deployment),
        state=found,
        message=state.unprepared[name]
        if found is DeploymentState.FAILED
        else kept_because(state, name) or _lacks(state, name),
        ready_instances=ready,
        queued_requests=queued,
        loading=state.preparing.get(name) if found is DeploymentState.PREPARING else None,
        learned=state.learned.get(name),
        tuned=tuned_of(state, name),
    )


def _served(state: State, deployment: Deployment) -> tuple[int, int]:
    """Ready instances, and requests that wait; of an adapter those with it, and for it."""
    name, base = deployment.name, deployment.spec.base
    if not base:
        return len(state.ready_replicas(name)), state.queue.count(name)
    identity = deployment.model.identity
    ready = sum(one.has_adapter(identity) for one in state.ready_replicas(base))
    return ready, sum(one.adapter == name for one in state.queue.of(base))


def kept_because(state: State, name: str) -> str:
    """Why instances from before a change are still there. Empty: nothing is wrong."""
    if not state.outdated_replicas(name):
        return ""
    if failed := state.failed_starts.get(name):
        return f"instances from before it was changed go on: {failed.error.message}"
    if name in state.unmet:
        return "instances from before it was changed go on until there is room for others"
    return ""


def _lacks(state: State, name: str) -> str:
    """What it lacks of the instances that min_replicas asks for. Empty: nothing."""
    least, there = state.kept_replicas.get(name, 0), len(state.fleet.instances_of(name))
    if there >= least:
        return ""
    if name not in state.unmet:  # they may be about to start, unless there were never room
        return state.beyond_nodes.get(name, "")
    failed = state.failed_starts.get(name)
    why = failed.error.message if failed else "there is no room for more; add nodes, or lower it"
    return f"min_replicas is {least}, and instances are {there}: {why}"


def tuned_of(state: State, name: str) -> Tuned | None:
    """What the deployment's instances have been tuned to, on average. None: none has been."""
    uses = map(state.slots.uses.get, (one.instance_id for one in state.ready_replicas(name)))
    limits = [use.limit for use in uses if use and use.limit]
    if not limits:
        return None
    return Tuned(
        requests=sum(one.requests for one in limits) // len(limits),
        time_per_token=sum(one.time_per_token for one in limits) / len(limits),
    )
