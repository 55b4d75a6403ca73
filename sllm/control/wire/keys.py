"""Keys: of the protocol, and ours. Their digests never leave the control plane."""

from typing import Final

from serverlessllm.v1 import key_service_pb2 as pb

from sllm import bounds
from sllm.control.types.access import ApiKey, CallerRole, KeyAsk
from sllm.control.types.calls import AnswerFormat
from sllm.control.wire import common


def ask(request: pb.CreateKeyRequest) -> KeyAsk:
    """What somebody wants.

    Raises:
        errors.InvalidArgument: It names no role.
    """
    role = bounds.one_of(request.role, tuple(CallerRole), "role")
    ttl = common.seconds(request.ttl) if request.HasField("ttl") else None
    return KeyAsk(request.tenant, role, ttl, request.note)


def message(key: ApiKey) -> pb.Key:
    """What may be told of a key."""
    return pb.Key(
        key_id=key.key_id,
        tenant=key.tenant,
        role=pb.CallerRole.ValueType(key.role),
        created_at=common.timestamp(key.created_at),
        expires_at=common.optional_timestamp(key.expires_at),
        revoked_at=common.optional_timestamp(key.revoked_at),
        note=key.note,
    )


def _key(kept: pb.Key) -> ApiKey:
    expires, revoked = kept.HasField("expires_at"), kept.HasField("revoked_at")
    return ApiKey(
        key_id=kept.key_id,
        digest="",
        tenant=kept.tenant,
        role=CallerRole(kept.role),
        created_at=common.seconds(kept.created_at),
        expires_at=common.seconds(kept.expires_at) if expires else None,
        revoked_at=common.seconds(kept.revoked_at) if revoked else None,
        note=kept.note,
    )


KEPT: Final[AnswerFormat[ApiKey]] = AnswerFormat(
    encode=lambda key: message(key).SerializeToString(),
    decode=lambda kept: _key(pb.Key.FromString(kept)),
)
"""How the answers to CreateKey and RevokeKey are kept: without a digest, and without a secret."""
