"""Adapters as PEFT makes them, and what PEFT says that their models give."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM


@contextmanager
def _quiet() -> Iterator[None]:
    """PEFT uses what newer versions of transformers advise against."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@_quiet()
def make_adapters(
    base: Path,
    directories: Sequence[Path],
    *,
    seed: int = 0,
    rank: int = 4,
    targets: Sequence[str] | str = "all-linear",
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes adapters of random weights over a base, so strong that they show in every text.

    Args:
        base: directory of the model.
        directories: where they are written.
        seed: of the first one's weights; each has another.
        rank: of all that they add.
        targets: last parts of layers' names, or "all-linear".
        settings: further ones of PEFT's.
    """
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
        **(settings or {}),
    )
    adapted = get_peft_model(model, config)
    for number, directory in enumerate(directories, seed):
        torch.manual_seed(number)
        with torch.no_grad():
            for name, one in adapted.named_parameters():
                if "lora_" in name:
                    one.normal_(0.0, 1 / max(one.shape) ** 0.5)
        adapted.save_pretrained(str(directory))


def make_adapter(base: Path, directory: Path, **options: Any) -> Path:
    """Writes one adapter; see `make_adapters`."""
    make_adapters(base, [directory], **options)
    return directory


@_quiet()
def merged(base: Path, adapter: Path | None, dtype: torch.dtype = torch.float32) -> Any:
    """A model with an adapter merged into it, by PEFT."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    if adapter is None:
        return model.eval()
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()


def greedy_ids(model: Any, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """The likeliest tokens after a prompt, so many, whatever ends a text."""
    with torch.no_grad():
        output = model.generate(
            torch.tensor([list(prompt)]),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=-1,
        )
    found: list[int] = output[0, len(prompt) :].tolist()
    return found
