"""Between what admins say and see of keys and the protocol's messages."""

from serverlessllm.v1 import key_service_pb2 as pb

from sllm import errors
from sllm.client.types.enums import CallerRole
from sllm.client.types.keys import Key
from sllm.client.wire.values import moment, named


def role_value(role: str) -> pb.CallerRole.ValueType:
    """A role by its name, in any case.

    Raises:
        errors.InvalidArgument: It names none.
    """
    name = f"CALLER_ROLE_{role.upper()}"
    if name not in pb.CallerRole.DESCRIPTOR.values_by_name or role.upper() == "UNSPECIFIED":
        raise errors.InvalidArgument(f"{role!r} is no role: there are user, operator and admin")
    return pb.CallerRole.Value(name)


def key(message: pb.Key) -> Key:
    """A key as it is listed."""
    return Key(
        key_id=message.key_id,
        tenant=message.tenant,
        role=named(CallerRole, pb.CallerRole.DESCRIPTOR, message.role),
        created_at=moment(message.created_at),
        expires_at=moment(message.expires_at) if message.HasField("expires_at") else None,
        revoked_at=moment(message.revoked_at) if message.HasField("revoked_at") else None,
        note=message.note,
    )
