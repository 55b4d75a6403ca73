"""Commands that need more than a plain install brings: an extra of the distribution."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final

from typer.core import TyperCommand

DISTRIBUTION: Final = "sllm"
_OURS: Final = ("sllm", "serverlessllm")
_OF_EXTRA: Final = re.compile(r"""\bextra *== *["']""")


class NotInstalled(Exception):
    """A command needs an extra that is not there; says which."""


def missing(extra: str) -> list[str]:
    """The distributions that an extra asks for and that are not installed, of whatever version."""
    from importlib import metadata  # take longer than all the rest

    from packaging.requirements import Requirement

    try:
        asked = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []  # run from its sources, whose imports tell
    asked = [one for one in asked if _OF_EXTRA.search(one)]
    named = [one for one in map(Requirement, asked) if one.marker and _wants(one.marker, extra)]
    return [one.name for one in named if not _is_installed(one.name)]


def _wants(marker: Any, extra: str) -> bool:
    return bool(marker.evaluate({"extra": extra}))


def _is_installed(name: str) -> bool:
    from importlib import metadata

    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


@contextmanager
def of_extra(extra: str, command: str) -> Iterator[None]:
    """Tells of the extra, should a module of another distribution be missing inside.

    Raises:
        NotInstalled: One is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name in _OURS:
            raise
        raise _not_installed(extra, command, [name]) from error


def _not_installed(extra: str, command: str, names: list[str]) -> NotInstalled:
    what = ", ".join(names)
    return NotInstalled(
        f"`sllm {command}` needs {what}, which a plain install leaves out: "
        f"pip install '{DISTRIBUTION}[{extra}]'"
    )


class _NeedsExtra(TyperCommand):
    """A command that says at once if its extra is missing. Its help is shown all the same."""

    extra: ClassVar[str]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the options, some of which their extra reads."""
        with of_extra(self.extra, self.name or ""):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command.

        Raises:
            NotInstalled: The extra is not there, or not all of it.
        """
        if names := missing(self.extra):
            raise _not_installed(self.extra, self.name or "", names)
        with of_extra(self.extra, self.name or ""):
            return super().invoke(ctx)


class NeedsServer(_NeedsExtra):
    """It runs servers, or reads checkpoints."""

    extra = "server"


class NeedsOperator(_NeedsExtra):
    """It runs the operator."""

    extra = "operator"


class NeedsGateway(_NeedsExtra):
    """It runs a gateway."""

    extra = "gateway"
