"""Who may import whom (docs/ARCHITECTURE.md), read from the sources."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sllm"
PARTS = ("control", "node", "client")

FLOORS = {
    "sllm": (
        "cli",
        "gateway | kubernetes",
        "control | node | client",
        "checkpoint | server_process",
        "tls",
        "rpc | sending",
        "handlers",
        "statuses | token_events",
        "telemetry | process | machine | config | prompt_size | sampling | bounds"
        " | structured_output | chat | embedding | listening | prompt_prefixes_wire",
        "addresses | broadcast | buckets | clock | decay | durations | errors | libc | own_memory"
        " | prompt_prefixes",
    ),
    "sllm.control": (
        "server | move_store",
        "replicas | services",
        "api",
        "control_plane",
        "batches",
        "operations | routing",
        "orchestration",
        "deployments | access",
        "state",
        "requests",
        "wire | placement | election",
        "metrics",
        "types",
        "cluster",
        "etcd",
        "config | tasks | tenants",
    ),
    "sllm.node": (
        "server",
        "api",
        "generations",
        "agent",
        "contents | directory",
        "config",
        "instances",
        "worker",
        "device",
        "store",
        "kept",
        "transfers",
        "peers",
        "tiers",
    ),
    "sllm.node.worker": (
        "__main__",
        "zygote",
        "main | packing",
        "service | model_service | embedding_service",
        "wire | page_wire | layer_wire",
        "host",
        "rank_watch | running | weights_use",
        "preparing | building",
        "ranks",
        "making_ready",
        "generations | encodings",
        "request_reader | outbox | collecting | page_keeping",
        "page_keys",
        "generation | adapters",
        "page_messages",
        "trial",
        "backends",
        "layers",
        "engine | model | experts",
        "ready_made",
        "messages",
    ),
    "sllm.client": (
        "sync",
        "aio",
        "text | batches | cluster | deployments | embedding | keys | tenants",
        "base | stream | watching",
        "connection | wire",
        "channels",
        "credentials | transcript",
        "sample",
        "types",
    ),
    "sllm.gateway": (
        "server",
        "app | connect | console",
        "openapi | service | tokens | anthropic",
        "openai",
        "endpoint | generating | parameters | own_files",
        "exchange | fields",
        "gateway",
        "token_texts | files",
        "control_planes",
        "context | bodies | protocol | lingering",
        "failures",
        "receipts | settings | metrics | sse | attempts | held | own_directory | tracing",
    ),
    "sllm.checkpoint": (
        "saving",
        "reading",
        "importing",
        "remote",
        "sources",
        "files",
        "format",
    ),
}
"""The packages and modules of each part, from the top floor down.

What stands on one floor imports itself and what is below it, never what is beside or above it.
"""
GENERATED_CODE = {
    "sllm.chat.wire": set(),
    "sllm.client": {"sllm.client.types"},
    "sllm.control.api": set(),
    "sllm.control.replicas": set(),
    "sllm.control.services": set(),
    "sllm.control.wire": set(),
    "sllm.embedding.wire": set(),
    "sllm.gateway.connect.services": set(),
    "sllm.node.api": set(),
    "sllm.node.generations": set(),
    "sllm.node.instances.borrowing": set(),
    "sllm.node.instances.outputs": set(),
    "sllm.node.instances.page_keeping": set(),
    "sllm.node.instances.under_way": set(),
    "sllm.node.instances.worker_client": set(),
    "sllm.node.instances.worker_messages": set(),
    "sllm.node.peers.copying": set(),
    "sllm.node.peers.link": set(),
    "sllm.node.peers.pages": set(),
    "sllm.node.peers.wire": set(),
    "sllm.node.server": set(),
    "sllm.node.worker.embedding_service": set(),
    "sllm.node.worker.layer_wire": set(),
    "sllm.node.worker.main": set(),
    "sllm.node.worker.model_service": set(),
    "sllm.node.worker.page_wire": set(),
    "sllm.node.worker.service": set(),
    "sllm.node.worker.wire": set(),
    "sllm.prompt_prefixes_wire": set(),
    "sllm.statuses": set(),
    "sllm.token_events": set(),
    "sllm.structured_output.wire": set(),
}
"""Who may name the protocol's generated code, and which of their packages may not."""
PURE = {
    "sllm.checkpoint.format.experts",
    "sllm.checkpoint.format.layout",
    "sllm.checkpoint.format.manifest",
    "sllm.control.cluster",
    "sllm.control.deployments.autoscaler",
    "sllm.control.placement",
    "sllm.control.requests.queue",
    "sllm.control.state.fleet",
    "sllm.control.state.sqlite",
    "sllm.control.state.store",
    "sllm.control.types",
    "sllm.node.instances.phases",
    "sllm.node.peers.board",
    "sllm.node.tiers.ledger",
    "sllm.node.tiers.pool",
}
"""What decides and accounts: it needs neither a network nor a machine to be tested."""


@dataclass(frozen=True, slots=True)
class Module:
    """One source file and what it imports."""

    name: str
    """Dotted name."""
    path: Path
    """Its file."""
    imports: frozenset[str]
    """Dotted names of the modules that it imports anywhere."""
    eager: frozenset[str]
    """Those that its own import brings along."""


@cache
def modules() -> dict[str, Module]:
    """All modules of the package, by name."""
    found = [_read(path) for path in sorted(PACKAGE.rglob("*.py"))]
    return {module.name: module for module in found}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _read(path: Path) -> Module:
    tree = ast.parse(path.read_text(), str(path))
    everything = frozenset(name for node in ast.walk(tree) for name in _imported(node))
    eager = frozenset(name for node in tree.body for name in _imported(node))
    return Module(_name(path), path, everything, eager)


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            yield _module_of(node.module, alias.name)


def _module_of(package: str, name: str) -> str:
    """The module that `from package import name` reads: a submodule, or the package itself."""
    path = ROOT.joinpath(*package.split("."), name)
    return f"{package}.{name}" if path.is_dir() or path.with_suffix(".py").exists() else package


@pytest.mark.parametrize("part", PARTS)
def test_the_parts_meet_only_in_the_protocol(part: str) -> None:
    others = tuple(f"sllm.{other}" for other in PARTS if other != part)
    for module in modules().values():
        if _is_in(module.name, f"sllm.{part}"):
            crossed = [name for name in module.imports if any(_is_in(name, one) for one in others)]
            assert not crossed, f"{module.name} imports {crossed}"


def test_the_gateway_is_a_client() -> None:
    """It may run anywhere: of the system it knows the SDK."""
    others = ("sllm.control", "sllm.node", "sllm.checkpoint")
    for module in modules().values():
        if _is_in(module.name, "sllm.gateway"):
            crossed = [name for name in module.imports if any(_is_in(name, one) for one in others)]
            assert not crossed, f"{module.name} imports {crossed}"


def test_the_command_line_starts_without_the_gateway() -> None:
    """Only its own command pays for HTTP, and for the packages of other protocols."""
    for one in _reachable("sllm.cli.app"):
        assert not _is_in(one, "sllm.gateway"), one


def test_checkpoints_need_no_cluster() -> None:
    for module in modules().values():
        if _is_in(module.name, "sllm.checkpoint"):
            crossed = [n for n in module.imports if any(_is_in(n, f"sllm.{p}") for p in PARTS)]
            assert not crossed, f"{module.name} imports {crossed}"


def _is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("part", FLOORS)
def test_imports_run_down(part: str) -> None:
    floor_of = {
        name: number for number, names in enumerate(FLOORS[part]) for name in names.split(" | ")
    }
    for module in modules().values():
        own = _unit(part, module.name)
        if own is None:
            continue
        assert own in floor_of, f"{module.name} has no floor"
        for imported in module.imports:
            unit = _unit(part, imported)
            if unit is not None and unit != own:
                assert floor_of[unit] > floor_of[own], f"{module.name} imports {imported}"


def _unit(part: str, name: str) -> str | None:
    """The package or module right in `part` that `name` is of; None where it is of none."""
    return name[len(part) + 1 :].partition(".")[0] if name.startswith(f"{part}.") else None


AGENT_KNOWS = {"sllm.node.worker.messages", "sllm.node.worker.backends.names"}


def test_the_doors_of_the_worker_are_narrow() -> None:
    """It is another process: the agent knows its messages and the names of engines, and it knows
    the driver alone."""
    for module in modules().values():
        inside = _is_in(module.name, "sllm.node.worker")
        crossed = {
            name
            for name in module.imports
            if _is_in(name, "sllm.node") and _is_in(name, "sllm.node.worker") != inside
        }
        if inside:
            assert crossed <= {"sllm.node.device.driver"}, f"{module.name} imports {crossed}"
        elif _is_in(module.name, "sllm.node"):
            into = {name for name in module.imports if _is_in(name, "sllm.node.worker")}
            assert into <= AGENT_KNOWS, f"{module.name} imports {into}"


def test_only_the_edges_name_generated_code() -> None:
    for module in modules().values():
        named = [name for name in module.imports if _is_in(name, "serverlessllm")]
        assert not named or _may_name_generated_code(module), f"{module.name} imports {named}"


def _may_name_generated_code(module: Module) -> bool:
    return any(
        _is_in(module.name, edge) and not any(_is_in(module.name, one) for one in without)
        for edge, without in GENERATED_CODE.items()
    )


def test_there_are_no_cycles() -> None:
    graph = {
        module.name: {name for name in module.imports if name in modules() and name != module.name}
        for module in modules().values()
        if module.name != "sllm"  # imports the clients when they are used, never before
    }
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a cycle: {' -> '.join(error.args[1])}")


def test_servers_do_not_depend_on_the_command_line() -> None:
    for module in modules().values():
        if not _is_in(module.name, "sllm.cli"):
            assert not [name for name in module.imports if _is_in(name, "sllm.cli")], module.name


@pytest.mark.parametrize("name", sorted(PURE))
def test_the_core_is_pure(name: str) -> None:
    """It stands on the standard library, digests, arrays and its like.

    numpy computes, and knows neither a network nor a machine: placement compares all nodes of a
    large cluster for every decision, which takes a loop that is not Python's.
    """
    allowed = {*sys.stdlib_module_names, "sllm", "xxhash", "numpy"}
    within = {one for one in modules() if _is_in(one, name)}
    assert within, f"there is no {name}"
    for one in {reached for start in within for reached in _reachable(start)}:
        brought = {imported.partition(".")[0] for imported in modules()[one].eager} - allowed
        assert not brought, f"{one} imports {brought}"


def test_the_node_agent_does_without_torch() -> None:
    """Workers pay for it, and the process that they are forked from."""
    heavy = {"torch", "transformers"}
    for one in _reachable("sllm.node.server"):
        brought = {imported.partition(".")[0] for imported in modules()[one].eager} & heavy
        assert not brought, f"{one} imports {brought}"


def _reachable(name: str) -> set[str]:
    """The modules of the package that importing `name` brings along, and itself."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += [imported for imported in modules()[one].eager if imported in modules()]
    return found
