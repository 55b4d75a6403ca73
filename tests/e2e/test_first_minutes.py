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

COME = {("DEPLOYMENT", "ADDED"), ("INSTANCE", "READY")}
GONE = {("DEPLOYMENT", "GONE"), ("INSTANCE", "GONE")}


def test_run_leaves_nothing_behind(cluster: Cluster) -> None:
    command = (*SLLM, "run", str(TINY), "Once", "--max-tokens=8", "--engine=transformers")
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT, check=False, env=at(cluster)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
    assert cluster.client.deployments() == []


def test_events_tell_what_comes_and_goes(cluster: Cluster) -> None:
    command = (*SLLM, "events", "--json")
    with started(command, env=at(cluster), stderr=subprocess.PIPE) as events:
        assert events.stderr
        assert events.stderr.readline().startswith("following 2 nodes, ")
        cluster.client.deploy("seen", TINY, engine="transformers", min_replicas=1)
        read_until(events, "seen", COME)
        cluster.client.delete("seen")
        read_until(events, "seen", GONE)
        events.send_signal(signal.SIGINT)
        assert events.wait(TIMEOUT) == 0


def at(cluster: Cluster) -> dict[str, str]:
    return {**os.environ, "SLLM_CONTROL": cluster.control.address}


def read_until(events: subprocess.Popen[str], name: str, kinds: set[tuple[str, str]]) -> None:
    """Reads what is told of a deployment and its instances; others may come and go meanwhile."""
    assert events.stdout
    missing = set(kinds)
    while missing:
        one = json.loads(events.stdout.readline())
        if one["name"] == name or one["name"].startswith(f"{name}-"):
            missing.discard((one["kind"], one["what"]))


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
