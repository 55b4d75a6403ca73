"""The client as admins use it: who may call."""

from serverlessllm.v1 import key_service_pb2 as pb

from sllm.client.base import BaseClient
from sllm.client.connection import PAGE_SIZE
from sllm.client.types.keys import CreatedKey, Key
from sllm.client.wire import keys as messages
from sllm.client.wire import operations
from sllm.client.wire.requests import fitting, new_request_id


class KeyClient(BaseClient):
    """The part of a client that makes and revokes keys."""

    async def create_key(
        self,
        *,
        role: str = "user",
        tenant: str = "default",
        ttl: float | None = None,
        note: str = "",
    ) -> CreatedKey:
        """Makes a key for callers. Its secret is told here, and nowhere again.

        Args:
            role: "user", "operator" or "admin".
            tenant: whose it is: 1-63 of [a-z0-9-].
            ttl: seconds after which it ends. None: it does not.
            note: what it is for.

        Raises:
            errors.InvalidArgument: Something of this cannot be.
            errors.PermissionDenied: The caller is no admin.
        """
        with fitting():
            request = pb.CreateKeyRequest(
                request_id=new_request_id(),
                role=messages.role_value(role),
                tenant=tenant,
                ttl=operations.duration(ttl),
                note=note,
            )
        answer = await self._connection.call(self._connection.keys.CreateKey, request)
        return CreatedKey(messages.key(answer.key), answer.secret)

    async def keys(self) -> list[Key]:
        """All keys, those included that are revoked or expired, in order of their ids."""
        request = pb.ListKeysRequest(page_size=PAGE_SIZE)
        pages = self._connection.pages(self._connection.keys.ListKeys, request)
        return [messages.key(one) async for page in pages for one in page.keys]

    async def revoke_key(self, key_id: str) -> Key:
        """Has a key count no more. Streams that have begun with it go on to their end.

        Raises:
            errors.KeyNotFound: There is none of this id.
        """
        with fitting():
            request = pb.RevokeKeyRequest(request_id=new_request_id(), key_id=key_id)
        answer = await self._connection.call(self._connection.keys.RevokeKey, request)
        return messages.key(answer.key)
