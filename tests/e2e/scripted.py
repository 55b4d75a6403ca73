"""A real model whose text is known beforehand: each token has one that always follows it.

Its layers add nothing to the embedding of the latest token, and the head looks that embedding up.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

_TINY = Path(__file__).parents[2] / "examples" / "tiny-llama"
_LAYERS = 4
"""They only take time, so that a move falls where it is to fall."""
_CERTAIN = 20.0
"""Scale of the head: drawn at temperature 1, what follows is the same as well."""

_FOLLOWING = range(0x80, 0xC0)
"""Bytes that a character of several bytes goes on with."""
_LEADS = {4: range(0xF1, 0xF4), 3: [*range(0xE1, 0xED), 0xEE, 0xEF], 2: range(0xC2, 0xDD)}
"""Bytes that one of so many bytes may begin with, whatever follows."""

WORDS = list(range(300, 500))
"""Token ids of plain text."""


def characters() -> list[str]:
    """Characters of 2 to 4 bytes, none of which has a byte of another."""
    following = iter(_FOLLOWING)
    return [
        bytes([lead, *(next(following) for _ in range(length - 1))]).decode()
        for length, leads in _LEADS.items()
        for lead in leads
    ]


def token_ids(text: str) -> list[int]:
    """One for each byte, if all its characters have several."""
    encode = AutoTokenizer.from_pretrained(_TINY).encode
    return [one for character in text for one in encode(character, add_special_tokens=False)]


def make_scripted_model(directory: Path, script: list[int]) -> Path:
    """Writes a model that says a script over and over, from wherever it is begun.

    Args:
        directory: where to; it must not exist.
        script: token ids, each at most once.
    """
    shutil.copytree(_TINY, directory)
    config = json.loads((directory / "config.json").read_text())
    config |= {"tie_word_embeddings": False, "num_hidden_layers": _LAYERS}
    (directory / "config.json").write_text(json.dumps(config))
    weights = load_file(directory / "model.safetensors")
    for name, tensor in list(weights.items()):
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.zero_()
        for number in range(1, _LAYERS) if ".layers.0." in name else ():
            weights[name.replace(".layers.0.", f".layers.{number}.")] = tensor.clone()
    torch.manual_seed(0)
    known = torch.randn(config["vocab_size"], config["hidden_size"])
    known /= known.norm(dim=-1, keepdim=True)
    head = torch.zeros_like(known)
    head[script[1:] + script[:1]] = known[script] * _CERTAIN
    weights |= {"model.embed_tokens.weight": known, "lm_head.weight": head}
    weights["model.norm.weight"] = torch.ones_like(weights["model.norm.weight"])
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
