"""How a node agent is set up."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from sllm import bounds, machine
from sllm.checkpoint.sources.policy import SourcePolicy
from sllm.config import format_bytes
from sllm.errors import InvalidArgument
from sllm.node.instances.launching import SOCKET_NAME
from sllm.node.instances.watchdog import Patience
from sllm.node.worker.backends.names import ENGINES, TRANSFORMERS, VLLM, installed

MIB = 1024 * 1024
READ_THREADS = 4
FETCH_THREADS = 8
MAX_SOCKET_PATH = 107
"""Bytes. sizeof(sockaddr_un.sun_path) - 1; see unix(7)."""
_HOW_TO_INSTALL = {
    TRANSFORMERS: "install sllm with what it needs",
    VLLM: "tools/install-vllm installs it for processors",
}
OWN_BYTES = 384 * MIB
"""What the agent (58 MiB) and a zygote (266 MiB) take for themselves, with some room."""
VLLM_BYTES = 640 * MIB
"""What the zygote of vLLM takes beside."""
INSTANCE_BYTES = 64 * MIB
"""What an instance takes beside pool, KV cache and copies of its own, where none was measured: 27
MiB with a small model at rest, 48 MiB with one at work."""
_KERNEL_CACHES = {
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "CUDA_CACHE_PATH": "cuda",
}
_EVERY_INTERFACE = ("0.0.0.0", "[::]")


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Everything that `sllm node` can be told."""

    control_address: str
    """host:port of the control plane; of each, separated by commas, where there are several."""
    directory: Path
    """Where the SSD tier and the workers' sockets are; made if it is not there, if it can be."""
    listen_address: str = "127.0.0.1:0"
    """host:port to serve on; port 0 takes any that is free."""
    advertise_host: str | None = None
    """Host under which others reach this node. None: the host of `listen_address`."""
    node_id: str | None = None
    """Unique in the cluster. None: kept in `directory`, made at the first start."""
    dram_bytes: int | None = None
    """Size of the pool of weights. None: 4 GiB, or less where there is little memory."""
    ssd_bytes: int = 64 * 1024 * MIB
    """Budget of the SSD tier."""
    kv_bytes: int | None = None
    """Budget for the KV caches of all instances together; on accelerators, of those on each, of
    which it is a part. None: 2 GiB, or less where there is little memory; and on each accelerator
    what weights leave."""
    kv_cache_dram_bytes: int = 0
    """Of the pool, what pages of KV caches may have that outlive their instances; weights come
    first. 0: none are kept."""
    kv_cache_ssd_bytes: int = 0
    """The same of the SSD tier. 0: none are kept there."""
    kv_cache_int8: bool = False
    """Whether they are kept with eight bits a number: half as large, and tokens may differ."""
    memory_bytes: int = field(default_factory=machine.memory_bytes)
    """What the node may take altogether. By default all that the machine and the cgroup let it."""
    device: str = "auto"
    """What kernels run on: "cpu", "cuda", "cuda:0,1" or "auto": CUDA devices if there are any."""
    device_reserve_bytes: int = 4096 * MIB
    """Of each device's memory, for what workers take beside weights and KV caches."""
    huge_pages: bool = True
    """Whether the pool lies in huge pages where the kernel gives them."""
    chunk_bytes: int = 16 * MIB
    """Size of a chunk, the unit of every transfer."""
    read_threads: int = field(default_factory=lambda: machine.threads(READ_THREADS))
    """Threads that read from SSD into the pool."""
    fetch_threads: int = field(default_factory=lambda: machine.threads(FETCH_THREADS))
    """Threads that fill chunks from sources. Each has a chunk of memory of its own at most, beside
    the pool."""
    run_directory: Path | None = None
    """Where the workers' sockets are. None: in `directory`."""
    engines: tuple[str, ...] = field(default_factory=installed)
    """What instances can run on, the one that is preferred first. By default what is installed."""
    ready_made_bytes: int | None = 64 * MIB
    """Size from which a model's weights are made ready for their engine and kept so, beside what
    is published. None: never."""
    early_starts: bool = True
    """Whether an instance that runs its model layer by layer takes requests before all of its
    weights have been read from SSD; each layer waits for its own."""
    peers: bool = True
    """Whether what other nodes have of a checkpoint is had from them, and not from its source."""
    kernel_cache: Path | None = None
    """Where engines keep what they have compiled; nodes may share it. None: where their libraries
    keep it, in the user's home."""
    sources: SourcePolicy = field(default_factory=SourcePolicy)
    """Which sources may be read, and what opens them."""
    patience: Patience = field(default_factory=Patience)
    """How long a worker that has requests may be silent before it is ended."""
    leave_seconds: float = 10.0
    """Time that running requests have to go on elsewhere when this node is asked to end."""
    zone: str = ""
    """Part of the cluster that this node is in. Empty: nobody says."""
    probe_port: int | None = None
    """Port on which the health service alone is served, in the clear. None: on none."""
    metrics_port: int | None = None
    """Port for Prometheus; 0 takes any that is free. None: no metrics are served."""
    tls: Path | None = None
    """Directory with this node's tls.crt and tls.key and the cluster's ca.crt. None: it meets the
    others in the clear."""
    insecure: bool = False
    """Whether it may listen beyond this machine in the clear."""

    @property
    def control_addresses(self) -> tuple[str, ...]:
        """Of all control planes: the node reports to each."""
        return tuple(self.control_address.split(","))

    @property
    def pool_bytes(self) -> int:
        """The size of the pool."""
        if self.dram_bytes is not None:
            return self.dram_bytes
        return min(4096 * MIB, max(0, self._spare_bytes - (self.kv_bytes or 0)) // 2)

    @property
    def pool_kv_bytes(self) -> int:
        """The budget for KV caches where the pool is the device."""
        if self.kv_bytes is not None:
            return self.kv_bytes
        return min(2048 * MIB, max(0, self._spare_bytes - self.pool_bytes) // 2)

    @property
    def own_bytes(self) -> int:
        """What the agent and its zygotes take for themselves."""
        return OWN_BYTES + (VLLM_BYTES if VLLM in self.engines else 0)

    @property
    def _spare_bytes(self) -> int:
        """What the node itself and one instance leave of the memory."""
        return self.memory_bytes - self.own_bytes - INSTANCE_BYTES

    def instances_bytes(self, kv_bytes: int) -> int:
        """What is left for instances to take for themselves, beside so much for KV caches."""
        return max(0, self.memory_bytes - self.own_bytes - self.pool_bytes - kv_bytes)

    def check_memory(self, *, on_devices: bool) -> None:
        """Refuses what the memory cannot hold: the kernel would end a process again and again.

        Args:
            on_devices: Whether KV caches are in the memory of accelerators.

        Raises:
            InvalidArgument: With the numbers, and what to do.
        """
        kv_bytes = 0 if on_devices else self.pool_kv_bytes
        if self.instances_bytes(kv_bytes) >= INSTANCE_BYTES and self.pool_bytes >= self.chunk_bytes:
            return
        parts = (
            (self.pool_bytes, "for weights (--dram)"),
            (kv_bytes, "for KV caches (--kv)"),
            (self.own_bytes, "for the node itself"),
            (INSTANCE_BYTES, "for an instance"),
        )
        named = ", ".join(f"{format_bytes(size)} {what}" for size, what in parts if size)
        raise InvalidArgument(
            f"{named}: that does not fit the {format_bytes(self.memory_bytes)} of memory that this "
            "node may take, of the machine or as its cgroup limits it; ask for less, or allow more"
        )

    def check(self) -> None:
        """Refuses addresses and engines that cannot work, and more memory than there is.

        Raises:
            InvalidArgument: Says what, and what to do.
        """
        self._check_engines()
        bounds.zone(self.zone, "--zone")
        self._check_kept()
        host = self.listen_address.rpartition(":")[0]
        if host in _EVERY_INTERFACE and self.advertise_host is None:
            raise InvalidArgument(
                f"a node that listens on {host}, every interface, must be told under which host "
                "others reach it (--advertise)"
            )
        if self.memory_bytes > (most := machine.memory_bytes()):
            raise InvalidArgument(
                f"{format_bytes(self.memory_bytes)} of memory for the node (--memory): its machine "
                f"or its cgroup lets it take {format_bytes(most)}; ask for less, or allow more"
            )

    def _check_engines(self) -> None:
        unknown = [name for name in self.engines if name not in ENGINES]
        if unknown or not self.engines or len(set(self.engines)) != len(self.engines):
            raise InvalidArgument(
                f"engines {', '.join(self.engines) or 'are none'}: name each once, of "
                f"{', '.join(ENGINES)} (--engines)"
            )
        if missing := [name for name in self.engines if name not in installed()]:
            raise InvalidArgument(
                f"engine {missing[0]} is not installed here: {_HOW_TO_INSTALL[missing[0]]}, or it "
                "can be left out (--engines)"
            )

    def _check_kept(self) -> None:
        kept, chunk = self.kv_cache_dram_bytes, self.chunk_bytes
        if 0 < kept < chunk or kept > self.pool_bytes:
            raise InvalidArgument(
                f"{format_bytes(kept)} for KV caches to keep (--kv-cache-dram): they are kept in "
                f"the memory for weights, of {format_bytes(self.pool_bytes)} (--dram), and take "
                f"{format_bytes(chunk)} at least"
            )
        if self.kv_cache_ssd_bytes and not kept:
            raise InvalidArgument(
                "KV caches are kept on disk (--kv-cache-ssd) by way of memory, of which they have "
                "none: give them some (--kv-cache-dram)"
            )
        if self.kv_cache_ssd_bytes > self.ssd_bytes:
            raise InvalidArgument(
                f"{format_bytes(self.kv_cache_ssd_bytes)} of disk for KV caches (--kv-cache-ssd): "
                f"they are part of the {format_bytes(self.ssd_bytes)} for checkpoints (--ssd)"
            )

    @property
    def kernel_variables(self) -> dict[str, str]:
        """What tells the engines' libraries of `kernel_cache`.

        Each finds its own by digests of its version, the model's shape and the device.
        """
        if self.kernel_cache is None:
            return {}
        root = self.kernel_cache.absolute()
        return {name: str(root / part) for name, part in _KERNEL_CACHES.items()}

    @property
    def checkpoint_dir(self) -> Path:
        """The SSD tier."""
        return self.directory / "checkpoints"

    @property
    def socket_dir(self) -> Path:
        """The workers' sockets."""
        return self.run_directory or self.directory / "run"

    @property
    def sockets_fit(self) -> bool:
        """Whether the paths of workers' sockets are short enough for the kernel."""
        longest = self.socket_dir.absolute() / f"{'x' * SOCKET_NAME}.sock"
        return len(os.fsencode(longest)) <= MAX_SOCKET_PATH
