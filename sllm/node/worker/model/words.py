"""What requests say of single tokens and words, held against a model's vocabulary."""

from collections.abc import Iterable, Iterator, Sequence

from transformers import PreTrainedTokenizerFast

from sllm.errors import InvalidSampling
from sllm.sampling import Sampling


def check_known(sampling: Sampling, vocabulary: int) -> None:
    """Makes sure that a model has the tokens that are named.

    Raises:
        InvalidSampling: Names the first that it lacks.
    """
    biased = [token for token, _ in sampling.logit_bias]
    for name, tokens in (("logit_bias", biased), ("allowed_token_ids", sampling.allowed_token_ids)):
        if (largest := max(tokens, default=0)) >= vocabulary:
            raise InvalidSampling(
                f"{name} has token {largest}, and the model's vocabulary ends at {vocabulary - 1}"
            )


def check_endless(sampling: Sampling, stop_token_ids: frozenset[int]) -> None:
    """Makes sure that a generation of `min_tokens` is possible.

    Raises:
        InvalidSampling: Whatever is allowed ends it.
    """
    allowed = sampling.allowed_token_ids
    if allowed and sampling.min_tokens and stop_token_ids.issuperset(allowed):
        raise InvalidSampling(
            "min_tokens cannot be reached: each of allowed_token_ids ends the generation; allow "
            "others, or set ignore_eos"
        )


def sequences(
    bad_words: Iterable[str], tokenizer: PreTrainedTokenizerFast, vocabulary: int
) -> tuple[tuple[int, ...], ...]:
    """The tokens of words that are not to be generated: as a text begins with them, and within.

    As vLLM has it (`SamplingParams.update_from_tokenizer`): the form after a space counts if it is
    a token of its own, and not the space and then the same. What has a token that the tokenizer
    alone knows is never generated.
    """
    found = (one for word in bad_words for one in _forms(word, tokenizer))
    return tuple(one for one in dict.fromkeys(found) if max(one) < vocabulary)


def _forms(word: str, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[int, ...]]:
    text = word.lstrip()
    plain = _tokens(text, tokenizer)
    yield plain
    spaced = _tokens(f" {text}", tokenizer)
    if len(spaced) == len(plain) and spaced[0] != plain[0]:
        yield spaced


def _tokens(text: str, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    tokens: Sequence[int] = tokenizer.encode(text, add_special_tokens=False)
    if not tokens:
        raise InvalidSampling(f"bad_words has {text!r:.80}, of which the tokenizer makes no token")
    return tuple(tokens)
