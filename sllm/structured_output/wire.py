"""Forms from the protocol's messages."""

from serverlessllm.v1 import types_pb2 as pb

from sllm.errors import InvalidStructuredOutput
from sllm.structured_output.form import Form, Kind


def form(message: pb.StructuredOutput) -> Form:
    """The form that a message asks for.

    Raises:
        InvalidStructuredOutput: It asks for none.
    """
    which = message.WhichOneof("form")
    if which is None or (which == "json_object" and not message.json_object):
        raise InvalidStructuredOutput(
            f"structured_output says no form; set one of {', '.join(Kind)}, or leave it out"
        )
    if which == "json_object":
        return Form(Kind.JSON_OBJECT)
    if which == "choice":
        return Form(Kind.CHOICE, tuple(message.choice.texts))
    return Form(Kind(which), (getattr(message, which),))
