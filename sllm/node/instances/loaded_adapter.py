"""An adapter in a worker, or on its way there, and who uses it."""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from sllm.decay import Decaying
from sllm.node.instances.adapter_use import AdapterSpec
from sllm.node.store.lease import Lease

GiveWay = Callable[[], None]
"""Ends a use of an adapter that nobody waits for."""


@dataclass(slots=True, eq=False)
class LoadedAdapter:
    """Belongs to the event loop."""

    adapter_id: str
    """That the worker knows it by."""
    spec: AdapterSpec
    loading: asyncio.Task[Lease]
    users: dict[object, GiveWay | None] = field(default_factory=dict)
    """None: somebody waits for it."""
    demand: Decaying = field(default_factory=Decaying)
    expiry: asyncio.Task[None] | None = None
    """While nobody uses it."""
    idle: ExitStack = field(default_factory=ExitStack)
    """The same: its room is others' where they need it."""

    @property
    def is_there(self) -> bool:
        """Whether requests need not wait for it."""
        loading = self.loading
        return loading.done() and not loading.cancelled() and loading.exception() is None

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for any of its uses."""
        return None in self.users.values()

    @property
    def yields(self) -> bool:
        """Whether all of its uses can be ended for others."""
        return bool(self.users) and not self.is_awaited

    def give_way(self) -> None:
        """Ends its uses that nobody waits for."""
        for give_way in list(self.users.values()):
            if give_way:
                give_way()

    def stay(self) -> None:
        """It is used from now on."""
        self.expire_no_more()
        self.idle.close()

    def expire_no_more(self) -> None:
        """It does not leave because its time is up."""
        if self.expiry:
            self.expiry.cancel()
            self.expiry = None
