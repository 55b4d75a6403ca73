"""A change is judged by the same examples each time, whatever came before in the process."""

import importlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import TIMES, examples


def tried() -> list[int]:
    """What a test tries."""
    numbers = list[int]()

    @examples(300)
    @given(st.integers())
    def test(number: int) -> None:
        numbers.append(number)

    test()
    return numbers


@pytest.mark.skipif(TIMES > 1, reason="others are looked for")
def test_what_else_was_imported_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tried()
    (tmp_path / "imported_later.py").write_text(f"MORE = {list(range(1000, 2000))}")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("imported_later")
    assert tried() == before
