"""What deploy/ has for Kubernetes: rendered by Helm, held against Kubernetes' schemas and ours."""

import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate
import pytest
import typer.main
import yaml

from sllm import AsyncClient
from sllm.cli.app import app
from sllm.gateway import metrics as gateway_metrics
from sllm.kubernetes import resources
from tests.kubernetes.api_server import crd, schema

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
TIMEOUT = 120
OLDEST, NEWEST = "1.27", "1.37"
NOT_KUBERNETES: Final = ("monitoring.coreos.com/v1", "cert-manager.io/v1", "keda.sh/v1alpha1")

Json = dict[str, Any]

ACCEPTED: dict[str, Json] = {
    "nothing said": {},
    "everything on": {
        "tls": {"certManager": {"enabled": True, "issuerRef": {"name": "own"}}},
        "image": {"pullSecrets": [{"name": "registry"}]},
        "node": {
            "device": "cuda",
            "gpus": 2,
            "dram": "8GiB",
            "kv": "4GiB",
            "engines": "vllm",
            "sources": '[[source]]\nurl = "hf://Qwen"\nsecrets.token = "/run/secrets/hub/token"\n',
            "allowPrivateSources": True,
            "sourceSecrets": ["hub"],
            "modelPaths": ["/models"],
            "zoneFromTopology": True,
            "extraArgs": ["--threads=8"],
            "env": [{"name": "HF_ENDPOINT", "value": "https://hub.example.com"}],
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        },
        "control": {"zoneLinks": ["edge:cloud=40ms"]},
        "gateway": {"httpsSecret": "public-tls", "autoscaling": {"enabled": False}, "zone": "edge"},
        "operator": {"keySecret": "operator-key"},
        "networkPolicies": {"callers": [{"podSelector": {"matchLabels": {"calls": "models"}}}]},
        "monitoring": {"enabled": True, "dashboard": {"enabled": True}},
    },
    "several control planes": {
        "control": {"replicas": 3, "store": "etcd://etcd:2379/sllm", "etcdSecret": "etcd-tls"},
    },
    "scaled by KEDA": {
        "gateway": {"autoscaling": {"keda": {"enabled": True, "serverAddress": "http://prom:9090"}}}
    },
    "metrics where callers are": {"gateway": {"metricsPort": 0}, "monitoring": {"enabled": True}},
    "in the clear, and little of it": {
        "tls": {"enabled": False},
        "gateway": {"enabled": False},
        "operator": {"enabled": False},
        "networkPolicies": {"enabled": False},
        "podDisruptionBudgets": {"enabled": False},
    },
}
REFUSED: dict[str, tuple[Json, str]] = {
    "two on one SQLite file": ({"control": {"replicas": 2}}, "need control.store"),
    "certificates of nobody": ({"tls": {"certManager": {"enabled": True}}}, "issuerRef.name"),
    "an unknown value": ({"nodes": {}}, "nodes"),
    "no size": ({"node": {"ssd": "much"}}, "ssd"),
    "no zone": ({"node": {"zone": "a b"}}, "zone"),
    "no link of zones": ({"control": {"zoneLinks": ["edge=1s"]}}, "zoneLinks"),
    "no device": ({"node": {"device": "tpu"}}, "device"),
    "a relative path": ({"node": {"hostPath": "data"}}, "hostPath"),
    "KEDA without figures": (
        {"gateway": {"autoscaling": {"keda": {"enabled": True}}}},
        "serverAddress says where",
    ),
    "another store": ({"control": {"store": "redis://x"}}, "store"),
}


@cache
def outcomes() -> dict[str, Json]:
    """What Helm makes of each of the values above."""
    values = {**ACCEPTED, **{name: given for name, (given, _) in REFUSED.items()}}
    done = subprocess.run(
        [sys.executable, "-m", "tests.deploy_rendering"],
        input=json.dumps(list(values.values())),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=TIMEOUT,
        check=True,
    )
    return dict(zip(values, json.loads(done.stdout), strict=True))


def documents(name: str) -> list[Json]:
    texts = [
        text
        for template, text in outcomes()[name]["manifests"].items()
        if not template.endswith("NOTES.txt")
    ]
    return [one for text in texts for one in yaml.safe_load_all(text) if one]


def pods(name: str) -> Iterator[tuple[str, Json]]:
    for one in documents(name):
        if one["kind"] == "Pod":
            yield "test", one["spec"]
        elif "template" in one.get("spec", {}):
            labels = one["spec"]["selector"]["matchLabels"]
            yield labels["app.kubernetes.io/component"], one["spec"]["template"]["spec"]


@pytest.mark.parametrize("name", ACCEPTED)
def test_helm_renders_it_and_has_nothing_to_say(name: str) -> None:
    assert "error" not in outcomes()[name], outcomes()[name]
    assert not [one for one in outcomes()[name]["lint"] if "icon" not in str(one)]
    found = [(one["kind"], one["metadata"]["name"]) for one in documents(name)]
    assert len(found) == len(set(found))


@pytest.mark.parametrize("name", REFUSED)
def test_values_that_make_no_sense_are_refused(name: str) -> None:
    assert REFUSED[name][1] in outcomes()[name]["error"]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_rendered_is_kubernetes_own(name: str, version: str) -> None:
    for one in documents(name):
        if one["apiVersion"] not in NOT_KUBERNETES:
            kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_command_line_takes_what_containers_are_given(name: str) -> None:
    commands = typer.main.get_command(app)
    tried = set()
    for part, pod in pods(name):
        for container in pod["containers"]:
            if "command" in container:
                continue
            command, *arguments = container["args"]
            with commands.make_context("sllm", [command], resilient_parsing=True) as context:
                found = commands.get_command(context, command)  # type: ignore[attr-defined]
                assert found, command
                given = [one for one in arguments if not one.startswith("--sources")]
                found.make_context(command, given, parent=context)
            tried.add(part)
    assert {"control", "node"} <= tried


@pytest.mark.parametrize("name", ACCEPTED)
def test_pods_may_do_little(name: str) -> None:
    for part, pod in pods(name):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is (part == "operator")
        for container in pod["containers"]:
            may = container["securityContext"]
            assert not may["allowPrivilegeEscalation"]
            assert may["readOnlyRootFilesystem"]
            assert may["capabilities"] == {"drop": ["ALL"]}
        initial = {one["name"] for one in pod.get("initContainers", ())}
        assert initial <= {"own-directory"}, "the one that is root, to give a directory away"


@pytest.mark.parametrize("name", ACCEPTED)
def test_pods_end_in_order_within_their_grace(name: str) -> None:
    for part, pod in pods(name):
        if part == "node":
            (leave,) = (
                float(one.partition("=")[2])
                for one in pod["containers"][0]["args"]
                if one.startswith("--leave=")
            )
            assert pod["terminationGracePeriodSeconds"] >= leave + 15


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_mounted_is_there_and_selectors_find_their_pods(name: str) -> None:
    known = set()
    for part, pod in pods(name):
        known.add(part)
        volumes = {one["name"] for one in pod.get("volumes", ())}
        claims = {"data"} if part == "control" else set()
        for container in [*pod["containers"], *pod.get("initContainers", ())]:
            mounted = {one["name"] for one in container.get("volumeMounts", ())}
            assert mounted <= volumes | claims, part
    for one in documents(name):
        spec = one.get("spec", {})
        if one["kind"] in ("NetworkPolicy", "PodDisruptionBudget", "Service", "PodMonitor"):
            selector = spec.get("podSelector") or spec["selector"]
            labels = selector.get("matchLabels", selector)
            assert labels["app.kubernetes.io/component"] in known


CALLS = [
    *((part, "control", "peers") for part in ("control", "node", "gateway")),
    *((part, "control", "grpc") for part in ("operator", "test", "node", "gateway")),
    *((part, "node", "grpc") for part in ("control", "node")),
    ("test", "gateway", "http"),
]
"""Who of a release calls whom: without certificates nodes and gateways call where callers do."""


@pytest.mark.parametrize("name", ["nothing said", "everything on", "several control planes"])
def test_a_releases_own_calls_are_let_in_and_those_of_others_are_not(name: str) -> None:
    policies = {
        one["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]: one["spec"]
        for one in documents(name)
        if one["kind"] == "NetworkPolicy"
    }
    caller = {"calls": "models"} if name == "everything on" else {}
    for source, target, port in CALLS:
        labels = {
            "app.kubernetes.io/name": "sllm",
            "app.kubernetes.io/instance": "team",
            "app.kubernetes.io/component": source,
        }
        assert is_let_in(policies[target], labels, port), (source, target, port)
        open_to_callers = (target, port) in (("control", "grpc"), ("gateway", "http"))
        assert is_let_in(policies[target], caller, port) is open_to_callers, (target, port)
    assert not is_let_in(policies["operator"], caller, "probes")


def is_let_in(policy: Json, labels: Json, port: str) -> bool:
    """Whether a pod of the same namespace may connect."""
    return any(
        {"port": port} in rule["ports"]
        and any(
            "namespaceSelector" not in peer
            and peer["podSelector"].get("matchLabels", {}).items() <= labels.items()
            for peer in rule["from"]
        )
        for rule in policy.get("ingress") or ()
    )


@pytest.mark.parametrize("name", ["nothing said", "metrics where callers are"])
def test_gateways_tell_their_figures_where_scrapers_are_let_in(name: str) -> None:
    (policy,) = (
        one["spec"]
        for one in documents(name)
        if one["kind"] == "NetworkPolicy"
        and one["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "gateway"
    )
    to_scrapers = [
        port["port"]
        for rule in policy["ingress"]
        if any("namespaceSelector" in peer for peer in rule["from"])
        for port in rule["ports"]
    ]
    assert to_scrapers == (["metrics"] if name == "nothing said" else ["http"])


def test_gateways_are_scaled_by_keda_or_by_their_processors() -> None:
    kinds = {
        name: {one["kind"] for one in documents(name)} & {"HorizontalPodAutoscaler", "ScaledObject"}
        for name in ("nothing said", "scaled by KEDA", "everything on")
    }
    assert kinds == {
        "nothing said": {"HorizontalPodAutoscaler"},
        "scaled by KEDA": {"ScaledObject"},
        "everything on": set(),
    }
    (scaled,) = (one for one in documents("scaled by KEDA") if one["kind"] == "ScaledObject")
    names = {(one["kind"], one["metadata"]["name"]) for one in documents("scaled by KEDA")}
    target = scaled["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) in names
    figures, processors = scaled["spec"]["triggers"]
    assert '"sllm.gateway.requests.under_way"' in inspect.getsource(gateway_metrics)
    expected = 'sum(sllm_gateway_requests_under_way{namespace="models"}) or vector(0)'
    assert figures["metadata"]["query"] == expected
    assert (figures["metadata"]["threshold"], processors["metadata"]["value"]) == ("500", "70")


def test_no_secret_is_a_value() -> None:
    """They are mounted from secrets, or referred to by their key."""
    for part, pod in pods("everything on"):
        for container in pod["containers"]:
            for one in container.get("env", ()):
                secret = one["name"].endswith(("KEY", "TOKEN", "SECRET"))
                assert not (secret and "value" in one), (part, one["name"])


def test_probes_ask_for_services_that_there_are() -> None:
    for part, pod in pods("nothing said"):
        if part in ("control", "node"):
            (container,) = pod["containers"]
            probe = container["readinessProbe"]["grpc"]
            assert f"--probe-port={probe['port']}" in container["args"]
            service = {"control": "DeploymentService", "node": "NodeService"}[part]
            assert probe["service"] == f"serverlessllm.v1.{service}"


# --- resources of our own -------------------------------------------------------------------------


@pytest.mark.parametrize("plural", [resources.MODEL_DEPLOYMENTS, resources.ADAPTERS])
def test_a_definition_is_kubernetes_own_and_its_schema_one(plural: str) -> None:
    definition = crd(plural)
    for version in (OLDEST, NEWEST):
        kubernetes_validate.validate(definition, version, strict=True)
    assert definition["metadata"]["name"] == f"{plural}.{resources.GROUP}"
    assert [one["name"] for one in definition["spec"]["versions"]] == [resources.VERSION]
    jsonschema.Draft7Validator.check_schema(schema(plural))
    columns = definition["spec"]["versions"][0]["additionalPrinterColumns"]
    for column in columns:
        where = schema(plural)
        for step in column["jsonPath"].lstrip(".").split("."):
            where = where["properties"].get(step, {}) if "properties" in where else {}
        assert where or column["jsonPath"].startswith(".metadata"), column


def test_all_that_can_be_deployed_can_be_written_in_a_resource() -> None:
    asked = set(inspect.signature(AsyncClient.deploy).parameters)
    asked -= {"self", "name", "wait", "timeout", "on_progress"}
    told = set()
    for plural in (resources.MODEL_DEPLOYMENTS, resources.ADAPTERS):
        properties = schema(plural)["properties"]["spec"]["properties"]
        scaling = dict.fromkeys(properties.get("scaling", {}).get("properties", {}), 1)
        spec = {**dict.fromkeys(properties, 1), "scaling": scaling}
        made = resources.Resource("models", "x", 1, spec, {})
        told |= set(made.arguments())
    assert told == asked


# --- the image ------------------------------------------------------------------------------------


def test_hadolint_has_nothing_to_say_of_the_dockerfile() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), DEPLOY / "Dockerfile"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_image_is_built_from_what_is_let_in() -> None:
    """What is copied is there, and not left out by .dockerignore."""
    let_in = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        one
        for line in (DEPLOY / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for one in line.split()[1:-1]
    }
    assert copied == let_in
    assert all((ROOT / one).exists() for one in copied)
