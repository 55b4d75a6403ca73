"""The dashboard and the alert rules ask for metrics that are there, by their names and labels."""

import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[1] / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "sllm.json").read_text())
EXPRESSIONS = [
    target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())
]
NAME = re.compile(r"\bsllm_\w+")
TIMEOUT = 60

# Each instrument as the exporter names it, once it has measured something.
EXPORTED = """
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import generate_latest
metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
from sllm.control import metrics as control
from sllm.control.tenants.usage import Usage
from sllm.control.types.receipts import StartRecord
from sllm.node.device import metrics as kv
from sllm.node.device.kv_shares import CacheSizes
from sllm.node.kept import metrics as kept
from sllm.node.tiers import metrics as node
for one in vars(control).values():
    if hasattr(one, "record"):
        for cold in (True, False):
            one.record(0.02, {"cold": cold})
    elif hasattr(one, "add"):
        labels = {"deployment": "tiny", "outcome": "OK", "reason": "DRAIN", "tenant": "acme"}
        labels["way"] = "PAGES"
        one.add(1, labels)
control.observe(control.Observed(lambda: {"a": 1}, {"acme": Usage(1, 2, 3, 4.0, {"SSD": 5.0})}))
kept.record_read("DRAM", 1)
kept.record_written(1)
kept.record_corrupt(1)
kept.observe(lambda: {"DRAM": 1})
kv.observe(lambda: [("tiny", CacheSizes(1, 2, 1)), ("tiny", CacheSizes(1, 2, 1))])
node.record_refusal()
node.record_quarantine()
node.record_load("read", 1, 0.02)
class Link:
    class from_tier: name = "SSD"
    class to_tier: name = "DRAM"
    queued_bytes = in_flight_bytes = bytes_per_second = 1
node.observe(lambda: {"SSD": 1}, lambda: {"SSD": 1}, lambda: 1, lambda: [Link])
print(generate_latest().decode())
"""


@cache
def exported() -> str:
    """All metrics of a control plane and a node, as Prometheus reads them."""
    done = subprocess.run(
        [sys.executable, "-c", EXPORTED],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    return done.stdout


def _series() -> set[str]:
    return set(re.findall(r"^(sllm_\w+)(?:\{| )", exported(), re.M))


@pytest.mark.parametrize("expression", [*EXPRESSIONS, ALERTS.read_text()])
def test_every_series_is_one_that_servers_have(expression: str) -> None:
    asked = set(NAME.findall(expression))
    assert asked
    assert asked <= _series()


@pytest.mark.parametrize("expression", [*EXPRESSIONS, ALERTS.read_text()])
def test_every_label_is_asked_for_as_it_is_exported(expression: str) -> None:
    for label in re.findall(r'\b\w+="[^"$]*"', expression):
        assert label in exported(), label


def test_every_metric_is_in_a_picture() -> None:
    shown = {name.removesuffix("_bucket") for name in NAME.findall("\n".join(EXPRESSIONS))}
    measured = {re.sub(r"_(bucket|count|sum)$", "", name) for name in _series()}
    assert {name for name in measured if not name.endswith("_created")} == shown


@pytest.mark.parametrize("metric", ["time_to_first_token", "instance_start_time", "load_duration"])
def test_buckets_tell_short_times_apart(metric: str) -> None:
    counts = re.findall(rf'sllm_{metric}_seconds_bucket{{.*le="([\d.]+)".*}} (\d)', exported())
    assert {float(bound): count for bound, count in counts}[0.01] == "0"
    assert {float(bound): count for bound, count in counts}[0.025] == "1"


def _promtool(*arguments: str, cwd: Path) -> str:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run(
        ["promtool", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        cwd=cwd,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_reads_the_rules(tmp_path: Path) -> None:
    assert "SUCCESS: 7 rules found" in _promtool("check", "rules", str(ALERTS), cwd=tmp_path)


QUIET = [
    ("sllm_queue_depth", "1x60"),
    ('sllm_requests_total{deployment="tiny",outcome="OK"}', "0+60x60"),
    ('sllm_instance_starts_total{outcome="ok"}', "0+1x60"),
    ('sllm_time_to_first_token_seconds_bucket{cold="false",le="0.1"}', "0+60x60"),
    ('sllm_time_to_first_token_seconds_bucket{cold="false",le="+Inf"}', "0+60x60"),
    ('sllm_ssd_refusals_total{instance="n"}', "0x60"),
    ('sllm_checkpoint_quarantined_total{instance="n"}', "0x60"),
]
_FIRST = "sllm_time_to_first_token_seconds_bucket"
TROUBLE = {
    "SllmControlPlaneAbsent": {"sllm_queue_depth": "_x60"},
    "SllmRequestsFail": {
        'sllm_requests_total{deployment="tiny",outcome="WORKER_DIED"}': "0+10x60",
    },
    "SllmRequestsWait": {"sllm_queue_depth": "500x60"},
    "SllmFirstTokensSlow": {
        f'{_FIRST}{{cold="false",le="60"}}': "0+120x60",
        f'{_FIRST}{{cold="false",le="+Inf"}}': "0+120x60",
    },
    "SllmStartsFail": {'sllm_instance_starts_total{outcome="START_FAILED"}': "0+1x60"},
    "SllmDiskRefuses": {'sllm_ssd_refusals_total{instance="n"}': "0+1x60"},
    "SllmCheckpointCorrupt": {'sllm_checkpoint_quarantined_total{instance="n"}': "0+1x60"},
}
"""The series of each alert as they are when it is due, in the place of quiet ones."""


@pytest.mark.parametrize("alert", [None, *TROUBLE])
def test_alerts_fire_in_trouble_alone(tmp_path: Path, alert: str | None) -> None:
    series = dict(QUIET)
    if alert is not None:
        series |= TROUBLE[alert]
    group = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [_firing(name, name == alert) for name in TROUBLE],
    }
    shutil.copy(ALERTS, tmp_path / "alerts.yml")
    case = {"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": [group]}
    (tmp_path / "case.yml").write_text(json.dumps(case))  # JSON is YAML
    assert "SUCCESS" in _promtool("test", "rules", "case.yml", cwd=tmp_path)


def _firing(alert: str, fires: bool) -> dict[str, object]:
    query = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
    samples = [{"labels": "{}", "value": 1}] if fires else []
    return {"expr": query, "eval_time": "40m", "exp_samples": samples}


def test_every_alarm_is_told_with_what_to_do() -> None:
    table = (DEPLOY.parent / "docs" / "OPERATING.md").read_text()
    alarms = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    assert alarms
    assert not [name for name in alarms if f"| `{name}` |" not in table]
