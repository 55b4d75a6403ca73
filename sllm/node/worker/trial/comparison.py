"""Whether the engine gives what transformers' own `generate` gives, on a small model."""

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from sllm.errors import UnsupportedModel
from sllm.node.worker.backends.interface import Backend
from sllm.node.worker.engine.interface import Capacity, EngineRequest, NewToken, Step
from sllm.sampling import Sampling

NEW_TOKENS = 10
_PAGE_TOKENS = 32
"""Those of each engine are of these, or of a whole part of them."""
_LENGTHS = (3, _PAGE_TOKENS + 5, _PAGE_TOKENS // 2 - 1, 300)
"""Of the prompts that are computed side by side; the last takes more than one step."""
_SHARED = _PAGE_TOKENS
"""Tokens that a later prompt has in common with one before: their cache entries are found."""
_KV_TOKENS = 1024
_TIMEOUT = 60.0
_GAIN = 2.0


@dataclass(frozen=True, slots=True)
class Measure:
    """How far two distributions of a token are apart, and may be."""

    of: Callable[[torch.Tensor, torch.Tensor], float]
    """What it is, of the logarithms of all tokens' probabilities."""
    most: float
    """That it may be."""
    unit: str
    """Of both, for people."""


EXACT: Final = Measure(
    lambda one, other: float((one - other).abs().max()), 1e-3, "in the logarithm of a probability"
)
"""Of models in float32: ten times its noise and more."""
ALIKE: Final = Measure(
    lambda one, other: float((one.exp() - other.exp()).abs().sum()) / 2, 0.5, "of all probability"
)
"""Of quantised ones, where a rounding may go the other way, or all is in bfloat16, which may say
much of unlikely tokens. It is nearly all where weights are taken in another order; the rest of
such a model is held to `EXACT`, with plain weights."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A greedy continuation."""

    tokens: tuple[int, ...]
    logprobs: torch.Tensor
    """float32 [tokens, vocabulary], by the reference."""


def randomise(model: Any, seed: int = 0) -> None:
    """Gives a model weights with which every part of it tells in the output.

    As models are initialised, attention is all but even, and its scores next to nothing: caps,
    windows and rotations would hardly show.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2:
                parameter.copy_(noise * (_GAIN / parameter.shape[-1] ** 0.5))
            else:
                parameter.add_(noise * 0.1)


def prompts(vocabulary: int, context: int) -> list[tuple[int, ...]]:
    """Those that are computed side by side, and after them one that begins like one of them."""
    generator = torch.Generator().manual_seed(1)
    room = context - NEW_TOKENS
    lengths = sorted({min(length, room) for length in _LENGTHS})
    made = [_random_prompt(length, vocabulary, generator) for length in lengths]
    longest = made[-1]
    later = longest[:_SHARED] + _random_prompt(3, vocabulary, generator)
    return [*made, later[:room]]


def _random_prompt(length: int, vocabulary: int, generator: torch.Generator) -> tuple[int, ...]:
    return tuple(torch.randint(3, vocabulary, (length,), generator=generator).tolist())


def reference(model: Any, prompt: Sequence[int]) -> Answer:
    """What transformers' `generate` gives for one prompt alone."""
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=-1,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logits = torch.stack([step[0].float() for step in output.logits])
    tokens = tuple(output.sequences[0, len(prompt) :].tolist())
    return Answer(tokens, logits.log_softmax(-1))


def compare(model: Any, vocabulary: int, context: int, backend: Backend, measure: Measure) -> None:
    """Has the engine generate for several prompts side by side, and then for one that shares.

    Args:
        model: a small one on the CPU, in float32 unless it is quantised. It is not used afterwards.
        vocabulary: tokens that it knows.
        context: tokens that its positions allow.
        backend: of the engine.
        measure: by which they are compared.

    Raises:
        UnsupportedModel: The engine gives anything else than `generate` does.
        Exception: Whatever the library raises.
    """
    asked = prompts(vocabulary, context)
    expected = [reference(model, prompt) for prompt in asked]
    together, after = list(range(len(asked) - 1)), [len(asked) - 1]
    generated = _generate(backend, model, vocabulary, asked, (together, after))
    for prompt, answer, tokens in zip(asked, expected, generated, strict=True):
        _check(len(prompt), answer, tokens, measure)


def _generate(
    backend: Backend,
    model: Any,
    vocabulary: int,
    asked: Sequence[Sequence[int]],
    rounds: Sequence[Sequence[int]],
) -> list[list[NewToken]]:
    steps: queue.Queue[Step | Exception] = queue.Queue()
    with backend.engine_over(model, Capacity(_KV_TOKENS, len(asked))) as engine:
        engine.start(steps.put, steps.put)
    found: list[list[NewToken]] = [[] for _ in asked]
    try:
        for numbers in rounds:
            for number in numbers:
                sampling = Sampling(temperature=0.0, seed=0)
                request = EngineRequest(
                    str(number), tuple(asked[number]), sampling, NEW_TOKENS, logprobs=vocabulary
                )
                engine.submit(request)
            _collect(steps, found, set(map(str, numbers)))
    finally:
        engine.stop()
    return found


def _collect(
    steps: "queue.Queue[Step | Exception]", found: list[list[NewToken]], waiting: set[str]
) -> None:
    while waiting:
        step = steps.get(timeout=_TIMEOUT)
        if isinstance(step, Exception):
            raise step
        if step.broken:
            raise UnsupportedModel("it gives no numbers (NaN or infinite logits)")
        for token in step.tokens:
            found[int(token.request_id)].append(token)
            if token.finish:
                waiting.discard(token.request_id)


def _check(
    prompt_tokens: int, answer: Answer, generated: Sequence[NewToken], measure: Measure
) -> None:
    """Compares the probabilities of all tokens: the likeliest alone may tell nothing.

    Where input and output share their embeddings, the last token is all but certain to come again.
    """
    for place, (token, expected) in enumerate(zip(generated, answer.tokens, strict=True)):
        assert token.logprob is not None
        found = torch.full_like(answer.logprobs[place], torch.nan)
        for top in token.logprob.top:
            found[top.token_id] = top.logprob
        off = measure.of(found, answer.logprobs[place])
        if not off <= measure.most:
            raise UnsupportedModel(
                f"token {place + 1} after {prompt_tokens} of a prompt differs from that of "
                f"transformers' own generate (by {off:.2g} {measure.unit})"
            )
        if token.token_id != expected:
            return  # a tie: the texts part here
