"""What the agent and its zygote say to each other: one JSON object in each packet."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Final, get_args

from sllm.embedding.purpose import GENERATES, Purpose

MAX_PACKET_BYTES = 64 * 1024

DEFAULT_CONCURRENCY: Final = 64
"""Requests that an instance works on at once, where nobody says."""

INT8_PAGES: Final = ", int8"
"""How the name of a page's layout ends if its numbers were rounded to eight bits."""


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a model's configuration says of it."""

    architecture: str
    """The first entry of the configuration's `architectures`."""
    context_tokens: int
    """Tokens that the model's positions allow."""
    kv_bytes_per_token: int
    dtype: str
    """Name of the torch dtype in which the model is served."""
    vocabulary: int = 0
    """Tokens that the model knows. 0: not told."""
    purpose: Purpose = GENERATES
    """What it is for."""
    image_bytes: int = 0
    """Memory that images may come to take in a worker. 0: the model sees none."""


@dataclass(frozen=True, slots=True)
class ParserNames:
    """What takes answers in conversations apart. Empty: nothing does."""

    tool: str = ""
    """Calls of tools."""
    reasoning: str = ""
    """Thoughts."""


NO_PARSERS: Final = ParserNames()


@dataclass(frozen=True, slots=True)
class Ready:
    """Zygote -> agent: everything is imported; calls sent before are answered from now on."""


@dataclass(frozen=True, slots=True)
class Fork:
    """Agent -> zygote: fork a worker."""

    call: int
    """Chosen by the agent; the answer has it too."""
    instance_id: str
    socket: str
    """Path of the Unix socket that the worker serves on."""
    environment: dict[str, str]
    """Variables to set, beside those that the zygote was started with."""
    ranks: int = 1
    """Processes that run the model together: the worker forks all but itself."""


@dataclass(frozen=True, slots=True)
class Forked:
    """Zygote -> agent: the answer to `Fork`."""

    call: int
    pid: int


@dataclass(frozen=True, slots=True)
class Serving:
    """Worker -> agent: its socket takes connections."""

    pid: int


@dataclass(frozen=True, slots=True)
class Exited:
    """Zygote -> agent: a worker has ended."""

    pid: int
    status: int
    """As waitpid(2) gives it."""


@dataclass(frozen=True, slots=True)
class Describe:
    """Agent -> zygote: try whether a model could be served, and describe it."""

    call: int
    directory: str
    """Has the model's small files, and its weights or their headers."""
    dtype: str | None
    """Name of a torch dtype that weights are converted to. None: as stored."""
    compared: list[str]
    """The `Described.features` of models for which the engine need not be tried again."""
    parsers: ParserNames = NO_PARSERS
    """That are to take the model's answers apart."""
    takes_adapters: bool = False
    """Whether the engine is to run it with adapters."""
    ranks: int = 1
    """Processes that are to run it together."""
    on_disk: bool = False
    """Whether its experts are to be read as they are used."""


@dataclass(frozen=True, slots=True)
class DescribeAdapter:
    """Agent -> zygote: hold an adapter against the model that is to be its base."""

    call: int
    directory: str
    """Has the adapter's settings."""
    tensors: str
    """A file that lists its tensors as JSON: name, dtype and shape of each."""
    base: str
    """Has the base's small files."""
    max_rank: int
    """That adapters of the base may have."""


@dataclass(frozen=True, slots=True)
class AdapterDescribed:
    """Zygote -> agent: the answer to `DescribeAdapter`."""

    call: int
    rank: int
    """The greatest of all that it adds."""
    target_modules: list[str]
    """Last parts of the names of the layers that it adds to, in order."""


@dataclass(frozen=True, slots=True)
class Described:
    """Zygote -> agent: the answer to `Describe`."""

    call: int
    model: ModelDescription
    features: str
    """The same for models that the engine treats alike, with the same libraries."""
    unused: str
    """Tensors of the checkpoint that the model has no use for; empty: all are used."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Agent -> zygote: see whether the engine could use a device."""

    call: int
    environment: dict[str, str]
    """Variables that a worker on the device gets."""


@dataclass(frozen=True, slots=True)
class Probed:
    """Zygote -> agent: the answer to `Probe`."""

    call: int
    problem: str
    """Why it could not. Empty: it could."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Zygote -> agent: the answer to a call that failed."""

    call: int
    code: int
    reason: str
    message: str
    metadata: dict[str, str]


Message = (
    Ready
    | Fork
    | Forked
    | Serving
    | Exited
    | Describe
    | Described
    | DescribeAdapter
    | AdapterDescribed
    | Probe
    | Probed
    | Failed
)

_TYPES: dict[str, Any] = {cls.__name__: cls for cls in get_args(Message)}


def to_packet(message: Message) -> bytes:
    """A message as it is sent."""
    return json.dumps({"type": type(message).__name__, **asdict(message)}).encode()


def from_packet(packet: bytes) -> Message:
    """The message in a packet."""
    content = json.loads(packet)
    cls = _TYPES[content.pop("type")]
    if cls is Described:
        content["model"] = _description(content["model"])
    if cls is Describe:
        content["parsers"] = ParserNames(**content["parsers"])
    message: Message = cls(**content)
    return message


def _description(fields: dict[str, Any]) -> ModelDescription:
    return ModelDescription(purpose=Purpose.of(fields.pop("purpose")), **fields)
