"""What a deployment adds to the conversations that are sent to it."""

from typing import Literal, Protocol

from serverlessllm.v1 import types_pb2 as pb

from sllm import errors
from sllm.control.cluster.specs import Deployment


class _OfPrompt(Protocol):
    @property
    def messages(self) -> pb.ChatMessages: ...

    def HasField(self, field_name: Literal["messages"]) -> bool: ...  # protobuf's name


def take_template(request: _OfPrompt, deployment: Deployment) -> None:
    """Has a conversation rendered with the deployment's template, if it has one.

    Raises:
        errors.InvalidPrompt: The caller has sent one.
    """
    if not request.HasField("messages"):
        return
    if request.messages.chat_template:
        raise errors.InvalidPrompt(
            "messages.chat_template is not for callers: a template belongs to a deployment; give "
            "it at Deploy"
        )
    request.messages.chat_template = deployment.spec.chat_template
