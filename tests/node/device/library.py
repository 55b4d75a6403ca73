"""The double of libcuda that other processes load: built when it is first asked for."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "fakecuda.c"


def build(directory: Path) -> Path:
    """The library; the test is skipped where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler, which the double of libcuda is built with")
    library = directory / "libfakecuda.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-pthread", "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True, timeout=60)
    return library
