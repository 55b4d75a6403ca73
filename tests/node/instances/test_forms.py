"""The names of forms differ where something reads weights in another way."""

from pathlib import Path

import pytest

from sllm.node.instances import forms


@pytest.fixture(autouse=True)
def _asked_anew() -> None:
    forms.form_of.cache_clear()


def test_each_engine_has_its_own() -> None:
    assert forms.form_of("vllm") != forms.form_of("transformers")
    assert forms.form_of("vllm") == forms.form_of("vllm")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_VERSION", 99),
        ("_versions", lambda names: {"torch": "9.9"}),
        ("_instructions", lambda: ["avx512_bf16"]),
    ],
)
def test_another_version_or_processor_has_another(
    monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    before = forms.form_of("transformers")
    forms.form_of.cache_clear()
    monkeypatch.setattr(forms, name, value)
    assert forms.form_of("transformers") != before


def test_only_vector_instructions_count(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nflags\t\t: fpu avx2 ibrs sse4_2 amx_bf16\n\nflags\t: none\n")
    assert forms._instructions(info) == ["amx_bf16", "avx2", "sse4_2"]
    info.write_text("processor: 0\nFeatures\t: fp asimd sve2\n")
    assert forms._instructions(info) == ["asimd", "sve2"]
