"""The operator between a real cluster and a server that speaks Kubernetes' API."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
from make_models import make_model

from tests.adapters import make_adapter
from tests.e2e.cluster import Cluster, running
from tests.kubernetes.api_server import NAMESPACE, ApiServer
from tests.processes import started
from tests.support import wait_until

MODELS, ADAPTERS = "modeldeployments", "adapters"
TIMEOUT = 60.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("operated")
    with running(directory, nodes=1, dram_mib=64, kv_mib=64) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("tiny-llama", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    server = ApiServer()
    with server.serving(tmp_path):
        yield server


@contextmanager
def operating(cluster: Cluster, directory: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "sllm.cli.main", "operator", f"--namespace={NAMESPACE}"]
    environment = {**os.environ, "KUBECONFIG": str(directory / "kubeconfig")}
    with ExitStack() as stack:
        log = stack.enter_context((directory / "operator.log").open("a"))
        command.append(f"--control={cluster.control.address}")
        process = stack.enter_context(started(command, env=environment, stderr=log))
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT) == 0, (directory / "operator.log").read_text()


def is_refused(api: ApiServer, name: str, reason: str) -> bool:
    accepted = api.condition(MODELS, name, "Accepted")
    return (accepted.get("status"), accepted.get("reason")) == ("False", reason)


def is_gone(api: ApiServer, name: str) -> bool:
    return api.get(MODELS, name) is None


def names(cluster: Cluster) -> list[str]:
    return [one.name for one in cluster.client.deployments()]


def test_resources_become_deployments_and_are_told_of_them(
    cluster: Cluster, api: ApiServer, model: Path, tmp_path: Path
) -> None:
    with operating(cluster, tmp_path):
        api.apply(MODELS, "tiny", {"source": str(model), "kvCacheTokens": 64, "maxAdapters": 1})
        wait_until(lambda: api.status(MODELS, "tiny").get("state") == "AVAILABLE", TIMEOUT)
        assert api.condition(MODELS, "tiny", "Accepted")["status"] == "True"
        assert api.condition(MODELS, "tiny", "Available")["reason"] == "Available"
        assert cluster.client.complete("tiny", "a", max_tokens=1).usage.completion_tokens == 1
        wait_until(lambda: api.status(MODELS, "tiny")["readyInstances"] == 1, TIMEOUT)

        scaling = {"keepAliveSeconds": 7, "maxReplicas": 2}
        spec = {"source": str(model), "kvCacheTokens": 64, "maxAdapters": 1, "scaling": scaling}
        api.apply(MODELS, "tiny", spec)
        wait_until(lambda: cluster.client.deployment("tiny").keep_alive == 7.0, TIMEOUT)
        assert cluster.client.deployment("tiny").max_replicas == 2

        api.apply(
            ADAPTERS,
            "tuned",
            {"base": "tiny", "source": str(make_adapter(model, tmp_path / "lora"))},
        )
        wait_until(lambda: api.status(ADAPTERS, "tuned").get("state") == "AVAILABLE", TIMEOUT)
        api.delete(MODELS, "tiny")  # waits for what is over it
        api.delete(ADAPTERS, "tuned")
        wait_until(lambda: api.get(ADAPTERS, "tuned") is None, TIMEOUT)
        wait_until(lambda: api.get(MODELS, "tiny") is None, TIMEOUT)
        assert names(cluster) == []


def test_what_is_refused_says_why_and_ends_nothing_of_others(
    cluster: Cluster, api: ApiServer, model: Path, tmp_path: Path
) -> None:
    cluster.client.deploy("taken", model, kv_cache_tokens=64)
    other = make_model("tiny-llama", tmp_path / "other", seed=1)
    with operating(cluster, tmp_path):
        api.apply(MODELS, "taken", {"source": str(other)})
        api.apply(MODELS, "absent", {"source": "/nowhere"})
        for name, reason in {"taken": "DeploymentExists", "absent": "SourceNotFound"}.items():
            refused = partial(is_refused, api, name, reason)
            wait_until(refused, TIMEOUT)
            assert api.status(MODELS, name)["state"] == "REFUSED"
            api.delete(MODELS, name)
            wait_until(partial(is_gone, api, name), TIMEOUT)
    assert names(cluster) == ["taken"]
    cluster.client.delete("taken")


def test_a_deployment_is_kept_over_restarts_and_made_again_if_it_is_taken_away(
    cluster: Cluster, api: ApiServer, model: Path, tmp_path: Path
) -> None:
    spec = {"source": str(model), "kvCacheTokens": 64}
    with operating(cluster, tmp_path):
        api.apply(MODELS, "kept", spec)
        wait_until(lambda: api.status(MODELS, "kept").get("state") == "AVAILABLE", TIMEOUT)
        cluster.client.delete("kept")
        wait_until(lambda: "kept" in names(cluster), TIMEOUT)
    assert names(cluster) == ["kept"]
    api.delete(MODELS, "kept")  # while nobody looks
    assert api.get(MODELS, "kept")
    with operating(cluster, tmp_path):
        wait_until(lambda: api.get(MODELS, "kept") is None, TIMEOUT)
    assert names(cluster) == []
