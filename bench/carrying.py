"""Tokens a second through a control plane that follows, beside those through the one that leads.

    PYTHONPATH=examples python -m bench.carrying --rounds 6 --json FILE

Three control planes on an etcd of three members, and two nodes, one of which serves the demo model.
In turn, as many streams at once are asked of the leader and of another control plane.
"""

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Final

import typer

import sllm
from bench.chaos.planes import NODES, Planes, running
from bench.report import print_table, write_figures
from bench.soak import MODEL
from sllm import errors

TOKENS: Final = 400
_UP_SECONDS: Final = 120.0


async def _ready(planes: Planes) -> tuple[str, str]:
    """Deploys the model; the addresses of the leader and of another one."""
    until = time.monotonic() + _UP_SECONDS
    async with sllm.AsyncClient(planes.addresses) as client:
        while time.monotonic() < until:
            try:
                if len(await client.nodes()) == NODES:
                    break
            except errors.Unavailable:
                pass  # nobody leads yet
            await asyncio.sleep(0.1)
        await client.deploy("tiny", f"file://{MODEL}", max_replicas=1, keep_alive=600.0)
    leader = await asyncio.to_thread(planes.leader)
    first = next(at for at, one in planes.controls.items() if one is leader)
    return first, next(at for at in planes.controls if at != first)


async def _rate(address: str, streams: int) -> float:
    """Tokens a second of all streams together."""
    async with sllm.AsyncClient(address) as client:

        async def one() -> int:
            stream = client.generate("tiny", "Once", max_tokens=TOKENS, ignore_eos=True)
            return len((await stream.result()).token_ids)

        began = time.monotonic()
        tokens = sum(await asyncio.gather(*(one() for _ in range(streams))))
        return tokens / (time.monotonic() - began)


async def _measured(planes: Planes, rounds: int, streams: int) -> list[tuple[float, float]]:
    leader, other = await _ready(planes)
    for address in (leader, other):
        await _rate(address, streams)  # the first has an instance started
    return [(await _rate(leader, streams), await _rate(other, streams)) for _ in range(rounds)]


def main(
    rounds: Annotated[int, typer.Option(help="Of both.")] = 6,
    streams: Annotated[int, typer.Option(help="At once.")] = 8,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Measures both in turn, and prints what came of it."""
    with tempfile.TemporaryDirectory() as scratch, running(Path(scratch)) as planes:
        rates = asyncio.run(_measured(planes, rounds, streams))
    ratios = sorted(other / leader for leader, other in rates)
    ratio = statistics.median(ratios)
    rows = [
        ("through the leader, tokens/s", f"{statistics.median(one for one, _ in rates):.0f}"),
        ("through another, tokens/s", f"{statistics.median(one for _, one in rates):.0f}"),
        ("ratio", f"{ratio:.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f})"),
    ]
    print_table(f"{streams} streams of {TOKENS} tokens, {rounds} rounds", ("what", ""), rows)
    write_figures(json, {"follower_to_leader_ratio": ratio})


if __name__ == "__main__":
    typer.run(main)
