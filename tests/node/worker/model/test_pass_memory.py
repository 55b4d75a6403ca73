"""What a pass over texts is foretold to take is what it takes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.encoders import make_encoder

_MEASURE = """
import sys
import threading
from pathlib import Path
from sllm.embedding.purpose import PASS_TOKENS
from sllm.node.worker.engine.encoder import Batches, Encodable, pooling_of
from sllm.node.worker.model.description import describe, load_architecture

def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def watch() -> None:
    while not done.wait(0.001):
        seen.append(resident())

architecture = load_architecture(Path(sys.argv[1]))
described = describe(architecture, None)
model = architecture.made(architecture.config).eval()
batches = Batches(model, pooling_of(described.purpose))
length = described.context_tokens
batches.compute([Encodable(tuple(range(3, 8)))])
before, seen, done = resident(), [0], threading.Event()
watching = threading.Thread(target=watch)
watching.start()
for _ in range(3):
    batches.compute([Encodable((7,) * length)] * (PASS_TOKENS // length))
done.set()
watching.join()
print(max(seen) - before, PASS_TOKENS * described.kv_bytes_per_token)
"""


@pytest.mark.parametrize(
    "kind", ["bert", pytest.param("modernbert", marks=pytest.mark.nightly), "deberta-v2"]
)
def test_a_pass_takes_no_more_than_is_foretold(tmp_path: Path, kind: str) -> None:
    config: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_attention_heads": 8,
        "max_position_embeddings": 512,
    }
    directory = make_encoder(kind, tmp_path / "model", pooling="cls_token", **config)
    command = [sys.executable, "-c", _MEASURE, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken, foretold = map(int, done.stdout.split()[-2:])
    assert taken < foretold < 8 * taken
