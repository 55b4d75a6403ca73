"""What transformers itself says: the outputs that sllm's must equal."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass(frozen=True, slots=True)
class Reference:
    """A greedy continuation."""

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str


@lru_cache
def _load(directory: Path, device: str) -> tuple[object, object]:
    model = AutoModelForCausalLM.from_pretrained(directory).eval().to(device)
    return model, AutoTokenizer.from_pretrained(directory)


@lru_cache
def greedy(directory: Path, prompt: str, max_tokens: int, device: str = "cpu") -> Reference:
    """`model.generate` without sampling, as many tokens as asked for or to the end of the text."""
    model, tokenizer = _load(directory, device)
    inputs = tokenizer(prompt, return_tensors="pt").to(device)  # type: ignore[operator]  # untyped library
    with torch.no_grad():
        output = model.generate(  # type: ignore[attr-defined]  # untyped library
            **inputs, max_new_tokens=max_tokens, do_sample=False
        )
    prompt_ids = inputs["input_ids"][0].tolist()
    token_ids = output[0].tolist()[len(prompt_ids) :]
    text = tokenizer.decode(token_ids, skip_special_tokens=True)  # type: ignore[attr-defined]
    return Reference(tuple(prompt_ids), tuple(token_ids), text)
