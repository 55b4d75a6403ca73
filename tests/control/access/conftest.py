"""A control plane with certificates that asks its callers who they are, and its admin."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import sllm
from sllm.control.config import Addresses, ControlConfig
from sllm.control.server import running
from sllm.tls.identity import Role
from tests.tls.certs import Certs


@dataclass(frozen=True, slots=True)
class Guarded:
    """The control plane, as its callers find it."""

    addresses: Addresses
    directory: Path
    certs: Certs

    @property
    def address(self) -> str:
        """Of callers."""
        return self.addresses.callers

    @property
    def first_key(self) -> str:
        """The admin's, as its file has it."""
        return (self.directory / "admin-key").read_text().strip()

    def client(self, key: str) -> sllm.AsyncClient:
        """Somebody who shows that key."""
        return sllm.AsyncClient(self.address, api_key=key, tls_ca=str(self.certs.authority))


@asynccontextmanager
async def guarded_in(directory: Path, **settings: Any) -> AsyncIterator[Guarded]:
    """One that runs within the context, on the state that is in the directory."""
    certs = Certs(directory / "ca")
    config = ControlConfig(
        directory=directory / "control",
        listen_address="127.0.0.1:0",
        tls=certs.of(Role.CONTROL),
        node_patience_seconds=0.1,
        stop_grace_seconds=0.5,
        **settings,
    )
    async with running(config) as addresses:
        yield Guarded(addresses, directory / "control", certs)


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Guarded]:
    async with guarded_in(tmp_path) as one:
        yield one
