"""What a zygote of vLLM has done for the starts that are to come."""

import json
import subprocess
import sys

import pytest

from tests.node.worker.engines import needs_vllm

pytestmark = [needs_vllm, pytest.mark.timeout(900)]  # it imports a lot

IN_A_ZYGOTE = """
import json, os, sys
from sllm.node.worker.backends.choosing import backend_of
from sllm.node.worker.zygote import await_single_thread

backend = backend_of("vllm")
backend.rehearse()
await_single_thread()
from sllm.node.worker.backends.vllm_backend import ModelRegistry, imported_by_a_start
from vllm.triton_utils import dispatcher
assert callable(dispatcher._rebind_kernels)
dispatcher._rebind_kernels = None  # a start that looks at all modules again fails
told = {
    "threads": len(os.listdir("/proc/self/task")),
    "imported": imported_by_a_start(),
    "lazy": hasattr(ModelRegistry.models["Qwen3ForCausalLM"], "module_name"),
}
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told() -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_ZYGOTE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_start_in_a_fork_imports_nothing(told: dict[str, object]) -> None:
    """What a new version of vLLM imports late would take its time at every start."""
    assert told["imported"] == []


def test_a_start_in_a_fork_finds_kernels_for_processors_in_place(told: dict[str, object]) -> None:
    """It would look at every module there is, for most of a second; here it would fail."""
    assert told["imported"] is not None


def test_no_thread_of_its_own_is_left(told: dict[str, object]) -> None:
    """A fork copies the caller alone: locks that others hold would stay held."""
    assert told["threads"] == 1


def test_common_architectures_are_known_without_a_process_that_looks(
    told: dict[str, object],
) -> None:
    assert told["lazy"] is False
