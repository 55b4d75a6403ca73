"""Which engines end-to-end tests run on."""

import pytest

from sllm.node.worker.backends import names
from tests.e2e.nights import paired

ENGINES = tuple(sorted(names.installed()))
"""All that are installed here. Sorted, transformers is first, and what names no engine runs on it:
its zygotes and trials take a fraction of vLLM's time."""
SLOW_ON = ENGINES[-1:]
"""For what takes too long to be run on both: what is deployed by default, if it is installed."""
AT_NIGHT = [ENGINES[0], *(pytest.param(one, marks=pytest.mark.nightly) for one in ENGINES[1:])]
"""For what takes long wherever it runs: on the first engine always, on the others at night."""
others_at_night = pytest.mark.parametrize("engine", AT_NIGHT, indirect=True)


def by_turns(name: str, *cases: object) -> pytest.MarkDecorator:
    """Has each case run on one engine always, the engines in turn, and on the others at night.

    Args:
        name: of the argument that is the case.
        cases: what it may be.
    """
    return pytest.mark.parametrize(("engine", name), paired(ENGINES, cases), indirect=["engine"])
