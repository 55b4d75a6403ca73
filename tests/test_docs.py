"""The architecture page names every module, and no file that is not there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
MODULES = [path for path in (ROOT / "sllm").rglob("*.py") if path.read_text().strip()]


def test_every_module_is_on_the_page() -> None:
    sections = dict(re.findall(r"^### [^\n]*`(sllm[^`]*)/`\n(.*?)(?=^#|\Z)", PAGE, re.M | re.S))
    for module in MODULES:
        folder = str(module.parent.relative_to(ROOT))
        assert f"| `{module.name}` |" in sections[folder], module


def test_every_file_on_the_page_is_there() -> None:
    for name in re.findall(r"`((?:sllm|tests|docs|protos)/[^`\s]+\.\w+)`", PAGE):
        assert (ROOT / name).exists(), name


def test_every_row_names_a_module_of_its_folder() -> None:
    sections = re.findall(r"^### [^\n]*`(sllm[^`]*)/`\n(.*?)(?=^#|\Z)", PAGE, re.M | re.S)
    for folder, rows in sections:
        for name in re.findall(r"^\| `([^`]+)` \|", rows, re.M):
            assert (ROOT / folder / name).exists(), f"{folder}/{name}"
