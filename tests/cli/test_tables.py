"""Tables: names are whole on a terminal of any width."""

from dataclasses import replace

import pytest
from rich.console import RenderableType

from sllm.cli.listings import deployments_table, forms_table, instances_table, nodes_table
from sllm.cli.operations import pins_table
from sllm.cli.tables import Listing
from sllm.client.types.deployments import Instance
from sllm.client.types.enums import InstanceState, Tier
from sllm.client.types.nodes import CheckpointCopy, Link, Node, WeightForm
from sllm.client.types.operations import Pin
from sllm.client.wire import listings
from tests.cli.screen import lines, rows
from tests.client.messages import deployment

DEPLOYMENT = "meta-llama-3.1-8b-instruct"
INSTANCE = "i-3f2b8c1d9e7a4f60"
NODE = "rack-17.row-4.example.internal"
ADDRESS = f"{NODE}:50052"


def _deployments() -> RenderableType:
    return deployments_table([listings.deployment(deployment(DEPLOYMENT))] * 2)


def _instances() -> RenderableType:
    one = Instance(INSTANCE, DEPLOYMENT, NODE, InstanceState.READY, 3, 1 << 30, "d", 0.0, 17)
    return instances_table([one] * 2, now=90.0)


def _nodes() -> RenderableType:
    link = Link(Tier.SSD, Tier.DRAM, 2.5e9, 1 << 30, 1 << 20)
    return nodes_table([Node(NODE, ADDRESS, "h", (), 1 << 30, 0, (), (link,), None, 0.0)] * 2)


def _forms() -> RenderableType:
    versions = {"torch": "2.13.0", "vllm": "0.32.0"}
    form = WeightForm("vllm-1", "vllm", 1, versions, "oneDNN x86_64 avx2", "bfloat16")
    published = CheckpointCopy("d", Tier.SSD, 1 << 30, 1 << 30, ("file:///m",), leased=False)
    made = [
        replace(
            published, digest="m", tier=tier, sources=(), made_of="d", made_for="vllm", form=form
        )
        for tier in (Tier.SSD, Tier.DRAM)
    ]
    copies = (published, *made)
    return forms_table([Node(NODE, ADDRESS, "h", (), 1 << 30, 0, copies, (), None, 0.0)])


def test_forms_are_told_with_what_they_are_of() -> None:
    _, row = rows(_forms())
    libraries = "torch 2.13.0, vllm 0.32.0"
    assert row[:2] == [NODE, "vllm"]
    assert row[3:] == ["oneDNN x86_64 avx2", "bfloat16", "1.0 GiB", "SSD, DRAM", "file:///m"]
    assert libraries.startswith(row[2])


def _pins() -> RenderableType:
    return pins_table([Pin(DEPLOYMENT, Tier.DRAM, NODE, None, True)] * 2)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize(
    ("table", "names"),
    [
        (_deployments(), [DEPLOYMENT]),
        (_instances(), [INSTANCE, DEPLOYMENT, NODE]),
        (_nodes(), [NODE, ADDRESS]),
        (_pins(), [DEPLOYMENT, NODE]),
    ],
    ids=["ls", "ps", "nodes", "pins"],
)
def test_names_are_whole(table: RenderableType, names: list[str], width: int) -> None:
    shown = lines(table, width)

    assert max(map(len, shown)) <= width
    for name in names:
        assert sum(name in line.split() for line in shown) >= 2


def test_texts_are_folded_before_the_table_is_turned() -> None:
    listing = Listing("NAME", "WHY", folded=("WHY",))
    listing.add_row("spam", "there is no room for it, and none can be made now")

    assert rows(listing, 30)[0] == ["NAME", "WHY"]
    assert len(lines(listing, 30)) > 2
    assert lines(listing, 20)[0] == "NAME  spam"


def test_no_rows_are_headings_alone() -> None:
    assert rows(Listing("NAME", "STATE")) == [["NAME", "STATE"]]
