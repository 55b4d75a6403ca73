"""Requests that go on with a conversation: what of their prompts was computed before, and where."""

from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field, replace

import numpy as np

from bench.simulation.hardware import Model, Server
from bench.simulation.request import Request
from bench.simulation.workload import Trace
from sllm.control.cluster.instances import Instance

RETURNING = 0.5
"""Share of the requests that go on with a conversation: with `KNOWN`, two fifths of all tokens of
prompts were there before, as in the conversations of Mooncake's trace (Qin et al., FAST '25)."""
KNOWN = 0.8
"""Share of such a prompt that was there before."""
_OPEN = 8
"""Conversations of a model, the last ones, of which any may be gone on with."""


def in_turns(trace: Trace, seed: int) -> Trace:
    """The same requests, of which some go on with conversations of their models."""
    random = np.random.default_rng(seed)
    had: dict[str, OrderedDict[str, int]] = defaultdict(OrderedDict)
    arrivals = []
    for number, one in enumerate(trace.arrivals):
        known = had[one.deployment]
        name, tokens = f"{one.deployment}/{number}", 0
        if known and random.uniform() < RETURNING:
            name = list(known)[random.integers(len(known))]
            tokens = min(int(KNOWN * one.prompt_tokens), known.pop(name))
        known[name] = one.prompt_tokens + one.output_tokens
        while len(known) > _OPEN:
            known.popitem(last=False)
        arrivals.append(replace(one, conversation=name, known_tokens=tokens))
    return Trace(trace.models, arrivals)


@dataclass(slots=True)
class Caches:
    """Where the KV cache of each conversation is: in its last instance, and kept on a node.

    An instance has it for as long as it runs. What a node keeps is bounded, and what was used last
    stays.
    """

    server: Server
    kept_bytes: int
    """Of each node. 0: none keeps any."""
    _in_instance: dict[str, str] = field(default_factory=dict)
    """By conversation, the instance."""
    _kept: dict[str, OrderedDict[str, int]] = field(
        default_factory=lambda: defaultdict(OrderedDict)
    )
    """By node, the bytes of each conversation."""

    def seconds(self, request: Request, instance: Instance, model: Model) -> float:
        """What the prompt takes of a request on an instance."""
        arrival, each = request.arrival, model.prefill_seconds_per_token
        whole = each * arrival.prompt_tokens
        if not arrival.known_tokens:
            return whole
        if self._in_instance.get(arrival.conversation) == instance.instance_id:
            return whole - each * arrival.known_tokens
        if arrival.conversation not in self._kept[instance.node_id]:
            return whole
        copied = arrival.known_tokens * model.kv_bytes_per_token
        brought = copied / self.server.pcie_bytes_per_second
        return min(whole, whole - each * arrival.known_tokens + brought)

    def leave(self, request: Request, instance: Instance, model: Model) -> None:
        """A request has ended on an instance."""
        name = request.arrival.conversation
        if not name:
            return
        self._in_instance[name] = instance.instance_id
        if self.kept_bytes:
            kept = self._kept[instance.node_id]
            kept.pop(name, None)
            kept[name] = request.tokens * model.kv_bytes_per_token
            while sum(kept.values()) > self.kept_bytes:
                kept.popitem(last=False)
