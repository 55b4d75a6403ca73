"""What models make of whole texts: vectors and scores."""

from collections.abc import Sequence
from dataclasses import dataclass

from sllm.client.types.receipts import Receipt


@dataclass(frozen=True, slots=True)
class Embedding:
    """The vector of one input."""

    values: Sequence[float]
    prompt_tokens: int
    """Tokens of the input that the model has seen."""
    truncated: bool
    """Whether the input's end was left out."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The vectors of all inputs, in their order."""

    embeddings: tuple[Embedding, ...]
    receipt: Receipt
    """Where the time went; the first token is the answer."""

    @property
    def vectors(self) -> list[Sequence[float]]:
        """The numbers alone, as numpy and its like take them."""
        return [one.values for one in self.embeddings]

    @property
    def prompt_tokens(self) -> int:
        """Of all inputs."""
        return sum(one.prompt_tokens for one in self.embeddings)


@dataclass(frozen=True, slots=True)
class Score:
    """What the model makes of one document."""

    values: tuple[float, ...]
    """One for each of the model's labels; a single one where there is no more than one."""
    prompt_tokens: int
    """Tokens of query and document that the model has seen for it."""
    truncated: bool
    """Whether an end was left out."""

    @property
    def value(self) -> float:
        """The first, which is the only one of rerankers and of models that embed."""
        return self.values[0]


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of all documents, in their order."""

    scores: tuple[Score, ...]
    receipt: Receipt
    """Where the time went; the first token is the answer."""

    @property
    def ranking(self) -> list[int]:
        """Indices of the documents, the one with the greatest score first."""
        return sorted(range(len(self.scores)), key=lambda index: -self.scores[index].value)

    @property
    def prompt_tokens(self) -> int:
        """Of all queries and documents."""
        return sum(one.prompt_tokens for one in self.scores)
