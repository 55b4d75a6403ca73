"""What is foretold of an instance's own memory is what it takes."""

import subprocess
import sys
from pathlib import Path

import pytest
from make_models import make_model

from sllm.checkpoint.format.manifest import TensorEntry
from sllm.node.instances.private_memory import PrivateMemory, private_memory
from tests.node.worker.engines import needs_vllm

_MEASURE = """
import sys
from pathlib import Path
from sllm.checkpoint.importing.import_plan import plan_import
from sllm.checkpoint.sources.sources import LocalSource, inspect
from sllm.node.instances.private_memory import private_memory
from sllm.node.worker.engine.interface import Capacity, EngineRequest
from sllm.sampling import Sampling
from tests.node.worker.engines import make_engine, running

def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

def serve(directory):
    engine = make_engine("vllm", directory, Capacity(kv_tokens=2048, max_requests=16))
    with running(engine) as harness:
        asked = [
            EngineRequest(str(n), (5, 6, 7 + n), Sampling(seed=n), 8) for n in range(16)
        ]
        harness.generate(asked)
        return anonymous()

small, model = map(Path, sys.argv[1:])
before = serve(small)  # all is imported by now
plan = plan_import(inspect(LocalSource(model)), None)
foretold = private_memory("vllm", plan.tensors, 1024)
of_16 = foretold.bytes + 16 * foretold.bytes_per_request
print(serve(model) - before, of_16, plan.tensor_bytes)
"""


@needs_vllm
@pytest.mark.timeout(300)
def test_an_instance_takes_no_more_than_is_foretold(tmp_path: Path) -> None:
    small, model = (make_model(name, tmp_path / name) for name in ("tiny-llama", "small-llama"))
    command = [sys.executable, "-c", _MEASURE, str(small), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken, foretold, weights = map(int, done.stdout.split()[-3:])
    assert weights < taken < foretold
    assert foretold < 2 * weights + (72 << 20)


BUFFERS = 64 << 20
VOCABULARY = 1000
EXPERTS = "model.layers.0.mlp.experts."


def entries(*tensors: tuple[str, tuple[int, ...], str]) -> list[TensorEntry]:
    """Tensors side by side, in this order."""
    found, offset = [], 0
    for name, shape, dtype in tensors:
        size = (4 if dtype == "F32" else 2) * shape[0] * (shape[1] if len(shape) > 1 else 1)
        found.append(TensorEntry(name, dtype, shape, 0, offset, size))
        offset += size
    return found


def test_vllm_copies_weights_in_the_dtype_that_most_have_and_embeddings_twice() -> None:
    tensors = entries(
        ("embed", (VOCABULARY, 64), "BF16"),
        ("q", (64, 64), "BF16"),
        ("norm", (64,), "F32"),
        ("ids", (64,), "I64"),
    )
    embeddings, others = 2 * 64 * VOCABULARY, 2 * 64 * 64 + 2 * 64 + 2 * 64
    foretold = private_memory("vllm", tensors, VOCABULARY)
    # The embeddings are also the largest that is under way.
    assert foretold == PrivateMemory(3 * embeddings + others + BUFFERS, 16 * VOCABULARY)


def test_int4_weights_are_taken_apart_before_they_are_put_in_order() -> None:
    tensors = entries(
        ("embed", (VOCABULARY, 64), "BF16"), ("down.weight_packed", (64, 2000), "I16")
    )
    embeddings, packed = 2 * 64 * VOCABULARY, 2 * 64 * 2000
    foretold = private_memory("vllm", tensors, VOCABULARY)
    assert foretold.bytes == 2 * embeddings + packed + 24 * packed + BUFFERS


def test_each_further_process_takes_scratch_of_its_own_and_all_logits() -> None:
    tensors = entries(("embed", (VOCABULARY, 64), "BF16"))
    alone = private_memory("vllm", tensors, VOCABULARY)
    of_four = private_memory("vllm", tensors, VOCABULARY, ranks=4)
    assert of_four.bytes == alone.bytes + 3 * (BUFFERS + (64 << 20))
    assert of_four.bytes_per_request == 4 * alone.bytes_per_request


def test_vllm_makes_one_parameter_of_all_experts_of_a_layer() -> None:
    names = [f"{EXPERTS}{n}.{part}.weight" for n in range(4) for part in ("gate_proj", "up_proj")]
    tensors = entries(("q", (64, 64), "BF16"), *((name, (64, 32), "BF16") for name in names))
    fused = 8 * 2 * 64 * 32
    foretold = private_memory("vllm", tensors, VOCABULARY)
    assert foretold.bytes == 2 * 64 * 64 + 2 * fused + BUFFERS


def test_transformers_copies_experts_that_lie_apart_and_nothing_else() -> None:
    parts = [f"{n}.{part}" for n in range(2) for part in ("gate_proj", "up_proj", "down_proj")]
    apart = entries(
        ("q", (64, 64), "BF16"), *((f"{EXPERTS}{part}.weight", (64, 32), "BF16") for part in parts)
    )
    foretold = private_memory("transformers", apart, VOCABULARY)
    assert foretold == PrivateMemory(6 * 2 * 64 * 32, 16 * VOCABULARY)
    in_order = [parts[index] for index in (0, 1, 3, 4, 2, 5)]
    joined = entries(*((f"{EXPERTS}{part}.weight", (64, 32), "BF16") for part in in_order))
    assert private_memory("transformers", joined, VOCABULARY).bytes == 0
    assert private_memory("transformers", apart[:1], VOCABULARY).bytes == 0
    assert private_memory("transformers", joined, 0) == PrivateMemory(0), "it gives no logits"
