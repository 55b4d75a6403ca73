"""KeyService: who may call."""

from typing import Any

from serverlessllm.v1 import key_service_pb2 as pb
from serverlessllm.v1.key_service_pb2_grpc import KeyServiceServicer

from sllm.control.api.pagination import page_of
from sllm.control.control_plane import ControlPlane
from sllm.control.wire import common, keys


class KeyServicer(KeyServiceServicer):
    """Each method parses, calls and translates."""

    def __init__(self, plane: ControlPlane) -> None:
        self._ring = plane.keys

    async def CreateKey(self, request: pb.CreateKeyRequest, context: Any) -> pb.CreateKeyResponse:
        """Makes a key, and tells its secret, once."""
        created = await self._ring.create(keys.ask(request), common.call(request, keys.KEPT))
        return pb.CreateKeyResponse(key=keys.message(created.key), secret=created.secret)

    async def ListKeys(self, request: pb.ListKeysRequest, context: Any) -> pb.ListKeysResponse:
        """Lists keys, page by page."""
        known = self._ring.keys
        page = page_of(known, request.page_size, request.page_token)
        listed = [keys.message(known[key_id]) for key_id in page.keys]
        return pb.ListKeysResponse(keys=listed, next_page_token=page.next_token)

    async def RevokeKey(self, request: pb.RevokeKeyRequest, context: Any) -> pb.RevokeKeyResponse:
        """Has a key count no more."""
        key = await self._ring.revoke(request.key_id, common.call(request, keys.KEPT))
        return pb.RevokeKeyResponse(key=keys.message(key))
