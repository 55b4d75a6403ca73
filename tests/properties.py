"""Which examples property tests try, and how many.

A change is judged by the same ones each time: they follow from the test alone. `make nightly` tries
many times as many others.
"""

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

TIMES = int(os.environ.get("EXAMPLES", "1"))
"""How many times as many as usual, at random."""


def examples(count: int, **more: Any) -> settings:
    """As many, where not the usual hundred is right."""
    return settings(max_examples=TIMES * count, **more)


def choose_examples() -> None:
    """Has whatever is defined from now on try these, and keep none for the next run."""
    profile = settings(
        max_examples=TIMES * 100,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,  # how long one takes tells of who else uses the machine
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.register_profile("sllm", profile)
    settings.load_profile("sllm")
    if TIMES == 1:
        # Else they are made of our constants as well: of those modules that were imported so far.
        providers._get_local_constants = lambda: providers._local_constants
