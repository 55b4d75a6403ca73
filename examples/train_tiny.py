"""Train the small Llama of `examples/tiny-llama` on the Python language reference.

It takes about ten minutes on two CPU cores:

    python examples/train_tiny.py
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import track
from text import BOS, EOS, Section, read_sections, special_ids, train_tokenizer
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

CONTEXT = 512
VOCABULARY = 2048
ROWS_PER_STEP = 2
PEAK_RATE = 3e-3
NOISE = 0.05
PARAGRAPHS = 5
STEPS_PER_REPORT = 100
QUESTIONS = ["What is {}?", "Explain {}.", "Tell me about {}."]
SYSTEM = {"role": "system", "content": "You answer questions about the Python language."}
PROMPTS = ["The `for` statement", "A function definition", "When an exception"]


def main(
    destination: Annotated[Path, typer.Argument()] = Path(__file__).parent / "tiny-llama",
    steps: Annotated[int, typer.Option(help="Optimizer steps, of 1024 tokens each.")] = 1800,
    seed: int = 0,
) -> None:
    """Train the model, save it in Hugging Face format and print what it writes."""
    random.seed(seed)
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(VOCABULARY)
    tokenizer.model_max_length = CONTEXT
    model = new_model(tokenizer)
    train(model, endless_batches(tokenizer), steps)
    model.save_pretrained(destination)
    tokenizer.save_pretrained(destination)
    print_samples(model, tokenizer)


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return an untrained Llama of 1.8 million parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.04,
        tie_word_embeddings=True,
        **special_ids(tokenizer),
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**special_ids(tokenizer))
    return model


def train(model: LlamaForCausalLM, batches: Iterator[torch.Tensor], steps: int) -> None:
    """Fit the model to the batches with AdamW under a cosine schedule."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=0.1
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 15, steps)
    for step in track(range(1, steps + 1), "Training"):
        batch = next(batches)
        loss = model(input_ids=with_noise(batch), labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % STEPS_PER_REPORT == 0:
            print(f"step {step}: loss {loss.item():.2f}")


def with_noise(batch: torch.Tensor) -> torch.Tensor:
    """Replace a few tokens by others, so that the model learns to get over its own mistakes."""
    replaced = torch.rand(batch.shape) < NOISE
    return torch.where(replaced, torch.randint(VOCABULARY, batch.shape), batch)


def endless_batches(tokenizer: PreTrainedTokenizerFast) -> Iterator[torch.Tensor]:
    """Yield batches of token ids, [ROWS_PER_STEP, CONTEXT], packed anew for every epoch."""
    sections = read_sections()
    while True:
        texts = [*documents(sections), *chats(sections, tokenizer)]
        random.shuffle(texts)
        packed = tokenizer("".join(texts), add_special_tokens=False, verbose=False).input_ids
        rows = torch.tensor(packed[: len(packed) // CONTEXT * CONTEXT]).view(-1, CONTEXT)
        for start in range(0, len(rows), ROWS_PER_STEP):
            yield rows[start : start + ROWS_PER_STEP]


def documents(sections: list[Section]) -> Iterator[str]:
    """Yield the beginning of each section: of less text, the model learns more."""
    for section in sections:
        yield BOS + "\n\n".join(section.paragraphs[:PARAGRAPHS]) + EOS


def chats(sections: list[Section], tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    """Yield a question about each section with its first paragraph as the answer."""
    for section in sections:
        topic = section.title[:1].lower() + section.title[1:]
        asked = random.choice([topic, topic.replace("`", "")])
        question = {"role": "user", "content": random.choice(QUESTIONS).format(asked)}
        answer = {"role": "assistant", "content": section.paragraphs[0]}
        opening = random.choice([[], [SYSTEM]])
        yield tokenizer.apply_chat_template([*opening, question, answer], tokenize=False)


def print_samples(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Print a greedy continuation of each prompt, and the answer to a question."""
    question = [{"role": "user", "content": "What is the `with` statement?"}]
    chat = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    for prompt in [*(BOS + prompt for prompt in PROMPTS), chat]:
        inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=80)
        print(tokenizer.decode(output[0]), end="\n\n")


if __name__ == "__main__":
    typer.run(main)
