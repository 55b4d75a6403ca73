"""Each architecture is served as transformers' own `generate` would, or refused before it starts.

A handful is tried in every run, all of them with `-m "nightly or not nightly"`.
"""

import re
from pathlib import Path

import pytest

from tests.node.worker.trial.architectures import CASES, Case, make
from tests.node.worker.trial.outcomes import generated, refused, served

ALWAYS = {"Llama 3.1", "Gemma 2", "Phi 3, 128k", "Mixtral", "DiffLlama", "DeepSeek V3", "Mamba"}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[] if case.name in ALWAYS else pytest.mark.nightly)
        for case in CASES
    ],
)
def test_an_architecture_is_right_or_refused(case: Case, tmp_path: Path) -> None:
    reference = make(case, tmp_path)
    refusal = refused(tmp_path)
    assert bool(refusal) == bool(case.refused), refusal
    if refusal:
        assert re.search(case.refused, refusal), refusal
    else:
        assert served(tmp_path) == generated(reference)
