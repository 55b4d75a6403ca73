"""Each architecture is served as transformers' own `generate` would, or refused before it starts.

A handful is tried in every run, all of them with `-m "nightly or not nightly"`.
"""

import re
from pathlib import Path

import pytest

from sllm.node.worker.model.refusing import sentence
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


DOCUMENT = Path(__file__).parents[4] / "docs" / "architectures.md"


def test_the_table_that_users_read_says_the_same() -> None:
    """Of every architecture, and why: `make architectures` writes it."""
    lines = DOCUMENT.read_text().splitlines()
    rows = [line.split(" | ") for line in lines if " | `" in line and "`model_type`" not in line]
    told = {row[0].removeprefix("| "): (row[2], row[3].removesuffix(" |")) for row in rows}
    assert list(told) == [case.name for case in CASES]
    for case in CASES:
        outcome, reason = told[case.name]
        assert outcome == ("refused" if case.refused else "served"), case.name
        assert re.search(case.refused, reason), (case.name, reason)
        assert bool(case.refused) == bool(reason.strip()), (case.name, reason)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AssertionError("False, True"), "AssertionError: False, True"),
        (KeyError("hidden_size"), "KeyError: 'hidden_size'"),
        (ValueError(""), "ValueError"),
        (ValueError("'foo'"), "ValueError: 'foo'"),
        (ValueError("hidden_size must be a multiple"), "hidden_size must be a multiple"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_reason_that_is_no_sentence_says_what_kind_of_error_it_is(
    error: Exception, said: str
) -> None:
    assert sentence(error) == said
