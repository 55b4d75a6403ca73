"""`sllm ls`, `ps` and `nodes`: what there is."""

import time
from collections.abc import Sequence

from sllm.cli.common import Control, Json, connect, output, print_json
from sllm.cli.tables import Listing, versions
from sllm.client.types.deployments import Deployment, Instance
from sllm.client.types.enums import Tier
from sllm.client.types.nodes import Link, Node
from sllm.config import DEFAULT_CONTROL, format_bytes

_ADAPTERS_SHOWN = 3


def ls(control: Control = DEFAULT_CONTROL, as_json: Json = False) -> None:
    """List the deployments."""
    with connect(control) as client:
        deployments = client.deployments()
    if as_json:
        print_json(deployments)
    else:
        output().print(deployments_table(deployments))


def ps(control: Control = DEFAULT_CONTROL, as_json: Json = False) -> None:
    """List the instances."""
    with connect(control) as client:
        instances = client.instances()
    if as_json:
        print_json(instances)
    else:
        output().print(instances_table(instances, time.time()))


def nodes(control: Control = DEFAULT_CONTROL, as_json: Json = False) -> None:
    """List the nodes, with what their tiers hold and could still take."""
    with connect(control) as client:
        found = client.nodes()
    if as_json:
        print_json(found)
    else:
        output().print(nodes_table(found))
        if any(one.devices for one in found):
            output().print(devices_table(found))
        if any(copy.made_of for one in found for copy in one.copies):
            output().print(forms_table(found))
        for problem in problems(found):
            output().print(problem)


def deployments_table(deployments: Sequence[Deployment]) -> Listing:
    """One row for each deployment; with their bases, if there are adapters."""
    has_adapters = any(one.base for one in deployments)
    table = Listing(
        *("NAME", "BASE") if has_adapters else ("NAME",),
        *("STATE", "TASK", "ENGINE", "READY", "QUEUED", "KEEP-ALIVE", "SIZE", "SOURCE"),
        folded=("STATE", "SOURCE"),
    )
    most = {one.name: one.max_replicas for one in deployments}
    for one in deployments:
        table.add_row(
            *(one.name, one.base or "-") if has_adapters else (one.name,),
            _state(one),
            one.model.purpose.task,
            engine_label(one),
            f"{one.ready_instances}/{most.get(one.base, one.max_replicas)}",
            str(one.queued_requests),
            _keep_alive(one),
            format_bytes(one.model.size_bytes),
            one.source,
        )
    return table


def engine_label(deployment: Deployment) -> str:
    """The engine of a deployment, and on how many devices it runs an instance."""
    count = deployment.tensor_parallel
    return deployment.engine if count == 1 else f"{deployment.engine} x{count}"


def _keep_alive(deployment: Deployment) -> str:
    """As long as idle instances stay; where that was learned, with what they stay at most."""
    most = f"{deployment.keep_alive:g} s"
    return f"{deployment.learned.instance:.3g} of {most}" if deployment.learned else most


def _state(deployment: Deployment) -> str:
    if deployment.loading and deployment.loading.total_bytes:
        share = deployment.loading.loaded_bytes / deployment.loading.total_bytes
        return f"{deployment.state} {share:.0%}"
    return f"{deployment.state}: {deployment.message}" if deployment.message else deployment.state


def instances_table(instances: Sequence[Instance], now: float) -> Listing:
    """One row for each instance; `now` is the moment to which ages are counted."""
    table = Listing(
        *("INSTANCE", "DEPLOYMENT", "ENGINE", "NODE", "STATE", "RUNNING"),
        *("KV CACHE", "OWN", "PID", "AGE", "ADAPTERS"),
    )
    for one in instances:
        table.add_row(
            one.instance_id,
            one.deployment,
            one.engine or "-",
            one.node_id,
            _instance_state(one, now),
            str(one.running_requests),
            kv_cache(one),
            format_bytes(one.own_bytes) if one.own_bytes else "-",
            str(one.worker_pid or "-"),
            f"{max(0.0, now - one.started_at):.0f} s",
            _adapters(one),
        )
    return table


def kv_cache(instance: Instance) -> str:
    """What an instance uses of its KV cache; with how much it was started, where it has another."""
    share, given = instance.kv_share, format_bytes(instance.kv_bytes)
    if share is None:
        return given
    shown = f"{format_bytes(share.used_bytes)}/{format_bytes(share.size_bytes)}"
    return shown if share.size_bytes == instance.kv_bytes else f"{shown}\nbegan with {given}"


def _adapters(instance: Instance) -> str:
    """The first few by their names."""
    shown = ", ".join(instance.adapters[:_ADAPTERS_SHOWN])
    more = len(instance.adapters) - _ADAPTERS_SHOWN
    return (f"{shown} and {more} more" if more > 0 else shown) or "-"


def _instance_state(instance: Instance, now: float) -> str:
    """With how long an instance stays that no deployment explains; `deploy` again adopts it."""
    if instance.orphan_until is None:
        return instance.state
    return f"{instance.state} (orphan for {max(0.0, instance.orphan_until - now):.0f} s)"


def nodes_table(nodes: Sequence[Node]) -> Listing:
    """One row for each node."""
    tiers = (Tier.SSD, Tier.DRAM)
    columns = [f"{name} {what}" for name in (*tiers, "KV") for what in ("USED", "FREE")]
    zone = ("ZONE",) if any(one.zone for one in nodes) else ()
    table = Listing(
        *("NODE", "ADDRESS"), *zone, *columns, *("INSTANCES", "CHECKPOINTS", "ENGINES", "DISK")
    )
    for one in nodes:
        cells = [cell for tier in tiers for cell in _usage(one, tier)]
        kv_free = one.kv_capacity_bytes - one.kv_used_bytes
        kv = (format_bytes(one.kv_used_bytes), format_bytes(kv_free))
        held = (_own(one), _checkpoints(one), _engines(one), _disk(one))
        table.add_row(
            _name(one), one.address, *([one.zone or "-"] if zone else []), *cells, *kv, *held
        )
    return table


def _checkpoints(node: Node) -> str:
    """How many it holds, and how many of them as an engine reads them as well."""
    published = {copy.digest for copy in node.copies if not copy.made_of}
    ready = {copy.digest for copy in node.copies if copy.made_of}
    return f"{len(published)} + {len(ready)} ready-made" if ready else str(len(published))


def forms_table(nodes: Sequence[Node]) -> Listing:
    """One row for each checkpoint that nodes have as an engine reads it, and where they have it."""
    table = Listing(
        *("NODE", "READY FOR", "VERSIONS", "KERNELS", "DTYPE", "SIZE", "ON", "CHECKPOINT"),
        folded=("VERSIONS", "CHECKPOINT"),
    )
    for node in nodes:
        made = {copy.digest: copy for copy in node.copies if copy.made_of}
        for copy in made.values():
            form = copy.form
            tiers = (one.tier for one in node.copies if one.digest == copy.digest)
            table.add_row(
                node.node_id,
                copy.made_for,
                versions(form.versions) if form else "-",
                form.kernels if form else "-",
                form.dtype if form else "-",
                format_bytes(copy.size_bytes),
                ", ".join(sorted(tiers, reverse=True)),
                _published(node, copy.made_of),
            )
    return table


def _published(node: Node, digest: str) -> str:
    """What a node knows a checkpoint by: a source that leads to it, or its digest."""
    sources = (source for one in node.copies if one.digest == digest for source in one.sources)
    return next(sources, digest)


def _engines(node: Node) -> str:
    """Those that there are, and which of them is still being imported."""
    return "\n".join(one.name if one.ready else f"{one.name} (starting)" for one in node.engines)


def _own(node: Node) -> str:
    """What its instances take for themselves, of what they may."""
    memory = node.memory
    return _share(memory.used_bytes, memory.capacity_bytes) if memory else "-"


def devices_table(nodes: Sequence[Node]) -> Listing:
    """One row for each accelerator: its memory as measured, and what of it is for what."""
    table = Listing(
        *("NODE", "DEVICE", "MODEL", "FREE", "TOTAL", "WEIGHTS", "IDLE", "RESERVED", "KV CACHE"),
        folded=("MODEL",),
    )
    for node in nodes:
        for one in node.devices:
            table.add_row(
                node.node_id,
                str(one.index),
                one.name,
                format_bytes(one.free_bytes),
                format_bytes(one.total_bytes),
                _share(one.weights_used_bytes, one.weights_capacity_bytes),
                format_bytes(one.idle_bytes),
                format_bytes(one.reserved_bytes),
                _share(one.kv_used_bytes, one.kv_capacity_bytes),
            )
    return table


def _share(used: int, capacity: int) -> str:
    return f"{format_bytes(used)}/{format_bytes(capacity)}"


def problems(nodes: Sequence[Node]) -> list[str]:
    """One line for each tier that takes nothing new, and for what was not made ready."""
    tiers = [
        f"{one.node_id}, {usage.tier}: {usage.problem}"
        for one in nodes
        for usage in one.tiers
        if usage.problem
    ]
    unmade = [
        f"{one.node_id}, {_published(one, form.digest)}: not made ready for {form.made_for}: "
        f"{form.problem}"
        for one in nodes
        for form in one.unmade_forms
    ]
    return tiers + unmade


def _disk(node: Node) -> str:
    """How fast it is read, and what is being read and waits to be."""
    links = [link for link in node.links if (link.from_tier, link.to_tier) == (Tier.SSD, Tier.DRAM)]
    return "\n".join(map(link_speed, links)) or "-"


def link_speed(link: Link) -> str:
    """How fast a link is, and what is moved over it."""
    speed = f"{link.bytes_per_second / 1e9:.2f} GB/s"
    flying = f", {format_bytes(link.in_flight_bytes)} in flight" if link.in_flight_bytes else ""
    waiting = f", {format_bytes(link.queued_bytes)} wait" if link.queued_bytes else ""
    return speed + flying + waiting


def _name(node: Node) -> str:
    return f"{node.node_id} (draining)" if node.draining else node.node_id


def _usage(node: Node, tier: Tier) -> tuple[str, str]:
    for usage in node.tiers:
        if usage.tier is tier:
            return format_bytes(usage.used_bytes), format_bytes(usage.free_bytes)
    return "-", "-"
