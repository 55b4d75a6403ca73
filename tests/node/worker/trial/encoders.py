"""Models that embed and score: those that are served as transformers has them, and others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification

from sllm.node.worker.engine.encoder import Batches, Encodable, pooling_of
from sllm.node.worker.model.description import Architecture, load_architecture
from sllm.node.worker.model.module import build_module
from tests.encoders import POSITIONS, make_encoder

_LENGTHS = (5, 18, 1, POSITIONS - 2, 33)
_TOKENS = 1000

Build = Callable[[Architecture, Mapping[str, torch.Tensor]], Any]


@dataclass(frozen=True)
class EncoderCase:
    """A model of one of transformers' types."""

    model_type: str
    labels: int = 0
    """0: it embeds."""
    refused: str = ""
    """A pattern of the reason. Empty: it is served."""
    more: dict[str, Any] = field(default_factory=dict)
    """Of its configuration."""

    @property
    def name(self) -> str:
        """For a test, and for the table."""
        return f"{self.model_type}, {'scores' if self.labels else 'embeds'}"

    def make(self, directory: Path) -> Path:
        """Writes it."""
        return make_encoder(self.model_type, directory, labels=self.labels, **self.more)


_EMBED = (
    *("bert", "distilbert", "electra", "albert", "deberta-v2", "nomic_bert", "modernbert"),
    *("eurobert", "roberta", "xlm-roberta", "camembert", "mpnet", "esm", "ernie", "roformer"),
    *("megatron-bert", "squeezebert", "xlm-roberta-xl", "longformer"),
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gpt2", "gpt_neox", "opt"),
)
_SCORE = (
    *("bert", "distilbert", "electra", "albert", "deberta-v2", "modernbert", "roberta"),
    *("xlm-roberta", "camembert", "mpnet", "llama", "mistral", "qwen2", "qwen3", "gemma", "gpt2"),
)
ENCODERS: tuple[EncoderCase, ...] = (
    *(EncoderCase(name) for name in _EMBED),
    *(EncoderCase(name, labels=1) for name in _SCORE),
    EncoderCase("convbert", refused="of a text of 1 tokens among others differs"),
    EncoderCase("mobilebert", refused="of a text of 1 tokens among others differs"),
    EncoderCase("t5", refused="T5Model has an encoder and a decoder"),
    EncoderCase("bart", labels=2, refused="BartForSequenceClassification has an encoder and"),
)


def _texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(9, _TOKENS, (n,), generator=generator).tolist() for n in _LENGTHS]


def served(directory: Path, build: Build = build_module) -> torch.Tensor:
    """What a worker makes of texts side by side, with the weights of the files."""
    architecture = load_architecture(directory)
    module = build(architecture, load_file(directory / "model.safetensors")).eval()
    batches = Batches(module, pooling_of(architecture.use.purpose))
    return batches.compute([Encodable(tuple(text)) for text in _texts()])


def expected(directory: Path, pooling: str) -> torch.Tensor:
    """What transformers makes of each alone, pooled by hand."""
    auto = AutoModel if pooling else AutoModelForSequenceClassification
    model = auto.from_pretrained(directory, dtype=torch.float32).eval()
    return torch.stack([_alone(model, text, pooling) for text in _texts()])


@torch.inference_mode()
def _alone(model: Any, text: Sequence[int], pooling: str) -> torch.Tensor:
    ids = torch.tensor([list(text)])
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    found: torch.Tensor = output.last_hidden_state[0] if pooling else output.logits[0]
    if not pooling:
        return found
    return found[-1] if pooling == "last" else found.mean(0)
