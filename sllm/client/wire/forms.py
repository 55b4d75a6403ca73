"""Forms of texts, and JSON, from what callers say to the protocol's messages."""

import json

from serverlessllm.v1 import types_pb2 as pb

from sllm import errors
from sllm.client.types.chats import StructuredOutput


def structured_output(form: StructuredOutput) -> pb.StructuredOutput:
    """The form in the protocol.

    Raises:
        errors.InvalidStructuredOutput: It is none, or several, or its schema is no JSON.
    """
    if len(form) != 1:
        raise errors.InvalidStructuredOutput(
            f"give one form of structured_output, not {', '.join(form) or 'none'}"
        )
    ((kind, value),) = form.items()
    match kind:
        case "json_schema":
            return pb.StructuredOutput(
                json_schema=json_text(value, "json_schema", errors.InvalidStructuredOutput)
            )
        case "choice":
            texts = [value] if isinstance(value, str) else value
            return pb.StructuredOutput(choice=pb.Choice(texts=texts))  # type: ignore[arg-type]  # of texts
        case "json_object" | "regex" | "grammar":
            return pb.StructuredOutput(**{kind: value})  # type: ignore[arg-type]  # by name
    raise errors.InvalidStructuredOutput(f"structured_output has no form {kind!r:.80}")


def json_text(value: object, what: str, error: type[errors.SllmError]) -> str:
    """A value as JSON; a text is taken for what it says.

    Raises:
        SllmError: It cannot be written so; of the class that is given.
    """
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as problem:
        raise error(f"{what} is no JSON: {problem}") from problem
