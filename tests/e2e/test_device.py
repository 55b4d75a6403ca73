"""Serving from a device: on a GPU where there is one, and everywhere over a double of libcuda.

Over the double the whole way from disk to tokens is real but for the device's memory, which is
shared memory of the host, and for the kernels, which are the processors'.
"""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree

import grpc
import pytest
import torch
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import types_pb2 as pb
from serverlessllm.v1.node_service_pb2_grpc import NodeServiceStub

import sllm
from sllm.node.device.driver import LIBRARY_VARIABLE
from tests.e2e import workers
from tests.e2e.cluster import Cluster, running
from tests.e2e.reference import greedy
from tests.node.device import library
from tests.support import wait_until

FAMILIES = ("tiny-llama", "tiny-opt", "tiny-qwen2", "tiny-gpt2")
DOUBLE_BYTES = 1 << 30
SLACK_BYTES = 64 << 20
"""What a GPU's driver may keep for itself after a process has gone."""


@dataclass(frozen=True)
class OnDevice:
    """A cluster of one node that serves from devices, and torch's name of the first."""

    cluster: Cluster
    torch_device: str
    count: int
    """Of its devices. All the double's memory is the processors', so it has two at no cost."""

    @property
    def client(self) -> sllm.Client:
        return self.cluster.client

    @property
    def all(self) -> tuple[sllm.Device, ...]:
        (node,) = self.client.nodes()
        return node.devices

    @property
    def device(self) -> sllm.Device:
        return self.all[0]

    def deploy(self, models: Path, family: str) -> None:
        self.client.deploy(family, f"file://{models / family}", keep_alive=0.0)

    def evict(self) -> None:
        """Frees what is idle on the device."""
        (node,) = self.client.nodes()
        with grpc.insecure_channel(node.address) as channel:
            for copy in node.copies:
                if copy.tier is sllm.Tier.DEVICE:
                    request = node_pb.EvictRequest(digest=copy.digest, tier=pb.TIER_DEVICE)
                    NodeServiceStub(channel).Evict(request, timeout=10)


@pytest.fixture(scope="module", params=["double", pytest.param("cuda", marks=pytest.mark.cuda)])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OnDevice]:
    directory = tmp_path_factory.mktemp("device")
    double = request.param == "double"
    options = [f"--device={'cuda' if double else 'cuda:0'}", "--device-reserve=16MiB"]
    with pytest.MonkeyPatch.context() as patch:
        if double:
            patch.setenv(LIBRARY_VARIABLE, str(library.build(directory)))
            patch.setenv("FAKE_CUDA_BYTES", str(DOUBLE_BYTES))
            patch.setenv("FAKE_CUDA_DEVICES", "2")
        elif not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        with running(directory, nodes=1, node_options=options) as cluster:
            yield OnDevice(cluster, "cpu" if double else "cuda", 2 if double else 1)


@pytest.fixture(autouse=True)
def clean(served: OnDevice) -> Iterator[None]:
    """Deletes what a test has deployed: then the device is empty."""
    yield
    for deployment in served.client.deployments():
        served.client.delete(deployment.name)
    served.cluster.wait_for_instances(0)
    wait_until(lambda: not any(one.weights_used_bytes or one.kv_used_bytes for one in served.all))


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_those_of_transformers_on_the_same_device(
    served: OnDevice, models: Path, family: str
) -> None:
    served.deploy(models, family)
    expected = greedy(models / family, "Once upon a time", 12, served.torch_device)
    result = served.client.complete(family, "Once upon a time", temperature=0, max_tokens=12)
    assert tuple(result.token_ids) == expected.token_ids
    assert result.text == expected.text


def test_the_receipt_shows_the_copy_and_the_next_start_needs_none(
    served: OnDevice, models: Path
) -> None:
    served.deploy(models, "tiny-opt")
    first = served.client.complete("tiny-opt", "Hello", max_tokens=2)
    warmed = sllm.PhaseKind.WARM_UP in {one.kind for one in first.receipt.phases}
    assert warmed == (served.torch_device == "cuda")
    copies = [one for one in first.receipt.phases if one.kind is sllm.PhaseKind.DEVICE_COPY]
    assert [one.size_bytes for one in copies] == [_size(served)]
    served.cluster.wait_for_instances(0)
    again = served.client.complete("tiny-opt", "Hello", max_tokens=2)
    assert again.receipt.cold
    assert again.receipt.from_tier is sllm.Tier.DEVICE
    kinds = {phase.kind for phase in again.receipt.phases}
    assert not kinds & {sllm.PhaseKind.DEVICE_COPY, sllm.PhaseKind.READ_SSD}


def _size(served: OnDevice) -> int | None:
    (node,) = served.client.nodes()
    return next(one.size_bytes for one in node.copies if one.tier is sllm.Tier.DEVICE)


@pytest.mark.parametrize("family", ["tiny-gpt2", "tiny-llama-sharded"])
def test_every_parameter_is_in_the_agents_allocation(
    served: OnDevice, models: Path, family: str
) -> None:
    served.client.deploy(family, f"file://{models / family}", min_replicas=1)
    served.cluster.wait_for_instances(1)
    (socket,) = workers.sockets(served.cluster)
    status = workers.status(socket)
    begin, end = status.mapping_address, status.mapping_address + status.mapping_bytes
    assert status.parameters
    for parameter in status.parameters:
        assert begin <= parameter.address, parameter.name
        assert parameter.address + parameter.size_bytes <= end, parameter.name
        assert parameter.address % 16 == 0, f"{parameter.name}: kernels read vectors of 16 bytes"
    # Tied weights are one parameter: what is listed is not more than what was copied.
    assert sum(one.size_bytes for one in status.parameters) <= served.device.weights_used_bytes


def test_a_killed_worker_leaves_the_weights_to_the_next(served: OnDevice, models: Path) -> None:
    served.client.deploy("tiny-llama", f"file://{models / 'tiny-llama'}", min_replicas=1)
    served.cluster.wait_for_instances(1)
    before = served.client.complete("tiny-llama", "Hello", temperature=0, max_tokens=8)
    used, free = served.device.weights_used_bytes, served.device.free_bytes
    (instance,) = served.client.instances()
    served.cluster.signal_worker(instance.instance_id, signal.SIGKILL)
    wait_until(lambda: _replaced(served, instance.instance_id), 60)
    after = served.client.complete("tiny-llama", "Hello", temperature=0, max_tokens=8)
    assert after.token_ids == before.token_ids
    assert served.device.weights_used_bytes == used
    wait_until(lambda: served.device.free_bytes >= free - SLACK_BYTES)


def _replaced(served: OnDevice, instance_id: str) -> bool:
    found = served.client.instances()
    return [one.state for one in found] == ["READY"] and found[0].instance_id != instance_id


def test_after_deletes_the_memory_is_back_as_measured(served: OnDevice, models: Path) -> None:
    before = served.device.free_bytes
    served.deploy(models, "tiny-qwen2")
    served.client.complete("tiny-qwen2", "Hello", max_tokens=2)
    wait_until(lambda: served.device.free_bytes < before)
    served.client.delete("tiny-qwen2")
    slack = 0 if served.torch_device == "cpu" else SLACK_BYTES
    wait_until(lambda: served.device.free_bytes >= before - slack)
    wait_until(lambda: served.device.weights_used_bytes == 0)


def test_weights_in_use_are_not_evicted(served: OnDevice, models: Path) -> None:
    served.client.deploy("tiny-gpt2", f"file://{models / 'tiny-gpt2'}", min_replicas=1)
    served.cluster.wait_for_instances(1)
    with pytest.raises(grpc.RpcError, match="is in use"):
        served.evict()


def test_models_that_run_at_once_are_on_the_devices_that_have_the_most_room(
    served: OnDevice, models: Path
) -> None:
    if served.count < 2:
        pytest.skip("there is one device")
    for family in FAMILIES[:2]:
        served.client.deploy(family, f"file://{models / family}", min_replicas=1)
    served.cluster.wait_for_instances(2)
    wait_until(lambda: all(one.weights_used_bytes and one.kv_used_bytes for one in served.all))
    for family in FAMILIES[:2]:
        expected = greedy(models / family, "Once", 4, served.torch_device)
        result = served.client.complete(family, "Once", temperature=0, max_tokens=4)
        assert tuple(result.token_ids) == expected.token_ids


def test_a_model_too_large_for_every_device_is_told_when_it_is_deployed(
    served: OnDevice, models: Path, tmp_path: Path
) -> None:
    source = copytree(models / "tiny-llama", tmp_path / "large")
    _write_holes(source / "model.safetensors", 1 << 40)
    numbers = rf"take {1 << 40} bytes, and the largest device of this node has \d+ for weights"
    with pytest.raises(sllm.errors.ModelTooLarge, match=numbers):
        served.client.deploy("large", f"file://{source}")
    assert not served.client.deployments()


def _write_holes(path: Path, size: int) -> None:
    """Weights of so many bytes, of which the disk has none but the header's."""
    tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"lm_head.weight": tensor}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)


def test_a_device_that_is_not_there_is_told_at_start(served: OnDevice, tmp_path: Path) -> None:
    _fails_to_start(
        tmp_path, r"no device 99: this machine has \d+ CUDA devices", "--device=cuda:99"
    )


def test_a_device_too_small_is_told_at_start(served: OnDevice, tmp_path: Path) -> None:
    message = r"too small: of its \d+ bytes \d+ are free"
    _fails_to_start(tmp_path, message, "--device=cuda:0", "--device-reserve=4TiB")


def _fails_to_start(directory: Path, message: str, *options: str) -> None:
    command = [sys.executable, "-m", "sllm.cli.main", "node", "--dir", str(directory), *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert re.search(message, " ".join(ended.stderr.split())), ended.stderr
