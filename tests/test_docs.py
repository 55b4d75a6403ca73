"""The architecture page names every package in its own words, and no file that is not there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
ROWS = dict(re.findall(r"^\| `(sllm/[^`]+)/` \| (.+) \|$", PAGE, re.M))
PACKAGES = {
    str(path.parent.relative_to(ROOT)): path for path in (ROOT / "sllm").glob("*/**/__init__.py")
}


def test_every_package_is_on_the_page_in_its_own_words() -> None:
    assert {name: _sentence(path) for name, path in PACKAGES.items()} == ROWS


def _sentence(path: Path) -> str:
    said = ast.get_docstring(ast.parse(path.read_text()))
    assert said, path
    return " ".join(said.partition("\n\n")[0].split())


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "decisions.md", "failures.md"])
def test_every_file_on_the_page_is_there(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    for name in re.findall(r"`((?:sllm|tests|docs|protos)/[^`\s]+\.\w+)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\(([\w./-]+\.md)\)", text):
        assert (ROOT / "docs" / name).exists(), name
