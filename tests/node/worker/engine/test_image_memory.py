"""What images are foretold to take in a worker is what they take."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.node.worker.engines import needs_vllm
from tests.vision import make_seeing_model


@needs_vllm
@pytest.mark.timeout(300)
def test_images_take_no_more_than_is_foretold(tmp_path: Path) -> None:
    directory = make_seeing_model(
        tmp_path / "model", side=256, context=4096, hidden_size=256, intermediate_size=1024
    )
    command = [sys.executable, "-m", "tests.node.worker.engine.image_memory", str(directory)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    for line in done.stdout.splitlines()[-2:]:
        taken, foretold = map(int, line.split())
        assert taken < foretold < 4 * taken, done.stdout + done.stderr
