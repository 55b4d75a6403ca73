"""`make fuzz`: thousands of wrong messages to a cluster of its own.

Every answer has to be typed, no log may have a traceback, and the cluster has to serve afterwards.
A call is made from the seed and its number, so that one that was found can be sent again:
`--only 1234`.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.e2e.cluster import running
from tests.fuzz.campaign import Campaign, Findings

MODEL: Final = f"file://{Path(__file__).resolve().parents[2] / 'examples' / 'tiny-llama'}"


def main() -> int:
    """Runs a campaign, prints what it has found, and returns the exit status."""
    arguments = _parser().parse_args()
    numbers = arguments.only or range(arguments.messages)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        directory = Path(arguments.dir or name)
        with running(directory, nodes=1, kv_mib=64) as cluster:
            findings = Campaign(cluster, MODEL, arguments.seed).run(numbers)
            _print(findings)
    return 1 if findings.faults else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000, help="how many calls to make")
    parser.add_argument("--seed", type=int, default=0, help="what all calls follow from")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the calls to make")
    parser.add_argument("--dir", help="keep the servers' directories and logs here")
    return parser


def _print(findings: Findings) -> None:
    for answer, count in sorted(findings.answers.items()):
        print(f"{count:6} {answer}")
    for fault in findings.faults:
        print(f"FAULT {fault}")
    print(f"{sum(findings.answers.values())} calls, {len(findings.faults)} faults")


if __name__ == "__main__":
    sys.exit(main())
