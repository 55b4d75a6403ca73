"""Renders the chart with Helm itself, in a process of its own: `python -m tests.deploy_rendering`.

Helm is a library in Go, whose runtime does not leave a process as it was. Reads a list of values
as JSON on standard input; writes for each what came of it.
"""

import json
import sys
from pathlib import Path

import helm_python

CHART = Path(__file__).parents[1] / "deploy" / "helm" / "sllm"


def render(values: object) -> dict[str, object]:
    """The manifests by their templates, and what Helm's lint has to say of the chart with them."""
    assert isinstance(values, dict)
    with helm_python.Chart.load(CHART) as chart:
        try:
            chart.validate_schema(values)
            manifests = chart.render(values, name="team", namespace="models")
        except helm_python.HelmError as error:
            return {"error": str(error)}
    report = helm_python.lint(CHART, values, strict=True, namespace="models", quiet=True)
    return {"manifests": manifests, "lint": [*report["errors"], *report["messages"]]}


if __name__ == "__main__":
    json.dump([render(one) for one in json.load(sys.stdin)], sys.stdout)
