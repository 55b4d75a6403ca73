"""What the simulated cluster is made of, and where the numbers are from.

The test bed is that of the ServerlessLLM paper's cluster experiments (Fu et al., OSDI '24,
section 7.1): servers with four NVIDIA A40, 512 GB of DRAM and one 2 TB NVMe SSD on PCIe 4.0.
"""

from dataclasses import dataclass

GB = 1000**3

A40_BYTES = 48 * GB
"""Memory of one A40 (NVIDIA's data sheet)."""
A40_BYTES_PER_SECOND = 696 * GB
"""Its memory bandwidth (the same)."""
A40_FLOPS = 149.7e12
"""Its dense fp16 tensor operations per second (the same)."""

DECODE_EFFICIENCY = 0.6
"""Share of the memory bandwidth that decoding one sequence reaches; a usual figure of engines."""
PREFILL_EFFICIENCY = 0.4
"""Share of the peak that a prefill of some hundred tokens reaches; a usual figure of engines."""


@dataclass(frozen=True, slots=True)
class Server:
    """One server; all in a cluster are alike."""

    gpus: int = 4
    gpu_bytes: int = A40_BYTES
    dram_bytes: int = 400 * GB
    """The pinned pool, of 512 GB: it holds less than a third of all models."""
    ssd_bytes: int = 2000 * GB
    ssd_bytes_per_second: float = 5.0 * GB
    """SSD to pool: one NVMe drive on four lanes of PCIe 4.0 (7 GB/s at the very most)."""
    remote_bytes_per_second: float = 1.25 * GB
    """From afar to SSD: 10 Gbit/s Ethernet."""
    pcie_bytes_per_second: float = 25.0 * GB
    """Pool to one GPU: pinned memory over 16 lanes of PCIe 4.0 (31.5 GB/s raw)."""
    init_seconds: float = 0.2
    """Weights in place to ready instance: fork, module, engine; docs/benchmarks.md, rounded up."""


@dataclass(frozen=True, slots=True)
class Model:
    """A size of OPT in fp16, on A40s."""

    name: str
    parameters: float
    gpus: int = 1
    """It has them to itself."""
    layers: int = 0
    hidden: int = 0
    """Size of a hidden state."""

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of a token: two vectors of a hidden state's size for each layer."""
        return 2 * 2 * self.layers * self.hidden

    @property
    def size_bytes(self) -> int:
        """Two bytes for each parameter."""
        return round(2 * self.parameters)

    @property
    def seconds_per_token(self) -> float:
        """Of decoding: every weight is read once, from all its GPUs at a time."""
        bandwidth = self.gpus * DECODE_EFFICIENCY * A40_BYTES_PER_SECOND
        return self.size_bytes / bandwidth

    @property
    def prefill_seconds_per_token(self) -> float:
        """Of computing the KV cache: two operations for each parameter."""
        return 2 * self.parameters / (self.gpus * PREFILL_EFFICIENCY * A40_FLOPS)


OPT_6_7B = Model("opt-6.7b", 6.66e9, layers=32, hidden=4096)
OPT_13B = Model("opt-13b", 12.85e9, layers=40, hidden=5120)
OPT_30B = Model("opt-30b", 29.97e9, gpus=2, layers=48, hidden=7168)
REPLICAS = {OPT_6_7B: 32, OPT_13B: 16, OPT_30B: 8}
"""How many distinct models there are of each size (the paper's section 7.3)."""

STORE_BYTES_PER_SECOND = 1.25 * GB
"""What an object store on one server gives to all others together, over 10 Gbit/s Ethernet."""

MIGRATION_SECONDS = 0.1
"""b: what a migration or a resumption takes besides computing the KV cache again."""
