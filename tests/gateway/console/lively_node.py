"""A fake node that takes its time, so that there is something to see."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import types_pb2 as pb

from tests.control.fake_node import FakeNode

STEPS = 8
"""Of a load that is told of."""


class LivelyNode(FakeNode):
    """Its loads fill a tier step by step, and its tokens come one after the other."""

    def __init__(self, node_id: str, **sizes: int) -> None:
        super().__init__(node_id, **sizes)
        self.load_seconds = 0.0
        self.token_seconds = 0.0
        self.call: inference_pb.ToolCallDelta | None = None
        """What the next generation calls before it ends."""

    async def StartInstance(
        self, request: node_pb.StartInstanceRequest, context: Any
    ) -> AsyncIterator[node_pb.StartInstanceResponse]:
        total = self.script.model.size_bytes
        for step in range(1, STEPS + 1):
            loaded = total * step // STEPS
            self._show_load(request.source, loaded, total)
            loading = pb.Loading(
                phase=pb.LOAD_PHASE_READ,
                from_tier=pb.TIER_SSD,
                loaded_bytes=loaded,
                total_bytes=total,
            )
            yield node_pb.StartInstanceResponse(loading=loading)
            await asyncio.sleep(self.load_seconds / STEPS)
        async for response in super().StartInstance(request, context):
            yield response

    def _show_load(self, source: str, loaded: int, total: int) -> None:
        """Reports a part of a checkpoint in DRAM, and the rest on its way there."""
        to_dram = self.links[1]
        to_dram.queued_bytes = total - loaded
        digest = f"digest-of-{source}"
        copy = self.copies.get((digest, pb.TIER_DRAM))
        if copy is None or copy.resident_bytes < total:
            copy = pb.CheckpointCopy(
                digest=digest,
                tier=pb.TIER_DRAM,
                size_bytes=total,
                resident_bytes=loaded,
                sources=[source],
                leased=True,
            )
            self.copies[digest, pb.TIER_DRAM] = copy
            self.send_delta(copies=[copy])
        else:
            self.send_delta()

    async def _events(
        self, request: inference_pb.GenerateRequest
    ) -> AsyncIterator[inference_pb.GenerateResponse]:
        async for event in super()._events(request):
            if event.HasField("tokens"):
                await asyncio.sleep(self.token_seconds)
            elif event.HasField("finished") and self.call:
                called, self.call = self.call, None
                tokens = inference_pb.Tokens(
                    first_index=event.finished.usage.completion_tokens,
                    token_ids=[1],
                    tool_calls=[called],
                )
                yield inference_pb.GenerateResponse(tokens=tokens)
                event.finished.reason = pb.FINISH_REASON_TOOL_CALLS
            yield event
