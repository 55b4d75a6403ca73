"""Some thousand calls to a cluster, in rounds: after each of them it has to serve, and be whole."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final

import grpc
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1.cluster_service_pb2_grpc import ClusterServiceStub
from serverlessllm.v1.node_service_pb2_grpc import NodeServiceStub

import sllm
from sllm import errors
from tests.e2e.cluster import Cluster
from tests.fuzz.calls import Call, Outcome, make_call, send, take_back
from tests.fuzz.valid import Facts
from tests.support import wait_until

DEPLOYMENT: Final = "tiny"
"""What has to be served throughout."""
ROUND: Final = 200
"""Calls of a round."""
_AT_ONCE: Final = 8
_SETTLE_SECONDS: Final = 120.0
_CHANNEL_OPTIONS: Final = [("grpc.max_receive_message_length", -1)]
_BAD_LOG: Final = re.compile(
    r"Traceback|Task was destroyed|never retrieved|never awaited|unexpected_error"
    r"|Fatal Python error|Segmentation fault"
)


@dataclass(slots=True)
class Findings:
    """What a campaign has found."""

    answers: Counter[str] = field(default_factory=Counter)
    """How often each RPC gave each answer."""
    faults: list[str] = field(default_factory=list)
    """What was wrong, with the number of the call."""

    def note(self, call: Call, outcome: Outcome) -> None:
        """Takes in the outcome of a call."""
        name = f"{call.method.server} {call.method.key}"
        self.answers[f"{name}: {outcome.code} {outcome.reason}".rstrip()] += 1
        for fault in outcome.faults:
            self.faults.append(f"#{call.number} {name}: {fault}: {outcome.details[:300]}")


class Campaign:
    """Calls of every kind to the first node of a cluster and its control plane."""

    def __init__(self, cluster: Cluster, source: str, seed: int) -> None:
        """`source`: URL of a small model that the cluster can serve."""
        self._cluster = cluster
        self._client = sllm.Client(cluster.control.address, call_timeout=_SETTLE_SECONDS)
        self._source = source
        self._seed = seed
        self._log_sizes = {part.name: 0 for part in cluster.parts}
        self._refusal = ""
        """What the last request was answered that was to be served; empty: it was served."""
        self.findings = Findings()

    def run(self, numbers: Iterable[int]) -> Findings:
        """Makes the calls of these numbers; nothing is left of them in the end."""
        waiting = list(numbers)
        with self._client, asyncio.Runner() as runner:
            self._wait("nothing can be deployed", self._is_ready)
            try:
                self._run_rounds(waiting, runner)
            except errors.SllmError as error:
                self.findings.faults.append(f"the cluster could not go on: {error!r}")
        self._look_at_logs("the end")
        return self.findings

    def _run_rounds(self, waiting: list[int], runner: asyncio.Runner) -> None:
        for start in range(0, len(waiting), ROUND):
            round_ = waiting[start : start + ROUND]
            self._restore()
            runner.run(self._send_all(round_, self._facts()))
            self._look_at_logs(f"calls {round_[0]}-{round_[-1]}")
            self._serves(f"calls {round_[0]}-{round_[-1]}")
        self._clear()

    async def _send_all(self, numbers: list[int], facts: Facts) -> None:
        async with AsyncExitStack() as stack:
            parts = {"control": self._cluster.control, "node": self._cluster.nodes[0]}
            channels = {
                server: await stack.enter_async_context(
                    grpc.aio.insecure_channel(part.address, options=_CHANNEL_OPTIONS)
                )
                for server, part in parts.items()
            }
            waiting = iter(numbers)

            async def send_some() -> None:
                for number in waiting:
                    call = make_call(self._seed, number, facts)
                    channel = channels[call.method.server]
                    self.findings.note(call, await send(channel, call))
                    await take_back(channel, call, facts)

            await asyncio.gather(*(send_some() for _ in range(_AT_ONCE)))

    # --- the cluster between rounds -----------------------------------------------------------

    def _restore(self) -> None:
        """Takes back what calls may rightly have done: drains, pins, deployments, batches."""
        self._wait("nodes are missing", self._has_its_nodes)
        for node in self._cluster.nodes:
            self._client.undrain(node.name)
        for pin in self._client.pins():
            self._client.unpin(pin.deployment, tier=pin.tier, node=pin.node_id)
        self._release_holds()
        for batch in self._client.batches():
            self._client.cancel_batch(batch.batch_id)
            self._client.delete_batch(batch.batch_id)
        for deployment in self._client.deployments():
            if deployment.name != DEPLOYMENT:
                self._client.delete(deployment.name)
        try:
            self._client.deploy(DEPLOYMENT, self._source, keep_alive=2.0, kv_cache_tokens=1024)
        except errors.DeploymentExists:  # as a call has made it
            self._client.delete(DEPLOYMENT)
            self._client.deploy(DEPLOYMENT, self._source, keep_alive=2.0, kv_cache_tokens=1024)

    def _release_holds(self) -> None:
        """Prefetches may last for years."""
        with grpc.insecure_channel(self._cluster.control.address) as channel:
            nodes = ClusterServiceStub(channel).ListNodes(cluster_pb.ListNodesRequest()).nodes
        holds = {hold.hold_id for node in nodes for copy in node.copies for hold in copy.holds}
        for node in self._cluster.nodes:
            with grpc.insecure_channel(node.address) as channel:
                for hold in holds:
                    request = node_pb.ReleaseHoldRequest(hold_id=hold)
                    NodeServiceStub(channel).ReleaseHold(request)

    def _has_its_nodes(self) -> bool:
        """Whether no others are left, either: those end with the calls that reported them."""
        return {one.node_id for one in self._client.nodes()} == {
            part.name for part in self._cluster.nodes
        }

    def _is_ready(self) -> bool:
        """Whether a deployment is taken: the first has to wait for its node's imports."""
        try:
            self._restore()
        except errors.SllmError as error:
            self._refusal = repr(error)
            return False
        return True

    def _facts(self) -> Facts:
        self._wait("nothing is served", self._answers)
        ready = [one for one in self._client.instances() if one.deployment == DEPLOYMENT]
        node = self._cluster.nodes[0].name
        here = [one.instance_id for one in ready if one.node_id == node and one.state == "READY"]
        copies = [copy for one in self._client.nodes() for copy in one.copies]
        return Facts(
            source=self._source,
            deployment=DEPLOYMENT,
            node_id=node,
            instance_id=here[0] if here else "",
            digest=copies[0].digest if copies else "",
        )

    def _serves(self, when: str) -> None:
        self._restore()
        for part in self._cluster.parts:
            assert part.is_running(), f"{part.name} has ended after {when}"
        self._wait(f"after {when} nothing is served", self._answers)

    def _answers(self) -> bool:
        """Whether a request is served; starts may fail that calls of the fuzz have meddled with."""
        try:
            done = self._client.complete(DEPLOYMENT, "Hello", max_tokens=2, timeout=60.0)
        except errors.SllmError as error:
            self._refusal = repr(error)
            return False
        self._refusal = ""
        return done.usage.completion_tokens == 2

    def _clear(self) -> None:
        """Deletes everything, and waits until nothing is left of it."""
        self._restore()
        self._client.delete(DEPLOYMENT)
        self._wait("deployments are left", lambda: not self._client.deployments())
        self._wait("instances are left", lambda: not self._client.instances())
        self._wait("pins are left", lambda: not self._client.pins())
        self._wait("nodes are not as they were", self._is_idle)

    def _wait(self, otherwise: str, check: Callable[[], object]) -> None:
        try:
            wait_until(check, _SETTLE_SECONDS)
        except AssertionError:
            nodes = self._client.nodes()
            self.findings.faults.append(f"{otherwise}: {self._refusal or nodes}")

    def _is_idle(self) -> bool:
        nodes = self._client.nodes()
        leased = any(copy.leased for node in nodes for copy in node.copies)
        return not leased and not any(node.kv_used_bytes for node in nodes)

    def _look_at_logs(self, when: str) -> None:
        for part in self._cluster.parts:
            text = part.log_text()
            new, self._log_sizes[part.name] = text[self._log_sizes[part.name] :], len(text)
            bad = [line for line in new.splitlines() if _BAD_LOG.search(line)]
            for line, count in Counter(map(_shortened, bad)).items():
                self.findings.faults.append(f"{part.name}'s log, {when}, {count} times: {line}")


def _shortened(line: str) -> str:
    """What a line of a log tells, and of its traceback the end."""
    try:
        entry = json.loads(line)
    except ValueError:
        return line[:600]
    event, method = str(entry.get("event"))[:200], entry.get("method", "")
    return f"{event} {method} {str(entry.get('exception', '')).strip()[-500:]}"
