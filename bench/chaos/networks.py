"""Networks of servers: each in a namespace of its own, which can be cut off for real.

A bridge on this machine joins them. Packets of one that is cut off are lost without a word, as
with a cable that is pulled; of one that is parted from some others, those to them.
"""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

_MOST: Final = 250
_SECONDS: Final = 10.0


class Network(Protocol):
    """Where servers are, and what can be done to their connections."""

    @property
    def cuts(self) -> bool:
        """Whether connections can be cut here."""
        ...

    def host(self, number: int) -> str:
        """The address of a server."""
        ...

    def within(self, number: int, command: Sequence[str]) -> list[str]:
        """A command that runs a server at its address."""
        ...

    def cut(self, number: int) -> None:
        """Cuts one off from everybody."""
        ...

    def part(self, number: int, others: Sequence[int]) -> None:
        """Cuts one off from some others."""
        ...

    def heal(self, number: int) -> None:
        """Joins it with everybody again."""
        ...


class Loopback:
    """All on one address, where nothing can be cut: what there is without privileges."""

    cuts = False

    def host(self, number: int) -> str:
        """See Network."""
        return "127.0.0.1"

    def within(self, number: int, command: Sequence[str]) -> list[str]:
        """See Network."""
        return list(command)

    def cut(self, number: int) -> None:
        """See Network."""
        raise NotImplementedError("one that is alone on this machine's address is not cut off")

    def part(self, number: int, others: Sequence[int]) -> None:
        """See Network."""
        self.cut(number)

    def heal(self, number: int) -> None:
        """See Network."""


@dataclass(frozen=True, slots=True)
class Namespaces:
    """A namespace for each server, on a bridge of this process."""

    count: int
    mark: int
    """Of this process, in names and addresses."""
    cuts: bool = True

    @property
    def here(self) -> str:
        """This machine's own address among them."""
        return f"{self._subnet}.254"

    def host(self, number: int) -> str:
        """See Network."""
        return f"{self._subnet}.{number + 1}"

    def within(self, number: int, command: Sequence[str]) -> list[str]:
        """See Network."""
        return ["ip", "netns", "exec", self._name(number), *command]

    def cut(self, number: int) -> None:
        """See Network."""
        _ip("link", "set", self._outer(number), "down")

    def part(self, number: int, others: Sequence[int]) -> None:
        """See Network."""
        for other in others:
            self._inside(number, "route", "replace", "blackhole", f"{self.host(other)}/32")

    def heal(self, number: int) -> None:
        """See Network."""
        _ip("link", "set", self._outer(number), "up")
        self._inside(number, "route", "flush", "type", "blackhole")

    @property
    def _subnet(self) -> str:
        return f"10.{200 + self.mark // 250 % 50}.{self.mark % 250}"

    @property
    def _bridge(self) -> str:
        return f"sllm{self.mark}"

    def _name(self, number: int) -> str:
        return f"sllm{self.mark}-{number}"

    def _outer(self, number: int) -> str:
        return f"sv{self.mark}-{number}"

    def _inside(self, number: int, *arguments: str) -> None:
        _ip("-n", self._name(number), *arguments)

    @contextmanager
    def made(self) -> Iterator[None]:
        """Makes all of it, and takes it away after the block."""
        with ExitStack() as stack:
            _ip("link", "add", self._bridge, "type", "bridge")
            stack.callback(_ip, "link", "del", self._bridge)
            _ip("addr", "add", f"{self.here}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            for number in range(self.count):
                self._make(number, stack)
            yield

    def _make(self, number: int, stack: ExitStack) -> None:
        name, outer = self._name(number), self._outer(number)
        _ip("netns", "add", name)
        stack.callback(_ip, "netns", "del", name)
        _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", outer, "master", self._bridge, "up")
        self._inside(number, "addr", "add", f"{self.host(number)}/24", "dev", "eth0")
        self._inside(number, "link", "set", "eth0", "up")
        self._inside(number, "link", "set", "lo", "up")


@contextmanager
def network(count: int) -> Iterator[Network]:
    """Namespaces for so many servers, or what there is without the right to make them."""
    with ExitStack() as stack:
        namespaces = Namespaces(min(count, _MOST), os.getpid() % 10_000)
        try:
            stack.enter_context(namespaces.made())
        except (OSError, subprocess.SubprocessError):
            yield Loopback()
            return
        yield namespaces


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=_SECONDS)
