"""Checkpoints from other nodes, in a whole cluster."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoint.remote.web import WebServer
from tests.e2e.cluster import Cluster, running
from tests.e2e.reference import greedy

PROMPT = "The for statement"
MODEL = "tiny-gpt2"


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[Cluster]:
    """Both may read web servers of this machine."""
    with running(tmp_path, nodes=2, node_options=("--allow-private-sources",)) as cluster:
        yield cluster


def test_the_second_node_has_a_model_from_the_first(two_nodes: Cluster, models: Path) -> None:
    client = two_nodes.client
    with WebServer(models) as web:
        source = f"{web.url}/{MODEL}"
        client.deploy("m", source)  # returns once one of the nodes has it
        client.deploy("m", source, min_replicas=2, max_replicas=2)
        two_nodes.wait_for_instances(2, "m")
        asked = [
            hit
            for hit in web.hits
            if hit.method == "GET" and hit.name.endswith(".safetensors") and hit.start
        ]
    ranges = [(hit.name, hit.start) for hit in asked]
    assert len(ranges) == len(set(ranges)), "bytes have left the source twice"
    links = [
        link
        for node in client.nodes()
        for link in node.links
        if (link.from_tier, link.to_tier) == ("PEER", "SSD")
    ]
    assert len(links) == 2
    result = client.complete("m", PROMPT, max_tokens=8, temperature=0.0)
    assert result.text == greedy(models / MODEL, PROMPT, 8).text
