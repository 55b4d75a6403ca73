"""The wheel alone, with nothing of what serving takes: the clients and the command line work."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.e2e.cluster import Cluster

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny-llama"
TIMEOUT = 120
OF_SERVERS = ("torch", "transformers", "numpy", "vllm", "safetensors", "uvloop", "psutil")
NOT_IMPORTED = (*OF_SERVERS, "pydantic")  # which newer versions of typer bring along
CALLER = f"""
import sys
import sllm, sllm.client
with sllm.Client(sys.argv[1]) as client:
    client.deploy("light", sys.argv[2], engine="transformers")
    print(client.complete("light", "The for statement", max_tokens=4, temperature=0.0).text)
from sllm.cli.app import app
print({{name.partition(".")[0] for name in sys.modules}} & {set(NOT_IMPORTED)})
"""
MODULES = """
import importlib, pkgutil, sllm.cli, sllm.client
for package in (sllm.cli, sllm.client):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
"""


class Installed:
    """A virtual environment that has the wheel and what it asks for without any extra."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs one of its programs, with nothing of this environment in its way."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        return subprocess.run(
            [self.bin / command[0], *command[1:]],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            cwd=self.bin,
            env=environment,
        )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    _pip("wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(directory))
    return next(directory.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    directory = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    packages = next(directory.glob("lib/python*/site-packages"))
    (found,) = metadata.distributions(path=[str(wheel)])
    for name in _asked_for(found.requires or (), set()):
        _copy(metadata.distribution(name), packages)
    _pip("--python", str(directory), "install", "--no-deps", str(wheel))
    return Installed(directory)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _asked_for(requirements: Sequence[str], found: set[str]) -> set[str]:
    """The distributions that these lines ask for, and those that they ask for in turn."""
    for line in requirements:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if name not in found and (
            not requirement.marker or requirement.marker.evaluate({"extra": ""})
        ):
            assert not requirement.extras, f"{line}: of extras of others nothing is known here"
            found.add(name)
            _asked_for(metadata.requires(name) or (), found)
    return found


def _copy(distribution: metadata.Distribution, packages: Path) -> None:
    """Gives another environment a distribution of this one, as pip has installed it here."""
    for file in distribution.files or ():
        if ".." not in file.parts and file.suffix != ".pyc":
            target = packages / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(distribution.locate_file(file)), target)


def test_an_index_takes_the_wheel(wheel: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_has_its_types_and_its_protocol(installed: Installed) -> None:
    packages = next(installed.bin.parent.glob("lib/python*/site-packages"))
    for name in ("sllm/py.typed", "serverlessllm/py.typed", "serverlessllm/v1/types_pb2.pyi"):
        assert (packages / name).exists(), name


def test_nothing_that_serving_takes_is_there(installed: Installed) -> None:
    for name in OF_SERVERS:
        assert installed.run("python", "-c", f"import {name}").returncode, name


def test_every_module_of_the_command_line_and_the_clients_is_imported(installed: Installed) -> None:
    done = installed.run("python", "-c", MODULES)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_program_deploys_and_generates(installed: Installed, cluster: Cluster) -> None:
    done = installed.run("python", "-c", CALLER, cluster.control.address, f"file://{TINY}")
    cluster.client.delete("light")
    text, heavy = done.stdout.strip().rsplit("\n", 1)
    assert (text.strip() != "", heavy, done.stderr) == (True, "set()", "")


def test_the_command_line_lists_and_generates(installed: Installed, cluster: Cluster) -> None:
    control = ("--control", cluster.control.address)
    deployed = installed.run("sllm", "deploy", "light", str(TINY), *control)
    listed = installed.run("sllm", "ls", *control)
    said = installed.run("sllm", "generate", "light", "Once", "--max-tokens=4", *control)
    cluster.client.delete("light")
    assert [one.returncode for one in (deployed, listed, said)] == [0, 0, 0], said.stderr
    assert "light" in listed.stdout
    assert said.stdout.strip()


@pytest.mark.parametrize("command", ["up", "control", "node", "pack", "verify", "inspect"])
def test_a_command_that_needs_more_says_which_extra(installed: Installed, command: str) -> None:
    arguments = {"pack": ("a", "b"), "verify": ("a",), "inspect": ("a",), "node": ("--dram=1GiB",)}
    done = installed.run("sllm", command, *arguments.get(command, ()))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"error: NOT_INSTALLED: `sllm {command}` needs ")
    assert done.stderr.endswith("pip install 'sllm[server]'\n")


def test_help_needs_no_extra(installed: Installed) -> None:
    for command in ((), ("up",), ("node",)):
        done = installed.run("sllm", *command, "--help")
        assert (done.returncode, done.stderr) == (0, ""), command
