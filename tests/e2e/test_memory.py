"""What workers take for themselves is in their node's books, and bounds how many there are."""

from pathlib import Path

import psutil
import pytest

from sllm.node.config import OWN_BYTES
from tests.e2e.cluster import running
from tests.support import wait_until

MIB = 1 << 20
DRAM, KV, INSTANCES = 64, 16, 150
MEMORY = OWN_BYTES // MIB + DRAM + KV + INSTANCES
WANTED = 32
TIMEOUT = 120.0


@pytest.mark.timeout(400)
def test_no_more_instances_start_than_the_memory_holds(tmp_path: Path, models: Path) -> None:
    small = [f"--memory={MEMORY}MiB"]
    with running(tmp_path, nodes=1, dram_mib=DRAM, kv_mib=KV, node_options=small) as cluster:
        client = cluster.client
        client.deploy(
            "many",
            f"file://{models / 'tiny-gpt2'}",
            min_replicas=WANTED,
            max_replicas=WANTED,
            kv_cache_tokens=16,
        )

        def full() -> bool:
            """Whether all that run are ready and measured, and one more would not fit."""
            (node,), found = client.nodes(), client.instances()
            assert node.memory
            largest = max((one.own_bytes for one in found), default=0)
            settled = bool(found) and all(one.state == "READY" for one in found)
            measured = settled and all(one.own_bytes for one in found)
            return measured and node.memory.used_bytes + largest > node.memory.capacity_bytes

        wait_until(full, TIMEOUT)
        (node,), found = client.nodes(), client.instances()
        assert node.memory
        assert node.memory.capacity_bytes == INSTANCES * MIB
        assert 2 <= len(found) < WANTED
        assert sum(one.own_bytes for one in found) == node.memory.used_bytes
        assert node.memory.used_bytes <= node.memory.capacity_bytes
        for one in found:
            private = psutil.Process(one.worker_pid).memory_full_info().uss
            assert one.own_bytes == pytest.approx(private, abs=8 * MIB)
