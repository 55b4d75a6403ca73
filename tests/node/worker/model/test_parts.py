"""Models taken apart, and what is seen of their use of weights."""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
import torch
from torch import nn

from sllm.checkpoint.format.manifest import TensorEntry
from sllm.checkpoint.reading.tensors import tensors_within
from sllm.errors import Cancelled, WorkerDied
from sllm.node.tiers.pool import Pool
from sllm.node.worker.model import first_use
from sllm.node.worker.model.arrivals import Arrivals, chunks_of
from sllm.node.worker.model.first_use import FirstUse, FirstUses
from sllm.node.worker.model.mapping import Mapping, map_chunks
from sllm.node.worker.model.parts import parts_of
from tests.support import wait_until

CHUNK = 64 << 10
"""As much as the kernel maps beside a page that is read."""
ROWS = CHUNK // (4 * 64)


class Layer(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.register_parameter("weight", nn.Parameter(weight, requires_grad=False))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Reads a weight past the module that has it."""
        return rows @ self.inner.get_parameter("weight")[:64]


class Model(nn.Module):
    """Has its layers run from the last to the first, and a scale that no module has for itself."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.head = nn.Linear(64, ROWS, bias=False)
        self.head.weight = nn.Parameter(weights["head"], requires_grad=False)
        self.body = nn.Module()
        self.layers = [Layer(weights[name]) for name in ("first", "second")]
        self.body.list = nn.ModuleList(self.layers)
        self.scale = nn.Parameter(weights["scale"], requires_grad=False)
        self.unused = nn.Linear(64, ROWS, bias=False)
        self.unused.weight = nn.Parameter(weights["unused"], requires_grad=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        for layer in reversed(self.layers):
            rows = layer(rows)
        found: torch.Tensor = self.head(rows * self.scale[0, 0])
        return found


NAMES = ("unused", "first", "head", "alone", "second", "scale")
TENSORS = [
    TensorEntry(name, "F32", (ROWS, 64), 0, number * CHUNK, CHUNK)
    for number, name in enumerate(NAMES)
]


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(len(NAMES) * CHUNK, CHUNK)
    for chunk in range(len(NAMES)):
        with pool.view(chunk) as view:
            view[:] = b"\0" * CHUNK
    yield pool
    pool.close()


def made(pool: Pool, absent: set[int]) -> tuple[Mapping, Model]:
    mapping = map_chunks(pool.fd, CHUNK, [range(len(NAMES))], absent)
    memory = torch.frombuffer(mapping.buffer(0), dtype=torch.uint8)
    return mapping, Model(tensors_within(TENSORS, [memory]))


def names(use: FirstUse) -> tuple[list[str], list[str]]:
    """Of those that must be there at once, and of the others."""
    ordered = [NAMES[index] for index in use.tensors]
    return ordered[: use.at_once], ordered[use.at_once :]


def test_a_layer_is_one_part_and_so_is_what_stands_beside(pool: Pool) -> None:
    mapping, model = made(pool, set())
    parts = parts_of(model)
    found = [[NAMES[chunk] for chunk in sorted(chunks_of(one, mapping))] for one in parts.parts]
    assert found == [["scale"], ["head"], ["first"], ["second"], ["unused"]]
    assert parts.whole is model


def test_the_order_is_that_of_the_first_pass(pool: Pool) -> None:
    mapping, model = made(pool, set())
    uses = FirstUses(mapping, TENSORS, parts_of(model))
    uses.begin()
    assert uses.take() is None
    model(torch.zeros(1, 64))
    use = uses.take()
    assert use is not None
    assert names(use) == (["alone"], ["scale", "second", "first", "head", "unused"])
    model(torch.zeros(1, 64))
    assert uses.take() is None


def test_what_was_read_before_the_model_runs_must_be_there_at_once(pool: Pool) -> None:
    mapping, model = made(pool, set())
    uses = FirstUses(mapping, TENSORS, parts_of(model))
    ctypes.string_at(mapping.address + NAMES.index("head") * CHUNK, 1)
    uses.begin()
    model(torch.zeros(1, 64))
    use = uses.take()
    assert use is not None
    assert "head" in names(use)[0]
    assert "second" in names(use)[1]


@pytest.mark.parametrize("sandbox", ["has no such file", "has an empty one"])
def test_where_the_kernel_does_not_tell_what_was_read_all_must_be_there_at_once(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sandbox: str
) -> None:
    """The order is known all the same."""
    pagemap = tmp_path / "pagemap"
    if "empty" in sandbox:
        pagemap.touch()
    monkeypatch.setattr(first_use, "_PAGEMAP", pagemap)
    mapping, model = made(pool, set())
    uses = FirstUses(mapping, TENSORS, parts_of(model))
    uses.begin()
    model(torch.zeros(1, 64))
    use = uses.take()
    assert use is not None
    assert names(use) == (["alone", "scale", "second", "first", "head", "unused"], [])


def test_parts_wait_for_their_own_weights_alone(pool: Pool) -> None:
    absent = {NAMES.index(name) for name in ("first", "head", "unused")}
    mapping, model = made(pool, absent)
    arrivals = Arrivals(mapping, absent)
    arrivals.stand_before(parts_of(model).parts)
    entered: list[str] = []
    for layer, name in zip(model.layers, ("first", "second"), strict=True):
        layer.register_forward_pre_hook(lambda *_, name=name: entered.append(name))
    found: list[torch.Tensor] = []
    running = Thread(target=lambda: found.append(model(torch.zeros(1, 64))))
    running.start()
    wait_until(lambda: entered == ["second"])
    assert not found
    arrivals.arrived([NAMES.index("first")])
    arrivals.arrived([NAMES.index("head")])
    running.join(10)
    assert entered == ["second", "first"]
    assert found[0].shape == (1, ROWS)


@pytest.mark.parametrize("closes", [False, True])
def test_nobody_waits_for_ever(pool: Pool, closes: bool) -> None:
    mapping, model = made(pool, {NAMES.index("scale")})
    arrivals = Arrivals(mapping, {NAMES.index("scale")}, patience=0.01)
    arrivals.stand_before(parts_of(model).parts)
    if closes:
        arrivals.close()
    with pytest.raises(Cancelled if closes else WorkerDied):
        model(torch.zeros(1, 64))


def test_models_wait_where_their_weights_lie(tmp_path: Path, pool: Pool) -> None:
    """What was copied when the model was made is there: nothing waits for it."""
    mapping, _ = made(pool, set())
    parts = parts_of(nn.Linear(4, 4))
    assert [chunks_of(part, mapping) for part in parts.parts] == [set()]
