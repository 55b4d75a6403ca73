"""What prompts begin with, and who keeps it, from and to the protocol's messages."""

from serverlessllm.v1 import inference_service_pb2 as pb

from sllm.durations import to_duration, to_seconds
from sllm.prompt_prefixes import Keeper, Prefixes


def prefixes(message: pb.PromptPrefixes) -> Prefixes:
    """What a prompt begins with, and another node that keeps it, if one is named."""
    known = keeper(message.keeper) if message.HasField("keeper") else None
    return Prefixes(tuple(message.names), message.size_bytes, known)


def keeper(message: pb.PromptKeeper) -> Keeper:
    """A node that keeps what was computed of a prompt."""
    return Keeper(message.node_id, message.address, to_seconds(message.saved))


def keeper_message(one: Keeper) -> pb.PromptKeeper:
    """The same the other way."""
    saved = to_duration(one.saved_seconds)
    return pb.PromptKeeper(node_id=one.node_id, address=one.address, saved=saved)
