"""Steps of loads, as receipts call them."""

from sllm.node.instances.phases import PhaseKind, Timeline
from sllm.node.transfers.work import LoadPhase, Step

STEP_KINDS = {
    LoadPhase.IMPORT: PhaseKind.IMPORT,
    LoadPhase.FETCH: PhaseKind.FETCH_PEERS,
    LoadPhase.READ: PhaseKind.READ_SSD,
    LoadPhase.COPY: PhaseKind.DEVICE_COPY,
}


def record_step(timeline: Timeline, step: Step) -> None:
    """Adds a transfer that is done to a start's phases."""
    timeline.add(STEP_KINDS[step.phase], step.start, step.duration, step.size_bytes)
