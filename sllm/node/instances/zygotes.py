"""The zygotes of a node, one for each engine, and which of them a model is for."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import structlog

from sllm import errors
from sllm.node.instances.zygote_client import Zygote
from sllm.node.worker.backends.names import TRANSFORMERS
from sllm.node.worker.messages import NO_PARSERS, ModelDescription, ParserNames

log = structlog.get_logger()

AUTO: Final = "auto"
"""The first engine of a node that a model can run on."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """An engine of a node."""

    name: str
    ready: bool
    """Whether workers are forked at once; one that is still importing has starts wait."""


@dataclass(frozen=True, slots=True)
class Described:
    """A model that was tried, and the engine that it was tried on."""

    engine: str
    model: ModelDescription


def check_has(engine: str, states: Sequence[EngineState]) -> None:
    """Makes sure that a node has an engine, or any, for `AUTO`.

    Raises:
        errors.EngineUnavailable: It does not.
    """
    names = [one.name for one in states]
    if engine != AUTO and engine not in names:
        raise _lacking(engine, names)


class Zygotes:
    """Belongs to one event loop, in the main thread; see `Zygote`."""

    def __init__(
        self, engines: Sequence[str], environment: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Nothing is started.

        Args:
            engines: by their names, the one that is preferred first; at least one.
            environment: variables of the zygotes and their workers, beside those of this process.
        """
        self._watchers: list[Callable[[], None]] = []
        self._by_engine = {name: Zygote(name, environment, self._changed) for name in engines}

    def subscribe(self, watcher: Callable[[], None]) -> None:
        """Calls `watcher` whenever an engine has become ready, or is not any more."""
        self._watchers.append(watcher)

    def start(self, pool_fd: int) -> None:
        """Starts all of them and returns; each gets ready by itself.

        Raises:
            errors.StartFailed: The system has no process, memory or descriptor for one.
        """
        for zygote in self._by_engine.values():
            zygote.start(pool_fd)

    def of(self, engine: str) -> Zygote:
        """The zygote of an engine.

        Raises:
            errors.EngineUnavailable: The node does not have it.
        """
        if zygote := self._by_engine.get(engine):
            return zygote
        raise _lacking(engine, self._by_engine)

    @property
    def states(self) -> tuple[EngineState, ...]:
        """The engines, the one that is preferred first; those that do not work are left out."""
        return tuple(
            EngineState(name, zygote.is_ready)
            for name, zygote in self._by_engine.items()
            if not zygote.has_failed
        )

    @property
    def settled(self) -> bool:
        """Whether each is ready, or has failed; one at least is ready."""
        found = self._by_engine.values()
        settled = all(one.is_ready or one.has_failed for one in found)
        return settled and any(one.is_ready for one in found)

    async def describe(
        self,
        directory: Path,
        dtype: str | None,
        engine: str,
        parsers: ParserNames = NO_PARSERS,
        *,
        takes_adapters: bool = False,
        ranks: int = 1,
        on_disk: bool = False,
    ) -> Described:
        """Tries whether a worker could serve the model in `directory`, and says what it needs.

        Args:
            directory: see `Zygote.describe`.
            dtype: the same.
            engine: on which it is to be. `AUTO`: the first of the node's that can.
            parsers: see `Zygote.describe`.
            ranks: the same.
            takes_adapters: the same.
            on_disk: the same.

        Raises:
            errors.EngineUnavailable: The node does not have the engine.
            errors.UnsupportedModel: The engine cannot run it; or none can.
            errors.StartFailed: As `Zygote.describe`.
        """

        async def on(name: str) -> Described:
            zygote = self.of(name)
            model = await zygote.describe(
                directory,
                dtype,
                parsers,
                takes_adapters=takes_adapters,
                ranks=ranks,
                on_disk=on_disk,
            )
            return Described(name, model)

        if engine != AUTO:
            return await on(engine)
        refusals: dict[str, errors.SllmError] = {}
        for name in self._worth_trying():
            try:
                return await on(name)
            except (errors.UnsupportedModel, errors.StartFailed) as refusal:
                if not (isinstance(refusal, errors.UnsupportedModel) or self.of(name).has_failed):
                    raise  # it may go well the next time, and so on the engine that is preferred
                log.info("zygote.refused", engine=name, problem=refusal.message)
                refusals[name] = refusal
        raise _of_all(refusals)

    async def probe(self, environment: Mapping[str, str]) -> str:
        """See `Zygote.probe`. All engines use devices by the same library."""
        quickest = TRANSFORMERS if TRANSFORMERS in self._by_engine else next(iter(self._by_engine))
        return await self.of(quickest).probe(environment)

    async def close(self) -> None:
        """Ends them, and all their workers."""
        for zygote in self._by_engine.values():
            await zygote.close()

    def _worth_trying(self) -> list[str]:
        working = [name for name, zygote in self._by_engine.items() if not zygote.has_failed]
        return working or list(self._by_engine)

    def _changed(self) -> None:
        for watcher in self._watchers:
            watcher()


def _lacking(engine: str, names: Iterable[str]) -> errors.EngineUnavailable:
    return errors.EngineUnavailable(
        f"this node does not have the engine {engine!r}; it has {', '.join(names)}"
    )


def _of_all(refusals: dict[str, errors.SllmError]) -> errors.SllmError:
    """One refusal for those of all engines: what they have in common is said once."""
    messages = dict.fromkeys(one.message for one in refusals.values())
    last = list(refusals.values())[-1]
    if len(messages) == 1:
        return last
    said = "; ".join(f"on {name}: {one.message}" for name, one in refusals.items())
    return type(last)(f"no engine of this node runs the model. {said}", metadata=last.metadata)
