"""By what right a control plane gives orders to nodes."""

from typing import Final, Protocol

from sllm import errors


class Authority(Protocol):
    """Of several control planes one gives orders at a time, each in a later term than the last."""

    def term(self) -> int | None:
        """The number that an order given now carries. None: this control plane is the only one.

        Raises:
            errors.NotLeader: Others may lead by now: no order may be given.
        """
        ...

    def refused(self, error: errors.StaleTerm) -> None:
        """A node has heard of a later term."""
        ...


class _Alone:
    def term(self) -> int | None:
        return None

    def refused(self, error: errors.StaleTerm) -> None:
        return


ALONE: Final[Authority] = _Alone()
"""Of the only control plane."""
