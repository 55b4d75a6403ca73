"""vLLM's own server, from nothing to its first token."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

TIMEOUT_SECONDS = 300.0


def serve_cold_start(model: Path, log: Path) -> float:
    """Seconds from its start, as its users start it, to the first token that it gives.

    Raises:
        RuntimeError: It ended, or gave none in time; with the last line that it wrote.
    """
    port = _free_port()
    began = time.perf_counter()
    # `vllm serve` by its module: the command itself asks for a package of the name vllm.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    # It would take nine tenths of the memory for itself, which others use here.
    options = ["--port", str(port), "--max-model-len", "512", "--gpu-memory-utilization", "0.2"]
    with log.open("w") as output:
        server = subprocess.Popen([*command, *options], stdout=output, stderr=output)
        try:
            while time.perf_counter() - began < TIMEOUT_SECONDS and server.poll() is None:
                with suppress(urllib.error.URLError, ConnectionError):
                    _one_token(port, model)
                    return time.perf_counter() - began
                time.sleep(0.05)
        finally:
            server.terminate()
            server.wait(TIMEOUT_SECONDS)
    lines = log.read_text().strip().splitlines()
    raise RuntimeError(lines[-1] if lines else "it has written nothing")


def _one_token(port: int, model: Path) -> None:
    body = {"model": str(model), "prompt": [5, 6, 7], "max_tokens": 1, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        response.read()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
