"""The store, off the event loop: one call at a time, in a thread of its own."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from sllm.control.state.store import Store
from sllm.control.types.calls import Answer, Call

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class StoreThread:
    """Calls methods that block, one at a time, for those that live in the event loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")

    async def run(
        self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """The result of a method of a store, called after all those before.

        A task that is cancelled meanwhile gets it all the same, and is cancelled where it waits
        next: what is stored has to come into force as well.
        """
        loop = asyncio.get_running_loop()
        return await _whole(loop.run_in_executor(self._thread, lambda: work(*args, **kwargs)))

    def end(self) -> None:
        """Lets the thread end."""
        self._thread.shutdown()


class Durable(StoreThread):
    """What has to survive a restart, for those that live in the event loop."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        """Its methods block: they go through `run`."""

    async def recall(self, call: Call[Answer]) -> Answer | None:
        """The first answer to a call that is repeated, or None if it is new.

        Raises:
            errors.RequestIdInUse: Its id was used for a call of other content.
        """
        return await self.run(self.store.recall, call)

    async def close(self) -> None:
        """Ends the use of the store, once what is under way is done."""
        await self.run(self.store.close)
        self.end()


async def _whole(work: asyncio.Future[Result]) -> Result:
    task, cancelled = asyncio.current_task(), False
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            cancelled = True
    if task and cancelled:
        # The cancellation that was held back comes at the next await. It has to count once:
        # asyncio.timeout tells its own from others by the number.
        task.uncancel()
        task.cancel()
    return work.result()
