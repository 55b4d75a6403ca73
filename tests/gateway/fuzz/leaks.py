"""Whether anything of a gateway's requests is left when all of them have ended."""

import time
import urllib.request
from dataclasses import dataclass
from typing import Final

import psutil
from prometheus_client.parser import text_string_to_metric_families

import sllm

SETTLED_SECONDS: Final = 30.0
GROWTH_BYTES: Final = 160 * 1024**2
"""Of resident memory that allocators may keep: 2.8 GB go through at once, 1 GiB of it held."""
_DESCRIPTORS: Final = 8
"""Beside those at the beginning: channels that were made meanwhile."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What a gateway holds at one moment."""

    descriptors: int
    resident_bytes: int
    requests: int
    """Under way, by its own figures, apart from the one that asks."""
    generations: int
    """Under way on instances."""


def holding(process: psutil.Process, url: str, client: sllm.Client) -> Holding:
    """What it holds now."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        told = answer.read().decode()
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(told)
        for sample in family.samples
    }
    return Holding(
        process.num_fds(),
        process.memory_info().rss,
        int(values["sllm_gateway_requests_under_way"]) - 1,
        sum(one.running_requests for one in client.instances()),
    )


def leaked(before: Holding, process: psutil.Process, url: str, client: sllm.Client) -> str:
    """What is left after a while that was not there before, in words. Empty: nothing."""
    until = time.monotonic() + SETTLED_SECONDS
    while (found := _more(before, holding(process, url, client))) and time.monotonic() < until:
        time.sleep(0.2)
    return found


def _more(before: Holding, now: Holding) -> str:
    grown = now.resident_bytes - before.resident_bytes
    lines = (
        (now.requests > 0, f"{now.requests} requests under way"),
        (now.generations > 0, f"{now.generations} generations under way"),
        (
            now.descriptors > before.descriptors + _DESCRIPTORS,
            f"{now.descriptors} descriptors, {before.descriptors} before",
        ),
        (grown > GROWTH_BYTES, f"{grown / 1024**2:.0f} MiB more memory"),
    )
    return "; ".join(told for is_so, told in lines if is_so)
