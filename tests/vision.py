"""A small random model that sees images, and what transformers' own `generate` says of them."""

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_models import TOKENS
from PIL import Image
from text import train_tokenizer
from transformers import (
    AutoProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}"
    "{% endfor %}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""Of conversations, as templates of models that see write them."""
_SPECIAL = (
    *("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 3) for column in range(1, 3)),
)


def make_seeing_model(
    destination: Path,
    *,
    splits: bool = True,
    seed: int = 0,
    side: int = 32,
    context: int = 640,
    **vision: int,
) -> Path:
    """Writes a model of Idefics3, which is what SmolVLM is as well.

    Args:
        destination: the directory.
        splits: whether an image is seen in parts of `side` x `side` pixels, and once as a whole.
            Of 32 pixels, it has 34 tokens then, and 6 otherwise.
        seed: decides the weights.
        side: pixels.
        context: tokens.
        **vision: of the part that sees, in place of what is usual here.
    """
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(TOKENS)
    tokenizer.add_special_tokens({"additional_special_tokens": list(_SPECIAL)})
    tokenizer.chat_template = TEMPLATE
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": context,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    sees = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": 8,
        **vision,
    }
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = Idefics3Config(
        vision_config=sees, text_config=text, image_token_id=image_token, scale_factor=2
    )
    model = Idefics3ForConditionalGeneration(config).float()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(destination)
    reader = Idefics3ImageProcessorPil(
        size={"longest_edge": 2 * side},
        max_image_size={"longest_edge": side},
        do_image_splitting=splits,
    )
    Idefics3Processor(
        image_processor=reader,
        tokenizer=tokenizer,
        image_seq_len=(side // 16) ** 2,
        chat_template=TEMPLATE,
    ).save_pretrained(destination)
    return destination


def picture(number: int = 0, size: tuple[int, int] = (50, 40), form: str = "PNG") -> bytes:
    """A file with noise in it, another for each number."""
    noise = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, form)
    return file.getvalue()


def expected(model: Path, prompt: str, images: Sequence[bytes], count: int) -> list[int]:
    """The greedy tokens that transformers gives: of a prompt that was rendered, `count` of them."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    processor: Any = AutoProcessor.from_pretrained(model)
    pictures = [Image.open(BytesIO(one)).convert("RGB") for one in images]
    inputs = processor(
        text=prompt, images=pictures or None, return_tensors="pt", add_special_tokens=False
    )
    module: Any = Idefics3ForConditionalGeneration.from_pretrained(model).eval()
    with torch.inference_mode():
        found = module.generate(
            **inputs, do_sample=False, max_new_tokens=count, eos_token_id=None, pad_token_id=0
        )
    tokens: list[int] = found[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens
