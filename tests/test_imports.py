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

EDGES = {"wire.py", "service.py", "server.py", "nodes.py"}
"""Files that may name the protocol's generated code wherever they are; so may `…_wire.py`."""
OTHER_EDGES = {
    "sllm.node.generate",  # relays the workers' messages as they are
    "sllm.node.emigration",  # calls other nodes
    "sllm.node.generations",  # hands requests on as they are
    "sllm.node.immigration",  # answers other nodes
    "sllm.node.passage",  # calls other nodes
    "sllm.node.migration_stream",  # calls other nodes
    "sllm.node.outputs",  # holds the workers' messages as they are
    "sllm.node.reporter",  # calls the control plane
    "sllm.node.worker.main",
    "sllm.node.workers",  # calls the workers
}
PURE = {
    "sllm.checkpoint.layout",
    "sllm.checkpoint.manifest",
    "sllm.control.autoscaler",
    "sllm.control.cost",
    "sllm.control.deployments",
    "sllm.control.explain",
    "sllm.control.fleet",
    "sllm.control.inits",
    "sllm.control.lines",
    "sllm.control.moves",
    "sllm.control.pins",
    "sllm.control.placement",
    "sllm.control.queue",
    "sllm.control.ranking",
    "sllm.control.store",
    "sllm.control.typical",
    "sllm.node.ledger",
    "sllm.node.phases",
    "sllm.node.pool",
}
"""Modules that decide and account: they need neither a network nor a machine to be tested."""


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


def test_checkpoints_need_no_cluster() -> None:
    for module in modules().values():
        if _is_in(module.name, "sllm.checkpoint"):
            crossed = [n for n in module.imports if any(_is_in(n, f"sllm.{p}") for p in PARTS)]
            assert not crossed, f"{module.name} imports {crossed}"


def _is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_only_the_edges_name_generated_code() -> None:
    for module in modules().values():
        named = [name for name in module.imports if _is_in(name, "serverlessllm")]
        assert not named or _may_name_generated_code(module), f"{module.name} imports {named}"


def _may_name_generated_code(module: Module) -> bool:
    if _is_in(module.name, "sllm.client") or module.name in OTHER_EDGES:
        return True
    return module.path.name in EDGES or module.path.name.endswith("_wire.py")


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
    for one in _reachable(name):
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
