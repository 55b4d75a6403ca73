"""What starts come to: turns that begin, failures that count, and those who wait being told."""

import structlog

from sllm import errors
from sllm.clock import Clock
from sllm.control.orchestration.residency import Residency
from sllm.control.state import failed_starts
from sllm.control.state.starts import StartUnderWay
from sllm.control.state.state import State

log = structlog.get_logger()


class Outcomes:
    """Told of the end of every start."""

    def __init__(self, state: State, residency: Residency, clock: Clock) -> None:
        self._state = state
        self._residency = residency
        self._clock = clock

    def succeeded(self, start: StartUnderWay) -> None:
        """An instance is ready; if it comes back from making room, its turn begins."""
        now, name = self._clock.now(), start.deployment.name
        self._state.failed_starts.pop(name, None)
        self._residency.ready(start.instance.instance_id, name, now - start.decided_at, now)

    def failed(self, start: StartUnderWay, error: errors.SllmError) -> None:
        """A start that fails is tried once more, on another node; then those who wait are told."""
        name, node_id = start.deployment.name, start.instance.node_id
        if name not in self._state.deployments or start.withdrawn or start.for_move:
            return  # no request waited for it
        error = failed_starts.start_error(name, node_id, error)
        log.warning("control.start_failed", instance=start.instance.instance_id, error=str(error))
        before = self._state.failed_starts.get(name)
        failed = failed_starts.another(before, node_id, error, self._clock.now())
        self._state.failed_starts[name] = failed
        if failed.exhausted and not self._state.fleet.instances_of(name):
            self._state.fail_waiting(name, error)
