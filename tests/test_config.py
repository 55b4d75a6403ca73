from pathlib import Path

import pytest

from sllm import config, errors

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4096 * MIB),
        ("512MiB", 512 * MIB),
        ("1.5GB", 1_500_000_000),
        ("1048576", MIB),
        ("1 KiB", 1024),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert config.parse_bytes(text) == size


def test_without_a_home_directory_another_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")  # as pathlib does

    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(errors.InvalidArgument, match="--dir"):
        config.data_directory()


@pytest.mark.parametrize("text", ["", "much", "-1", "0", "0MiB", "4 spams", "GiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="is not a size"):
        config.parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 * MIB, "1.5 GiB"),
        (2**60, "1048576.0 TiB"),
    ],
)
def test_sizes_are_written(size: int, text: str) -> None:
    assert config.format_bytes(size) == text


def test_the_control_plane_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLLM_CONTROL", "far:1")
    assert config.control_address() == "far:1"
    monkeypatch.setenv("SLLM_CONTROL", "")
    assert config.control_address() == "localhost:50051"
