"""Minutes of load while control planes and members of etcd are killed, stopped and cut off.

    PYTHONPATH=examples python -m bench.control_chaos --minutes 15 --json FILE

Three control planes on an etcd of three members, each in a network namespace of its own where that
may be made, and two nodes. Clocks of the control planes are wrong by 5 s either way, where
libfaketime is installed. Callers know all control planes, and ask again and again for one of a few
generations whose outcome is known from before. In the end no token may have been lost, and none
come twice; no request may have failed, no deployment be gone, and no node have obeyed a leader
after a later one.
"""

import asyncio
import itertools
import random
import tempfile
from pathlib import Path
from typing import Annotated

import typer

import sllm
from bench.chaos.blows import Chaos
from bench.chaos.planes import Planes, running
from bench.chaos.servers import skews
from bench.report import print_table, write_figures


def main(
    minutes: Annotated[float, typer.Option(help="How long the load lasts.")] = 15.0,
    callers: Annotated[int, typer.Option(help="Requests at once.")] = 4,
    seed: Annotated[int, typer.Option(help="Decides the blows and their order.")] = 1,
    only: Annotated[str, typer.Option(help="The one kind of blow, as in kill_leader.")] = "",
    keep: Annotated[Path | None, typer.Option(help="Keep the servers' logs here.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Runs the load and prints what has come of it; fails if anything came wrong."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = keep or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        with running(directory) as planes:
            chaos = asyncio.run(_chaos(planes, callers, minutes * 60, seed, only))
            terms, cuts = planes.terms(), planes.network.cuts
    obeyed = sum(later <= one for of in terms for one, later in itertools.pairwise(of))
    tally, without = chaos.tally, sorted(chaos.without) or [0.0]
    worst = without[min(len(without) - 1, int(len(without) * 0.99))]
    rows = [("generations as expected", str(tally.whole)), ("others", str(tally.other))]
    rows += [(f"blow: {name}", str(count)) for name, count in sorted(tally.blows.items())]
    rows += [(f"error: {name}", str(count)) for name, count in sorted(tally.errors.items())]
    rows += [("tokens lost", str(tally.lost)), ("tokens twice", str(tally.twice))]
    rows += [("deployments lost", str(tally.left)), ("orders obeyed of old", str(obeyed))]
    rows += [
        ("terms", str(max(itertools.chain(*terms), default=0))),
        ("leaders ended", str(len(chaos.without))),
    ]
    rows += [("s without a leader, median", f"{without[len(without) // 2]:.2f}")]
    rows += [("the same, P99", f"{worst:.2f}")]
    skewed = "clocks skewed by 5 s" if skews() else "clocks right: no libfaketime"
    cut = "networks cut" if cuts else "networks whole: no right to make namespaces"
    title = f"{minutes:g} minutes, {callers} callers, seed {seed}, {skewed}, {cut}"
    print_table(title, ("what", ""), rows)
    figures = {"whole": tally.whole, "tokens_lost": tally.lost, "tokens_twice": tally.twice}
    figures |= {"errors": tally.errors.total(), "deployments_lost": tally.left}
    write_figures(json, {**figures, "without_leader_p99_seconds": worst})
    failed = tally.errors.total() or obeyed
    raise typer.Exit(0 if tally.clean and not failed else 1)


async def _chaos(planes: Planes, callers: int, seconds: float, seed: int, only: str) -> Chaos:
    async with sllm.AsyncClient(planes.addresses) as client:
        chaos = Chaos(planes, client, random.Random(seed), only)
        await chaos.run(callers, seconds)
        return chaos


if __name__ == "__main__":
    typer.run(main)
