from pathlib import Path

import pytest
from make_models import make_model

FAMILIES = ("tiny-llama", "tiny-opt", "tiny-qwen2", "tiny-gpt2")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of small random models, one of each family."""
    directory = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        make_model(family, directory / family)
    return directory
