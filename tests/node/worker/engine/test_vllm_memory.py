"""What is foretold of an instance's own memory is what it takes."""

import subprocess
import sys
from pathlib import Path

import pytest
from make_models import make_model

from tests.node.worker.engines import needs_vllm

_MEASURE = """
import sys
from pathlib import Path
from safetensors.torch import load_file
from sllm.node.worker.engine.interface import Capacity, EngineRequest
from sllm.node.worker.engine.vllm.memory import Tensor, private_bytes
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
weights = load_file(model / "model.safetensors").values()
tensors = [Tensor(tuple(one.shape), one.nbytes) for one in weights]
print(serve(model) - before, private_bytes(tensors, 1024, 16), sum(one.bytes for one in tensors))
"""


@needs_vllm
@pytest.mark.timeout(300)
def test_an_instance_takes_no_more_than_is_foretold(models: Path, tmp_path: Path) -> None:
    model = make_model("small-llama", tmp_path / "model")
    command = [sys.executable, "-c", _MEASURE, str(models / "tiny-llama"), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken, foretold, weights = map(int, done.stdout.split()[-3:])
    assert weights < taken < foretold
    assert foretold < 2 * weights + (72 << 20)
