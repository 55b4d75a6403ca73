"""What a fake node does, as tests tell it."""

import asyncio
from dataclasses import dataclass, field

from serverlessllm.v1 import types_pb2 as pb

from sllm import errors

MIB = 1024 * 1024


class Gate:
    """Open, unless a test shuts it; whoever comes to a shut gate waits."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.waiting = 0

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def passed(self) -> None:
        self.waiting += 1
        try:
            await self._open.wait()
        finally:
            self.waiting -= 1


@dataclass
class Script:
    """What the node does; tests change it at any time."""

    model: pb.ModelInfo = field(
        default_factory=lambda: pb.ModelInfo(
            architecture="FakeForCausalLM",
            size_bytes=10 * MIB,
            context_tokens=1024,
            kv_bytes_per_token=1024,
            identity="A",
        )
    )
    inspect_error: errors.SllmError | None = None
    promote_error: errors.SllmError | None = None
    disk_error: errors.SllmError | None = None
    """Of a promotion to SSD alone."""
    text_error: errors.SllmError | None = None
    """Of questions about text."""
    start_errors: list[errors.SllmError] = field(default_factory=list)
    """One for each of the next starts."""
    generate_errors: list[errors.SllmError] = field(default_factory=list)
    """One for each of the next requests, raised at the token gate."""
    phases: list[pb.Phase] = field(default_factory=list)
    """Of each request, beside its prefill."""
    weights_arriving: bool = False
    """Whether instances are ready before their weights are there."""
    before_promoted: Gate = field(default_factory=Gate)
    before_ready: Gate = field(default_factory=Gate)
    before_tokens: Gate = field(default_factory=Gate)
    """After `started`, before the first token."""
    tokens_before_gate: int | None = None
    """After how many tokens of a generation `amid_tokens` comes."""
    amid_tokens: Gate = field(default_factory=Gate)
    amid_errors: list[errors.SllmError] = field(default_factory=list)
    """One for each of the next requests that pass it."""
    before_finish: Gate = field(default_factory=Gate)
    """After the tokens."""
    before_migration: Gate = field(default_factory=Gate)
    migration_errors: list[errors.SllmError] = field(default_factory=list)
    """One for each of the next migrations."""
    stays: bool = False
    """Whether every request that is to move stays."""
    migration_says_nothing: bool = False
    """Whether migrations end without a word of what has come of each request."""
    tokens_unsent: int = 0
    """Tokens that have moved without having been given out."""
    token_seconds: float = 0.0
    """That each token takes, times the requests that the instance has."""
    before_stop: Gate = field(default_factory=Gate)
    stop_errors: list[errors.SllmError] = field(default_factory=list)
    """One for each of the next stops."""
    before_release: Gate = field(default_factory=Gate)
    """Of a hold."""

    async def token_time(self, running: int) -> float:
        """Waits for as long as a token takes of an instance with so many requests; the seconds."""
        seconds = self.token_seconds * running
        if seconds:
            await asyncio.sleep(seconds)
        return seconds
