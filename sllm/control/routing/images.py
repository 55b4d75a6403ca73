"""Images of requests: fetched where that is allowed, and looked at before anything is queued."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Final

from sllm import errors
from sllm.chat import images
from sllm.chat.looking import Looker
from sllm.chat.wire import image
from sllm.control.cluster.specs import Deployment
from sllm.control.routing.image_urls import ImageFetcher
from sllm.control.tenants.names import tenant_of
from sllm.control.wire import generations

_LOOKERS: Final = 2
"""Requests whose images are looked at, each by a process, which takes some 300 MiB at most then."""
MAX_WAITING: Final = 64
"""Requests whose images are looked at, or wait for it; and, for each deployment, are fetched."""
_RETRY_SECONDS: Final = 2.0


class ImageChecks:
    """Belongs to the event loop; decoding is done by a few processes."""

    def __init__(self, check_share: Callable[[str, Mapping[str, int]], None]) -> None:
        """`check_share` refuses one request more for a deployment, by how many each tenant has."""
        self._check_share = check_share
        self._fetcher = ImageFetcher()
        self._lookers = [Looker() for _ in range(_LOOKERS)]
        self._free = SimpleQueue[Looker]()
        for looker in self._lookers:
            self._free.put(looker)
        self._threads = ThreadPoolExecutor(_LOOKERS, "images")
        self._waiting: Counter[str] = Counter()
        """By what they wait for: the name of a deployment, or nothing for being looked at."""
        self._looked_at_for: Counter[str] = Counter()
        """By tenant, of those that wait for that."""

    async def settle(
        self, request: generations.GenerateRequest, deployment: Deployment, *, fetches: bool
    ) -> None:
        """Puts what its URLs lead to into a request, and sees whether all its images are some.

        Args:
            request: which may have none.
            deployment: that it is for.
            fetches: whether URLs are followed.

        Raises:
            errors.NotServed: The model does not see images.
            errors.InvalidImage: One is none, or out of bounds.
            errors.ImageUrlRefused: One may not be fetched.
            errors.ImageUnavailable: One cannot be fetched now.
            errors.InvalidPrompt: They do not belong to messages.
            errors.QueueFull: Those of too many other requests are looked at.
            errors.TenantLimit: The same, of its tenant's.
            errors.NoCapacity: There is no process to look at them, or it came to nothing.
        """
        found = generations.image_parts(request)
        if not found:
            return
        deployment.model.purpose.check_sees(request.deployment)
        if request.images and not request.HasField("token_ids"):
            raise errors.InvalidPrompt(
                "images belong into the messages that speak of them: make each a part of one"
            )
        if len(found) > images.MAX_IMAGES:
            raise errors.InvalidImage(
                f"there are {len(found)} images; a request may have {images.MAX_IMAGES}"
            )
        if any(one.HasField("url") for one in found):
            with self._place(deployment.name):
                await self._fetch(request, deployment, fetches=fetches)
        with self._place(), self._share(deployment.name):
            await self._look([image(one) for one in found])

    @contextmanager
    def _place(self, fetched_for: str = "") -> Iterator[None]:
        if self._waiting[fetched_for] >= MAX_WAITING:
            what = f"be fetched for {fetched_for}" if fetched_for else "be looked at"
            raise errors.QueueFull(
                f"the images of {MAX_WAITING} requests wait to {what}; try again later",
                retry_after=_RETRY_SECONDS,
            )
        self._waiting[fetched_for] += 1
        try:
            yield
        finally:
            self._waiting[fetched_for] -= 1
            if not self._waiting[fetched_for]:
                del self._waiting[fetched_for]

    @contextmanager
    def _share(self, deployment: str) -> Iterator[None]:
        self._check_share(deployment, self._looked_at_for)
        tenant = tenant_of(deployment)
        self._looked_at_for[tenant] += 1
        try:
            yield
        finally:
            self._looked_at_for[tenant] -= 1
            if not self._looked_at_for[tenant]:
                del self._looked_at_for[tenant]

    async def _fetch(
        self, request: generations.GenerateRequest, deployment: Deployment, *, fetches: bool
    ) -> None:
        for number, one in enumerate(generations.image_parts(request)):
            if not one.HasField("url"):
                continue
            if not fetches:
                raise errors.ImageUrlRefused(
                    f"images[{number}] is a URL, and a batch fetches none: send it as bytes"
                )
            one.data = await self._fetcher.fetch(
                one.url, deployment.spec.image_hosts, deployment.name
            )

    async def _look(self, found: list[images.Image]) -> None:
        images.check_sizes(found)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, self._looked_at, found)

    def _looked_at(self, found: list[images.Image]) -> None:
        looker = self._free.get()
        try:
            looker.look(found)
        finally:
            self._free.put(looker)

    def close(self) -> None:
        """Looks at none any more. Waits for the processes to end."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for looker in self._lookers:
            looker.close()
