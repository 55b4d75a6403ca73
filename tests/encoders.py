"""Small random models that embed and score, in the files of transformers and its like."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from make_models import TOKENS
from text import train_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

POSITIONS: Final = 96
_SMALL: Final[Mapping[str, Any]] = {
    "vocab_size": TOKENS + 8,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.3,
}
_MORE: Final[Mapping[str, Mapping[str, Any]]] = {
    "modernbert": {
        "global_attn_every_n_layers": 2,
        "local_attention": 16,
        "sep_token_id": 1,
        "cls_token_id": 2,
    },
    "squeezebert": {"embedding_size": 64},
    **{
        name: {"num_key_value_heads": 2, "head_dim": 16}
        for name in ("qwen2", "qwen3", "mistral", "gemma", "gemma2")
    },
}


def make_encoder(
    kind: str,
    destination: Path,
    *,
    labels: int = 0,
    head: str = "",
    pooling: str = "",
    normalize: bool = False,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Writes a model of transformers' model type `kind`.

    Args:
        kind: such as "bert".
        destination: the directory.
        labels: of a model that scores. 0: it embeds.
        head: that it was trained with, "causal" or "masked". Empty: none is left.
        pooling: as sentence-transformers calls it, such as "mean_tokens". Empty: it has no files
            of theirs.
        normalize: whether they say that vectors have the length 1.
        seed: decides the weights.
        config: further fields of the configuration.
    """
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(TOKENS)
    tokenizer.add_special_tokens(
        {"cls_token": "<cls>", "sep_token": "<sep>", "mask_token": "<mask>"}
    )
    ids = {name: tokenizer.convert_tokens_to_ids(f"<{name}>") for name in ("cls", "sep")}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<cls> $A <sep>",
        pair="<cls> $A <sep> $B:1 <sep>:1",
        special_tokens=[("<cls>", ids["cls"]), ("<sep>", ids["sep"])],
    )
    fields = {**_SMALL, **_MORE.get(kind, {}), "pad_token_id": tokenizer.pad_token_id, **config}
    if labels:
        fields["num_labels"] = labels
    made = AutoConfig.for_model(kind, **fields)
    heads = {"": AutoModel, "causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM}
    auto = AutoModelForSequenceClassification if labels else heads[head]
    model = auto.from_config(made).eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name.lower():
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(destination)
    tokenizer.save_pretrained(destination)
    if pooling:
        _write_modules(destination, pooling, normalize=normalize)
    return destination


def _write_modules(directory: Path, pooling: str, *, normalize: bool) -> None:
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": paths[kind],
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, kind in enumerate(kinds)
    ]
    modes = ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    config = {f"pooling_mode_{mode}": mode == pooling for mode in modes}
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(config))


def change(directory: Path, file: str = "config.json", **fields: Any) -> None:
    """Sets fields of one of a model's files."""
    path = directory / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@torch.inference_mode()
def hidden(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """What a model of transformers makes of one text's tokens: [tokens, dimensions]."""
    tokens = torch.tensor([list(ids)])
    found: torch.Tensor = model(
        input_ids=tokens, attention_mask=torch.ones_like(tokens)
    ).last_hidden_state[0]
    return found
