"""Nothing here runs what a checkpoint brings along, read from the sources.

What planted checkpoints do is tried in tests/e2e/test_trusted_sources.py.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import sllm

PACKAGE = Path(sllm.__file__).parent
RUNNING = {"eval", "exec", "pickle", "dill", "joblib", "marshal", "shelve", "runpy"}
"""Names that run what they are given, or read what runs when it is read."""
UNPICKLING = {("torch", "load"), ("numpy", "load"), ("np", "load")}


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield str(path.relative_to(PACKAGE)), node


def test_nothing_evaluates_or_unpickles() -> None:
    found = []
    for path, call in calls():
        match call.func:
            case ast.Name(id=name) if name in RUNNING:
                found.append((path, call.lineno, name))
            case ast.Attribute(value=ast.Name(id=module), attr=name):
                if module in RUNNING or (module, name) in UNPICKLING:
                    found.append((path, call.lineno, f"{module}.{name}"))
    assert not found


def test_code_of_checkpoints_is_never_trusted() -> None:
    """Libraries that could run it are told not to, wherever they make something of a directory."""
    trusting, silent = [], []
    for path, call in calls():
        said = {one.arg: one.value for one in call.keywords}
        value = said.get("trust_remote_code")
        if value is not None and not (isinstance(value, ast.Constant) and value.value is False):
            trusting.append((path, call.lineno))
        match call.func:  # other classes than these are transformers' own already
            case ast.Attribute(value=ast.Name(id=name)) if name.startswith("Auto"):
                if value is None:
                    silent.append((path, call.lineno, name))
    assert not trusting
    assert not silent
