"""What a caller says of the form of a text, and its bounds."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sllm.errors import InvalidStructuredOutput

MAX_LETTERS: Final = 65_536
"""Of a schema, expression or grammar, and of all choices together."""
MAX_CHOICES: Final = 1024


class Kind(StrEnum):
    """How a form is described; the names are those of the protocol's fields."""

    JSON_SCHEMA = "json_schema"
    """JSON that a JSON Schema describes."""
    JSON_OBJECT = "json_object"
    """Any JSON object."""
    REGEX = "regex"
    """The whole text matches a regular expression, in the syntax of Rust's `regex`."""
    CHOICE = "choice"
    """One of some texts."""
    GRAMMAR = "grammar"
    """A context-free grammar in EBNF, as Lark or llama.cpp (GBNF) writes it."""


@dataclass(frozen=True, slots=True)
class Form:
    """One form. Tokens that would leave it are not generated."""

    kind: Kind
    texts: tuple[str, ...] = ()
    """The schema, as JSON text; the expression; the grammar; or the choices."""

    def validate(self) -> None:
        """Checks the bounds, and nothing that takes longer than to count.

        Raises:
            InvalidStructuredOutput: A text is missing, or too long.
        """
        letters = sum(map(len, self.texts))
        if letters > MAX_LETTERS:
            raise InvalidStructuredOutput(
                f"{self.kind} has {letters} letters, and may have {MAX_LETTERS}"
            )
        if len(self.texts) > MAX_CHOICES:
            raise InvalidStructuredOutput(
                f"choice has {len(self.texts)} texts, and may have {MAX_CHOICES}"
            )
        if self.kind is not Kind.JSON_OBJECT and not (self.texts and all(self.texts)):
            raise InvalidStructuredOutput(f"{self.kind} is empty")
