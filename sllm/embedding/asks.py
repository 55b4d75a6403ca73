"""What may be asked of models that embed and score, and what they answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sllm.embedding.purpose import Purpose, Task
from sllm.errors import InvalidArgument, InvalidPrompt

MAX_INPUTS: Final = 2048
"""Of one request."""
MAX_ANSWER_NUMBERS: Final = 12 * 1024 * 1024
"""In the vectors of one answer: four bytes each, well below what a message may have."""


@dataclass(frozen=True, slots=True)
class EmbedAsk:
    """Texts, or tokens, to make vectors of."""

    inputs: tuple[str | Sequence[int], ...]
    normalize: bool | None = None
    """Whether vectors have the length 1. None: as the model's files say."""
    dimensions: int | None = None
    """Their first so many numbers. None: all."""
    truncate: bool = False
    """Whether the end of what is too long is left out, instead of being refused."""

    def validate(self, purpose: Purpose, deployment: str) -> None:
        """Refuses what no instance of the model could answer.

        Raises:
            NotServed: The model does not embed.
            InvalidPrompt: An input is empty, or they are none or too many.
            InvalidArgument: Vectors of so many dimensions cannot be had, or not so many at once.
        """
        purpose.check_serves(Task.EMBED, deployment)
        _check_texts("inputs", self.inputs)
        if self.dimensions is not None:
            purpose.check_dimensions(self.dimensions)
        numbers = len(self.inputs) * (self.dimensions or purpose.dimensions)
        if numbers > MAX_ANSWER_NUMBERS:
            raise InvalidArgument(
                f"{len(self.inputs)} vectors of {purpose.dimensions} numbers are more than an "
                f"answer may have ({MAX_ANSWER_NUMBERS} numbers): ask for fewer at once"
            )


@dataclass(frozen=True, slots=True)
class ScoreAsk:
    """Documents to score, against queries or alone."""

    queries: tuple[str, ...]
    """One for all documents, one for each, or none."""
    documents: tuple[str, ...]
    raw: bool = False
    """The model's own numbers, without its activation."""
    truncate: bool = False
    """As in `EmbedAsk`, of documents."""

    def validate(self, purpose: Purpose, deployment: str) -> None:
        """Refuses what no instance of the model could answer.

        Raises:
            NotServed: The model does not score.
            InvalidPrompt: A text is empty, they are none or too many, or queries do not match.
        """
        purpose.check_serves(Task.SCORE, deployment)
        _check_texts("documents", self.documents)
        queries, documents = len(self.queries), len(self.documents)
        if queries not in (0, 1, documents):
            raise InvalidPrompt(
                f"there are {queries} queries and {documents} documents: give one query for all "
                "documents, or one for each"
            )
        if queries:
            _check_texts("queries", self.queries)
        elif purpose.task is Task.EMBED:
            raise InvalidPrompt(
                f"{deployment} embeds, and scores documents by how near they are to a query: give "
                "one"
            )

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Each document with its query, of which there are some."""
        many = len(self.queries) == len(self.documents)
        queries = self.queries if many else self.queries * len(self.documents)
        return tuple(zip(queries, self.documents, strict=True))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model makes of one text, or of one pair."""

    values: Sequence[float]
    """A vector, or a score for each label."""
    prompt_tokens: int
    """Tokens that it has seen."""
    truncated: bool = False
    """Whether an end was left out."""


def _check_texts(what: str, texts: Sequence[str | Sequence[int]]) -> None:
    if not 1 <= len(texts) <= MAX_INPUTS:
        raise InvalidPrompt(f"there are {len(texts)} {what}; give from 1 to {MAX_INPUTS}")
    for number, text in enumerate(texts):
        if not text:
            raise InvalidPrompt(f"{what}[{number}] is empty; give a text, or tokens")
