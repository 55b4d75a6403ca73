"""Whoever fails while a generation moves, it ends complete and correct, and nothing is left over.

Every message between a source and a destination passes through a server of the test's, and so do
those between them and the control plane: a fault strikes at a step of the migration by its name.

Each party is struck at each step, by one of the faults in turn, so that each fault strikes each
party at two steps or three. Left out are the other two faults at the same step: what a party is
told of a death, a silence and a broken connection is the same error, whichever it was, and what
differs (how soon it is told, and that the silent come back) is seen at the steps that are there.
Every second of these turns is taken at night alone: the rest has each fault strike each party.
What the turns leave out and what is special is in `OTHERS` and `AT_NIGHT`. Callers who go on are
never told of an error: there is always a node left here.

What the parties tell one another is the same on each engine: on all but one it is tried at night.
"""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from serverlessllm.v1 import migration_service_pb2 as pb
from serverlessllm.v1 import node_service_pb2 as node_pb

import sllm
from sllm import errors
from tests.e2e.between import Between
from tests.e2e.engines import others_at_night
from tests.e2e.generations import ask, read_to, same
from tests.e2e.web import CALLER, MIGRATION, Web, web_of
from tests.support import assert_eventually

pytestmark = [
    others_at_night,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),  # each node that is killed imports its engine again
]

NODES = 3
SECONDS = 60.0
TRIES = 10
TOKENS = 400
"""Of each generation, which is to go on for longer than finding it a place takes."""
MULTIPLEX = "/serverlessllm.v1.NodeService/Multiplex"

STEPS = {
    "begun": ("round", "held"),
    "computing": ("round", "passed"),
    "computed": ("computed", "held"),
    "before cutover": ("computed", "passed"),
    "cutover sent": ("cutover", "held"),
    "taken": ("taken", "held"),
    "spliced": ("continuation", "passed"),
}
"""Of each step the message that it begins with, and whether the fault strikes before it arrives."""
PARTIES = ("source", "destination", "control", CALLER)
FAULTS = ("killed", "cut off", "stopped")
TURNS = {
    (who, FAULTS[(place + turn) % 3], step): bool((place + turn) % 2)
    for (turn, who), (place, step) in product(enumerate(PARTIES), enumerate(STEPS))
}
"""Whether each is taken at night alone."""
OTHERS = [
    # Both go on, and do not hear each other.
    *(("link", "cut off", step) for step in ("computing", "cutover sent", "taken")),
    ("source", "killed", "taken"),  # the destination goes on, and nobody has said so
]
AT_NIGHT = [("destination", "killed", "spliced"), ("control", "killed", "taken")]
"""As by day, one step later."""


class Trap:
    """Strikes at one message of the next migration, and holds it."""

    def __init__(self, way: Between, step: str) -> None:
        self.sprung = asyncio.Event()
        self._kind, self._when = STEPS[step]
        self._open = asyncio.Event()
        way.watch, way.passed = self._watch, self._passed

    def let_go(self) -> None:
        """Passes the message on."""
        self._open.set()

    async def _watch(self, method: str, asking: bool, message: bytes) -> None:
        if self._when == "held" and self._is_it(method, asking, message):
            self.sprung.set()
            await self._open.wait()

    def _passed(self, method: str, asking: bool, message: bytes) -> None:
        if self._when == "passed" and self._is_it(method, asking, message):
            self.sprung.set()

    def _is_it(self, method: str, asking: bool, message: bytes) -> bool:
        if self.sprung.is_set():
            return False
        return self._kind == _kind(method, asking, message)


def _kind(method: str, asking: bool, message: bytes) -> str | None:
    if method == MULTIPLEX and asking:
        request = node_pb.MultiplexRequest.FromString(message).begin.request
        return "continuation" if request.HasField("continuation") else None
    if not method.startswith(MIGRATION):
        return None
    if asking:
        return pb.MigrationServiceMigrateRequest.FromString(message).WhichOneof("step")
    return pb.MigrationServiceMigrateResponse.FromString(message).WhichOneof("step")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def web(
    tmp_path_factory: pytest.TempPathFactory, models: Path, engine: str
) -> AsyncIterator[Web]:
    """Three nodes, two of them filled by an instance of one deployment."""
    async with web_of(tmp_path_factory.mktemp("web"), NODES, engine) as web:
        await assert_eventually(lambda: is_deployed(web, f"file://{models / 'tiny-llama'}"), 60.0)
        yield web


async def is_deployed(web: Web, source: str) -> bool:
    """Whether it could be; on a busy machine all nodes may be out of sight for a moment."""
    options: dict[str, Any] = {"min_replicas": 2, "max_replicas": 2, "kv_cache_tokens": 10**6}
    with suppress(errors.NoNodes):
        await web.client.deploy("moving", source, **options)
        return True
    return False


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def expected(web: Web) -> list[sllm.Result]:
    """What the generations are when nothing happens."""
    await web.settle(2)
    return [await ask(web.client, number, max_tokens=TOKENS).result() for number in range(3)]


class Scene:
    """One generation that moves, and one at each end of its way that goes on beside it."""

    def __init__(self, web: Web, source: str, destination: str) -> None:
        self.web = web
        self.parties = {"source": source, "destination": destination}
        self.beside: list[asyncio.Task[sllm.Result]] = []

    async def move(self, request_id: str, step: str) -> tuple[Trap, asyncio.Task[Any]] | None:
        """Asks for the move; returns at the step. None: the generation has ended before."""
        trap = Trap(self.web.to_node[self.parties["destination"]], step)
        moving = asyncio.create_task(self._move(request_id))
        sprung = asyncio.create_task(trap.sprung.wait())
        try:
            either: list[asyncio.Task[Any]] = [sprung, moving]
            await asyncio.wait(either, timeout=SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if moving.done() and _has_ended(moving.result()):
                return None
            # Its own end is no sign: it may be told of before the router goes on elsewhere.
            await asyncio.wait((sprung,), timeout=SECONDS)
            assert trap.sprung.is_set(), f"it did not come to that: {moving}"
        finally:
            sprung.cancel()
        return trap, moving

    async def _move(self, request_id: str) -> sllm.Migration | errors.SllmError:
        """What has come of it; what matters is what becomes of the generation."""
        to = self.parties["destination"]
        try:
            return await self.web.client.migrate(request_id=request_id, to_node=to, timeout=SECONDS)
        except errors.SllmError as error:
            return error

    async def strike(self, who: str, fault: str, trap: Trap) -> None:
        """Does it to one of the servers, or to the way between two of them, and makes it good."""
        name = self.parties.get(who, who)
        if who == "link":
            self.web.cut_migration(self.parties["destination"])
        elif fault == "killed":
            await self.web.kill(name)
        elif fault == "stopped":
            self.web.part(name).process.send_signal(signal.SIGSTOP)
        else:
            self.web.cut(name)
        trap.let_go()
        if fault != "killed":
            await self._until_noticed(name)
            self.web.mend()
        if fault == "stopped":
            self.web.part(name).process.send_signal(signal.SIGCONT)

    async def _until_noticed(self, name: str) -> None:
        """Returns once the others do without it: only then it comes back."""
        web = self.web

        async def is_lost() -> bool:
            return name not in [node.node_id for node in await web.client.nodes()]

        if name in web.nodes:
            await assert_eventually(is_lost, timeout=SECONDS)
        elif name == "control":
            await asyncio.sleep(2.5)  # nobody else would tell


def _has_ended(moved: sllm.Migration | errors.SllmError) -> bool:
    """Whether there was nothing to move any more, as on a fast machine."""
    if isinstance(moved, errors.SllmError):
        return isinstance(moved, errors.RequestNotFound)
    return [one.outcome for one in moved.requests] == ["ENDED"]


async def moved_to(web: Web, step: str) -> tuple[Scene, sllm.AsyncStream, Trap, asyncio.Task[Any]]:
    """A generation whose move has come to a step."""
    for _ in range(TRIES):
        scene, stream = await begin(web)
        if moved := await scene.move(stream.request_id, step):
            return scene, stream, *moved
        await asyncio.gather(stream.result(), *scene.beside)
    raise AssertionError(f"{TRIES} generations have ended before they were moved")


async def begin(web: Web) -> tuple[Scene, sllm.AsyncStream]:
    """A generation, and others on both instances."""
    await web.settle(2)
    stream = ask(web.caller, 0, max_tokens=TOKENS)
    while not isinstance(event := await stream.receive(), sllm.Started):
        assert event is not None
    return await beside(web, event.node_id), stream


async def beside(web: Web, source: str) -> Scene:
    """Where a generation on `source` may move to, and others that go on at both ends."""
    instances = {one.node_id for one in await web.client.instances()}
    (destination,) = instances - {source}
    scene = Scene(web, source, destination)
    others = [ask(web.client, number, max_tokens=TOKENS) for number in (1, 2)]
    await asyncio.gather(*(read_to(one, 2) for one in others))
    scene.beside = [asyncio.create_task(one.result()) for one in others]
    return scene


def _taken(case: tuple[str, str, str]) -> Any:
    """A case as pytest takes it."""
    marks = [pytest.mark.nightly] if TURNS.get(case, case in AT_NIGHT) else []
    return pytest.param(*case, id="-".join(case).replace(" ", "_"), marks=marks)


SERVERS = [_taken(case) for case in (*TURNS, *OTHERS, *AT_NIGHT) if case[0] != CALLER]
CALLERS = [_taken(case) for case in TURNS if case[0] == CALLER]


@pytest.mark.parametrize(("who", "fault", "step"), SERVERS)
async def test_a_server_fails(
    web: Web, expected: list[sllm.Result], who: str, fault: str, step: str
) -> None:
    scene, stream, trap, moving = await moved_to(web, step)
    result = asyncio.create_task(stream.result())
    await scene.strike(who, fault, trap)
    async with asyncio.timeout(SECONDS):
        results = await asyncio.gather(result, *scene.beside)
        await moving
    same(results, expected)
    await web.nothing_is_left()


@pytest.mark.parametrize(("who", "fault", "step"), CALLERS)
async def test_the_caller_fails(
    web: Web, expected: list[sllm.Result], who: str, fault: str, step: str
) -> None:
    fails = _is_cut_off if fault == "cut off" else _is_a_process
    scene, moving = await fails(web, expected[0], fault, step)
    async with asyncio.timeout(SECONDS):
        same(await asyncio.gather(*scene.beside), expected[1:])
        await moving
    await web.nothing_is_left()


async def _is_cut_off(
    web: Web, expected: sllm.Result, fault: str, step: str
) -> tuple[Scene, asyncio.Task[Any]]:
    """The client reads on by itself."""
    scene, stream, trap, moving = await moved_to(web, step)
    result = asyncio.create_task(stream.result())
    web.cut(CALLER)
    trap.let_go()
    web.mend()
    same([await asyncio.wait_for(result, SECONDS)], [expected])
    return scene, moving


async def _is_a_process(
    web: Web, expected: sllm.Result, fault: str, step: str
) -> tuple[Scene, asyncio.Task[Any]]:
    """The caller is killed, or stopped for a while."""
    for number in range(TRIES):
        if found := await _try_a_process(web, expected, fault, step, f"{step} {number}"):
            return found
    raise AssertionError(f"{TRIES} generations have ended before they were moved")


async def _try_a_process(
    web: Web, expected: sllm.Result, fault: str, step: str, request_id: str
) -> tuple[Scene, asyncio.Task[Any]] | None:
    await web.settle(2)
    asked = (web.control.address, "0", str(TOKENS), request_id)
    command = (sys.executable, "-m", "tests.e2e.caller", *asked)
    caller = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert caller.stdout
        source = await asyncio.wait_for(caller.stdout.readline(), SECONDS)
        scene = await beside(web, source.decode().strip())
        moved = await scene.move(request_id, step)
        if moved is None:
            await asyncio.gather(*scene.beside)
            return None
        trap, moving = moved
        caller.send_signal(signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
        trap.let_go()
        if fault == "stopped":
            await moving
            caller.send_signal(signal.SIGCONT)
            told = json.loads(await asyncio.wait_for(caller.stdout.readline(), SECONDS))
            assert (told["token_ids"], told["text"]) == (list(expected.token_ids), expected.text)
        await asyncio.wait_for(caller.wait(), SECONDS)
    finally:
        if caller.returncode is None:
            caller.kill()
    return scene, moving
