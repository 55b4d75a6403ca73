"""How batches lie in etcd: which keys there are, and values of any length in parts."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final
from urllib.parse import quote, unquote

from sllm.control.etcd.keys import Change, Entry, Put
from sllm.control.types.batches import Asks, Batch, Item

HEADS: Final = "batch-heads/"
"""One key for each batch, named by its run: all of them are read at once."""
STAGED: Final = "batch-staged/"
"""One for each run that is no batch yet."""
PART_BYTES: Final = 1 << 20
"""etcd takes 1.5 MiB at once: what is longer lies in parts."""
_RUNS: Final = "batches/"
_DIGITS: Final = 8
"""Of numbers in keys, which etcd orders as bytes."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Bytes that a batch takes up."""

    requests: int = 0
    """Those that have no result yet."""
    results: int = 0

    @property
    def together(self) -> int:
        """Both."""
        return self.requests + self.results

    def __add__(self, more: "Taken") -> "Taken":
        return Taken(self.requests + more.requests, self.results + more.results)


@dataclass(frozen=True, slots=True)
class Head:
    """A batch as it is stored."""

    batch: Batch
    taken: Taken

    def put(self) -> Put:
        """Stores it."""
        return Put(HEADS + self.batch.run_id, json.dumps(asdict(self)).encode())


@dataclass(frozen=True, slots=True)
class Piece:
    """A value of any length: what its key says, and the parts beside it."""

    main: Put
    parts: Sequence[Put]


@dataclass(frozen=True, slots=True)
class More:
    """The further parts of a value."""

    under: str
    """What their keys begin with."""
    count: int | None
    """How many of them, from the first on: after those there may be some of a longer value that
    came to nothing. None: an earlier version wrote them, and all are."""


def head(entry: Entry) -> Head:
    """What is stored of a batch."""
    fields = json.loads(entry.value)
    return Head(Batch(**fields["batch"]), Taken(**fields["taken"]))


def run(run_id: str) -> str:
    """What all keys of a run begin with, but for its head."""
    return f"{_RUNS}{run_id}/"


def requests(run_id: str, deployment: str | None = None) -> str:
    """What the keys of a run's requests begin with; of those for one deployment."""
    of_one = "" if deployment is None else f"{quote(deployment, safe='')}/"
    return f"{run(run_id)}requests/{of_one}"


def parts_of_requests(run_id: str) -> str:
    """What the keys of their further parts begin with."""
    return f"{run(run_id)}parts/requests/"


def results(run_id: str) -> str:
    """What the keys of a run's results begin with."""
    return f"{run(run_id)}results/"


def numbered(prefix: str, number: int) -> str:
    """The key of one of them."""
    return f"{prefix}{number:0{_DIGITS}d}"


def request_key(item: Item) -> str:
    """The key of a request."""
    return numbered(requests(item.run_id, item.deployment), item.number)


def parts_of_request(item: Item) -> str:
    """What the keys of its further parts begin with."""
    return numbered(parts_of_requests(item.run_id), item.number) + "/"


def deployment_of(key: str) -> str:
    """Whose request a key is."""
    return unquote(key.rsplit("/", 2)[1])


def number_of(key: str) -> int:
    """Which one a key is."""
    return int(key.rpartition("/")[2])


def request(item: Item) -> Piece:
    """A request, to be stored."""
    fields = {"id": item.request_id, "asks": int(item.asks)}
    return _piece(request_key(item), item.request, parts_of_request(item), fields)


def item(run_id: str, entry: Entry, content: bytes) -> Item:
    """A request that was stored."""
    fields, _ = _split(entry)
    number, deployment = number_of(entry.key), deployment_of(entry.key)
    return Item(run_id, number, fields["id"], deployment, content, Asks(fields["asks"]))


def result(run_id: str, number: int, outcome: bytes) -> Piece:
    """A result, to be stored."""
    under = numbered(f"{run(run_id)}parts/results/", number) + "/"
    return _piece(numbered(results(run_id), number), outcome, under, {})


def first_part(entry: Entry) -> tuple[bytes, "More | None"]:
    """The first part of a value, and which further ones there are. None: it is all."""
    fields, content = _split(entry)
    return content, More(fields["parts"], fields.get("count")) if "parts" in fields else None


def together(pieces: Sequence[Sequence[Change]], most: int) -> Iterator[list[Change]]:
    """Changes of as many pieces as one transaction takes, each of which stays whole."""
    group: list[Change] = []
    size = 0
    for changes in pieces:
        more = sum(len(one.value) for one in changes if isinstance(one, Put))
        if group and (len(group) + len(changes) > most or size + more > PART_BYTES):
            yield group
            group, size = [], 0
        group += changes
        size += more
    if group:
        yield group


def _piece(key: str, content: bytes, under: str, fields: Mapping[str, Any]) -> Piece:
    cut = range(PART_BYTES, len(content), PART_BYTES)
    parts = [
        Put(numbered(under, number), content[start : start + PART_BYTES])
        for number, start in enumerate(cut)
    ]
    told = {**fields, "parts": under, "count": len(parts)} if parts else fields
    main = json.dumps(told).encode() + b"\n" + content[:PART_BYTES]
    return Piece(Put(key, main), parts)


def _split(entry: Entry) -> tuple[dict[str, Any], bytes]:
    told, _, content = entry.value.partition(b"\n")
    return json.loads(told), content
