"""Which nodes compute layers for one that reads a model from its disk."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm.control.cluster.instances import Instance
from sllm.control.cluster.needs import need_of
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.snapshot import UNKNOWN
from sllm.control.cluster.specs import DeploymentSpec, EngineConfig
from sllm.control.cluster.tiers import Copy, Link, Tier
from sllm.control.placement.decisions import Demand
from sllm.control.placement.explain import explain
from sllm.control.placement.lenders import LEAST_GAIN, MOST_LENDERS, loan_for
from sllm.control.placement.placement import place
from sllm.control.placement.start_estimate import READ
from sllm.control.types.givers import Loan
from tests.control import shapes
from tests.control.shapes import copy, facts, need, view

SIZE = 4000
MODEL = replace(need(size=SIZE), layered=True)
DIGEST = MODEL.checkpoint.digest
ON_SSD = (copy(DIGEST, Tier.SSD, size=SIZE),)


def node(
    name: str,
    rate: float = 1000.0,
    copies: Sequence[Copy] = ON_SSD,
    instances: Sequence[Instance] = (),
    dram: int = SIZE,
) -> NodeView:
    about = facts(name, dram=dram, init=0.1)
    links = {**about.links, READ: Link(rate)}
    return view(replace(about, links=links), copies=copies, instances=instances)


def loan(borrower: NodeView, *others: NodeView, closed: Sequence[str] = ()) -> Loan | None:
    nodes = {one.node_id: one for one in (borrower, *others)}
    return loan_for(borrower, nodes, MODEL, 100, UNKNOWN, closed)


def test_an_idle_node_with_the_same_weights_reads_its_part() -> None:
    found = loan(node("a"), node("b", 3000.0))
    assert found
    assert [(one.node_id, one.share) for one in found.lenders] == [("b", 0.75)]
    assert found.gain == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("why", "other"),
    [
        ("lacks it", node("b", copies=())),
        ("has half of it", node("b", copies=[copy(DIGEST, size=SIZE, resident=10)])),
        ("runs something", node("b", instances=[shapes.instance("i", node_id="b")])),
        ("would have to evict", node("b", dram=SIZE - 1)),
        ("has never read", node("b", 0.0)),
        ("is about to go", view(replace(node("b").facts, leaving=True), copies=ON_SSD)),
    ],
)
def test_who_has_something_better_to_do_lends_nothing(why: str, other: NodeView) -> None:
    assert loan(node("a"), other) is None, why


def test_a_node_that_is_drained_lends_nothing() -> None:
    assert loan(node("a"), node("b"), closed=["b"]) is None


def test_weights_in_memory_need_no_help() -> None:
    in_memory = [*ON_SSD, copy(DIGEST, Tier.DRAM, size=SIZE)]
    assert loan(node("a", copies=in_memory), node("b")) is None
    assert loan(node("a", copies=()), node("b")) is None
    found = loan(node("a"), node("b", copies=in_memory), node("c"))
    assert found
    assert [one.node_id for one in found.lenders] == ["b", "c"]


def test_a_model_that_does_not_run_layer_by_layer_is_read_alone() -> None:
    nodes = {one.node_id: one for one in (node("a"), node("b"))}
    assert loan_for(nodes["a"], nodes, need(size=SIZE), 100, UNKNOWN) is None


@given(st.lists(st.floats(1.0, 1e5), max_size=6), st.floats(1.0, 1e5))
def test_a_loan_pays_and_leaves_something_to_the_borrower(rates: list[float], own: float) -> None:
    borrower = node("a", own)
    found = loan(borrower, *(node(f"n{n}", rate) for n, rate in enumerate(rates)))
    best = sorted(rates, reverse=True)[:MOST_LENDERS]
    gain = SIZE / own - SIZE / (own + sum(best))
    if found is None:
        assert gain < LEAST_GAIN * 1.001
        return
    assert found.gain >= LEAST_GAIN
    assert found.gain == pytest.approx(gain)
    assert sum(one.share for one in found.lenders) < 1
    assert all(one.share > 0 for one in found.lenders)


def test_an_explanation_names_the_lenders() -> None:
    snapshot = shapes.snapshot(node("a", 2000.0), node("b"))
    decision = place(snapshot, Demand(MODEL))
    assert "layers are computed on b" in explain(decision, lends=True).why
    assert "layers are computed" not in explain(decision).why


@pytest.mark.parametrize(
    ("engine", "architecture", "layered"),
    [
        (EngineConfig(), "LlamaForCausalLM", True),
        (EngineConfig(), "GPT2LMHeadModel", False),
        (EngineConfig(engine="vllm"), "LlamaForCausalLM", False),
        (EngineConfig(max_adapters=1), "LlamaForCausalLM", False),
    ],
)
def test_what_runs_layer_by_layer(engine: EngineConfig, architecture: str, layered: bool) -> None:
    made = shapes.deployment()
    spec: DeploymentSpec = replace(made.spec, engine=engine)
    model = replace(made.model, architecture=architecture)
    assert need_of(replace(made, spec=spec, model=model)).layered == layered
