"""What someone types first, against a real cluster."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sllm import errors
from tests.e2e.cluster import Cluster
from tests.processes import started

SLLM = (sys.executable, "-m", "sllm.cli.main")
TINY = Path(__file__).parents[2] / "examples" / "tiny-llama"
TIMEOUT = 60

COME_AND_GONE = {("DEPLOYMENT", "ADDED"), ("DEPLOYMENT", "GONE"), ("INSTANCE", "GONE")}


def test_run_leaves_nothing_behind_and_events_tell_of_it(cluster: Cluster) -> None:
    environment = {**os.environ, "SLLM_CONTROL": cluster.control.address}
    with started((*SLLM, "events", "--json"), env=environment, stderr=subprocess.PIPE) as events:
        assert events.stdout
        assert events.stderr
        assert events.stderr.readline().startswith("following 2 nodes, 0 instances")
        command = (*SLLM, "run", str(TINY), "Once", "--max-tokens=8", "--engine=transformers")
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, check=False, env=environment
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip()
        kinds, name = set[tuple[str, str]](), ""
        while not kinds >= COME_AND_GONE:
            one = json.loads(events.stdout.readline())
            told = one["kind"], one["what"]
            name = name or (one["name"] if told == ("DEPLOYMENT", "ADDED") else "")
            if name and one["name"].startswith(name):  # others may be leaving yet
                kinds.add(told)
        events.send_signal(signal.SIGINT)
        assert events.wait(TIMEOUT) == 0
    assert cluster.client.deployments() == []


def test_receipts_are_kept_for_those_who_ask_later(cluster: Cluster) -> None:
    cluster.client.deploy("kept", TINY, engine="transformers")
    first = cluster.client.complete("kept", "Once", max_tokens=2, request_id="r-kept")
    assert cluster.client.receipt().receipt == first.receipt
    cluster.client.complete("kept", "Once", max_tokens=2)
    found = cluster.client.receipt("r-kept")
    assert (found.request_id, found.deployment) == ("r-kept", "kept")
    assert found.receipt == first.receipt
    cluster.client.delete("kept")
    with pytest.raises(errors.RequestNotFound):
        cluster.client.receipt("nobody")
