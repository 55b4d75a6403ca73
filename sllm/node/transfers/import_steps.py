"""What an import has moved, from the source and from other nodes: told, and learned from."""

import structlog

from sllm.checkpoint.format.manifest import Manifest
from sllm.node.tiers import metrics
from sllm.node.transfers.speeds import Speeds
from sllm.node.transfers.work import LoadPhase, Step

_log = structlog.get_logger()


def steps_of(
    manifest: Manifest, fetched: int, began: float, ended: float, speeds: Speeds
) -> tuple[Step, ...]:
    """The steps of an import that has ended; its speeds are observed.

    Args:
        manifest: of what has come.
        fetched: bytes that other nodes have given.
        began: the clock's seconds.
        ended: the same.
        speeds: the node's.
    """
    size, seconds = manifest.size_bytes, ended - began
    fetched = min(fetched, size)
    for phase, speed, brought in (
        (LoadPhase.IMPORT, speeds.remote_to_ssd, size - fetched),
        (LoadPhase.FETCH, speeds.peer_to_ssd, fetched),
    ):
        if 2 * brought >= size:  # a link that brought little was not what took the time
            speed.observe(brought, began, ended)
        if brought:
            metrics.record_load(phase.name.lower(), brought, seconds)
    if fetched:
        # Otherwise a source that was never read looks as fast as the disk, and other nodes slow.
        speeds.remote_to_ssd.expect(speeds.peer_to_ssd)
    _log.info(
        "node.imported", digest=manifest.digest, seconds=round(seconds, 3), from_peers=fetched
    )
    imported = Step(LoadPhase.IMPORT, began, seconds, size - fetched)
    fetch = Step(LoadPhase.FETCH, began, seconds, fetched)
    return tuple(step for step in (imported, fetch) if step.size_bytes) or (imported,)
