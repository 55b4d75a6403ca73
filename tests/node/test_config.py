"""What a node cannot be told to be."""

from pathlib import Path

import pytest

from sllm.errors import InvalidArgument
from sllm.node.config import MIB, NodeConfig

MEMORY = 64 * MIB


def config(listen: str = "127.0.0.1:0", advertise: str | None = None, dram: int = 1) -> NodeConfig:
    return NodeConfig(
        control_address="localhost:1",
        directory=Path("unused"),
        listen_address=listen,
        advertise_host=advertise,
        dram_bytes=dram,
    )


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (config(dram=MEMORY + 1), "more than the 67108864 of memory"),
        (config(listen="0.0.0.0:0"), "--advertise"),
        (config(listen="[::]:7000"), "--advertise"),
    ],
)
def test_what_cannot_work_is_refused(bad: NodeConfig, complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        bad.check(MEMORY)


def test_what_can_is_not() -> None:
    config(dram=MEMORY).check(MEMORY)
    config(listen="0.0.0.0:0", advertise="node.example").check(MEMORY)
