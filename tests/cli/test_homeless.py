"""Servers and commands of a user who has no home, and whom no list of users knows."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from make_models import make_model

from sllm.process import home_variables
from tests.processes import started

TIMEOUT = 170
SLLM = (sys.executable, "-m", "sllm.cli.main")
SMALL = ("--dram=64MiB", "--ssd=64MiB", "--kv=16MiB")
QUICK = "--engines=transformers"
UNKNOWN = 54321
CACHES = """
import getpass, os
getpass.getuser()
os.makedirs(os.path.expanduser("~/.cache/library"))
"""
"""What libraries do that compile or keep something."""


def environment(home: str | None) -> dict[str, str]:
    """This process's variables with another home, or none, and no name."""
    kept = {
        key: value for key, value in os.environ.items() if key not in ("HOME", "LOGNAME", "USER")
    }
    return kept if home is None else {**kept, "HOME": home}


def as_unknown(command: Sequence[str]) -> list[str]:
    """A command as a user who is in no list: may read what root may, and write what anybody may."""
    if os.getuid() or not shutil.which("setpriv"):
        pytest.skip("only root can start programs as another user, with setpriv")
    user = (f"--reuid={UNKNOWN}", f"--regid={UNKNOWN}", "--clear-groups")
    reads = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    return ["setpriv", *user, *reads, *command]


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A directory of the unknown user's."""
    directory = tmp_path / "theirs"
    directory.mkdir()
    if not os.getuid():
        os.chown(directory, UNKNOWN, UNKNOWN)
    return directory


@pytest.mark.parametrize(
    ("home", "more"),
    [
        (None, (QUICK,)),
        pytest.param(None, (), marks=pytest.mark.nightly),
        pytest.param("/nonexistent", (QUICK,), marks=pytest.mark.nightly),
    ],
)
def test_a_cluster_serves_without_a_home(
    tmp_path: Path, theirs: Path, home: str | None, more: tuple[str, ...]
) -> None:
    """On every engine at night: workers have the same home, whatever their node has."""
    model = make_model("tiny-llama", tmp_path / "model")
    where = ("--no-http", "--port=0", f"--dir={theirs / 'files'}")
    up = as_unknown([*SLLM, "up", *where, *SMALL, *more])
    with started(up, env=environment(home), cwd=theirs) as process:
        assert process.stdout
        address = process.stdout.readline().removeprefix("listening on ").strip()
        deploy = ("deploy", "tiny", str(model), "--kv-cache-tokens=64")
        for command in (deploy, ("generate", "tiny", "a", "--max-tokens=1")):
            done = subprocess.run(
                as_unknown([*SLLM, *command, f"--control={address}"]),
                env=environment(home),
                cwd=theirs,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, "")
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT) == 0
    assert [path.name for path in theirs.iterdir()] == ["files"]


@pytest.mark.parametrize("command", ["up", "control"])
@pytest.mark.parametrize("home", [None, "/nonexistent"])
def test_what_to_give_is_told(theirs: Path, command: str, home: str | None) -> None:
    done = subprocess.run(
        as_unknown([*SLLM, command]),
        env=environment(home),
        cwd=theirs,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 1
    assert "--dir" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(theirs.iterdir())


@pytest.mark.parametrize("home", [None, "/nonexistent", "relative", "/proc"])
def test_workers_get_a_name_and_a_home(theirs: Path, home: str | None) -> None:
    given = variables(theirs, home)
    assert given == {"HOME": str(theirs / "node" / "home"), "LOGNAME": f"uid-{UNKNOWN}"}


def test_libraries_of_workers_have_where_to_keep_things(theirs: Path) -> None:
    """With the variables that a node gives its zygote; without them they fail, or write here."""
    subprocess.run(
        as_unknown([sys.executable, "-c", CACHES]),
        env={**environment(None), **variables(theirs, None)},
        cwd=theirs,
        timeout=TIMEOUT,
        check=True,
    )
    assert (theirs / "node" / "home" / ".cache" / "library").is_dir()
    assert [path.name for path in theirs.iterdir()] == ["node"]


def variables(theirs: Path, home: str | None) -> dict[str, str]:
    """What a node of the unknown user gives its zygote."""
    ask = "import sys; from pathlib import Path; from sllm.process import home_variables; "
    ask += "print(*(f'{k}={v}' for k, v in home_variables(Path(sys.argv[1])).items()), sep='\\n')"
    command = as_unknown([sys.executable, "-c", ask, str(theirs / "node" / "home")])
    found = subprocess.check_output(command, env=environment(home), cwd=theirs, text=True)
    return dict(line.split("=", 1) for line in found.splitlines())


def test_a_home_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOGNAME", "somebody")
    assert home_variables(tmp_path / "other") == {}
