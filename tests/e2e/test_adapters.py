"""Adapters over a base deployment, beside PEFT's merged models."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

import sllm
from sllm import errors
from tests.adapters import greedy_ids, make_adapter, make_adapters, merged
from tests.e2e.cluster import Cluster
from tests.e2e.engines import ENGINES, SLOW_ON
from tests.e2e.generations import moved
from tests.support import assert_eventually

COUNTS = {ENGINES[0]: 12}
"""Adapters on the engine whose tests take less time; on others a few."""
FEW = 7
AT_ONCE = 5
REQUESTS = 60
MAX_TOKENS = 8
on_the_quick_one = pytest.mark.parametrize("engine", ENGINES[:1], indirect=True)
"""For what an engine has no part in."""
on_the_slow_one = pytest.mark.parametrize("engine", SLOW_ON, indirect=True)
PROMPTS = ["The for statement", "is used to", "A class"]


@dataclass(frozen=True)
class Adapters:
    """Where they lie, and what PEFT says of them."""

    base: Path
    directory: Path

    def path(self, number: int) -> Path:
        return self.directory / f"a{number}"

    def expected(self, number: int | None, prompt: Sequence[int], count: int) -> list[int]:
        return greedy_ids(_merged(self, number), prompt, count)


@lru_cache(COUNTS[ENGINES[0]])
def _merged(adapters: Adapters, number: int | None) -> Any:
    return merged(adapters.base, None if number is None else adapters.path(number))


@pytest.fixture(scope="module")
def adapters(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    directory, base = tmp_path_factory.mktemp("adapters"), models / "tiny-llama"
    found = Adapters(base, directory)
    paths = [found.path(number) for number in range(COUNTS[ENGINES[0]])]
    make_adapters(base, paths[::2], rank=4)
    make_adapters(base, paths[1::2], seed=100, rank=4, targets=["q_proj", "v_proj", "down_proj"])
    return found


@pytest.fixture(scope="module")
def base(cluster: Cluster, adapters: Adapters, engine: str) -> Iterator[str]:
    """A base that lets some of its adapters be there at once."""
    client = cluster.client
    client.deploy(
        "base",
        adapters.base,
        engine=engine,
        dtype="float32",
        max_adapters=AT_ONCE,
        max_adapter_rank=16,
        kv_cache_tokens=4096,
    )
    yield "base"
    for one in client.deployments():
        if one.base == "base":
            client.delete(one.name)
    client.delete("base")
    for node in cluster.nodes:
        assert "adapter.not_unloaded" not in node.log_text(), "an engine has held one for long"


@pytest.fixture(scope="module")
def deployed(cluster: Cluster, adapters: Adapters, base: str, engine: str) -> list[str]:
    async def deploy(count: int) -> list[sllm.Deployment]:
        async with sllm.AsyncClient(cluster.control.address) as client:
            return await asyncio.gather(
                *(
                    client.deploy(f"adapter-{number}", adapters.path(number), base=base)
                    for number in range(count)
                )
            )

    return [one.name for one in asyncio.run(deploy(COUNTS.get(engine, FEW)))]


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[sllm.AsyncClient]:
    async with sllm.AsyncClient(cluster.control.address) as client:
        yield client


OPTIONS: dict[str, Any] = {"max_tokens": MAX_TOKENS, "temperature": 0.0, "ignore_eos": True}


async def test_more_adapters_than_fit_are_served_as_their_merged_models(
    client: sllm.AsyncClient, cluster: Cluster, adapters: Adapters, deployed: list[str]
) -> None:
    """Few of them are asked for often, and most now and then; some requests are for the base."""
    draws = random.Random(3)
    count = len(deployed)
    weights = [1 / (1 + place) for place in range(count)]
    chosen: list[int | None] = [*draws.choices(range(count), weights, k=REQUESTS), None, None]
    asked = [(number, draws.choice(PROMPTS)) for number in chosen]

    def ask(number: int | None, prompt: str) -> Any:
        name = "base" if number is None else deployed[number]
        return client.complete(name, prompt, **OPTIONS)

    results = await asyncio.gather(*(ask(*one) for one in asked))
    found = {one: result.token_ids for one, result in zip(asked, results, strict=True)}
    for one, result in zip(asked, results, strict=True):
        assert result.token_ids == found[one]
    prompt_ids = {text: await client.tokenize("base", text) for text in PROMPTS}
    for (number, prompt), token_ids in found.items():
        expected = adapters.expected(number, prompt_ids[prompt], MAX_TOKENS)
        assert list(token_ids) == expected, (number, prompt)
    (instance,) = await client.instances("base")
    assert 0 < len(instance.adapters) <= AT_ONCE
    receipt = results[0].receipt
    assert (receipt.deployment, receipt.adapter) == ("base", f"adapter-{asked[0][0]}")


@on_the_quick_one
async def test_an_adapter_is_told_of_with_its_base(
    client: sllm.AsyncClient, cluster: Cluster, deployed: list[str]
) -> None:
    name = deployed[0]
    one = await client.deployment(name)
    base = await client.deployment("base")
    assert (one.base, one.engine, one.state) == ("base", base.engine, "AVAILABLE")
    assert one.model.adapter
    assert one.model.adapter.rank == 4
    assert "q_proj" in one.model.adapter.target_modules
    assert one.model.size_bytes < base.model.size_bytes
    details = await client.model(name)
    assert (details.base, details.context_tokens) == ("base", base.model.context_tokens)
    assert await client.tokenize(name, PROMPTS[0]) == await client.tokenize("base", PROMPTS[0])
    assert (await client.explain(name)).action == (await client.explain("base")).action


@on_the_quick_one
async def test_a_base_stays_what_it_is_while_there_are_adapters_over_it(
    client: sllm.AsyncClient, adapters: Adapters, deployed: list[str]
) -> None:
    with pytest.raises(errors.AdaptersLeft, match="adapter-0"):
        await client.delete("base")
    with pytest.raises(errors.AdaptersLeft, match="max_adapters"):
        await client.deploy("base", adapters.base, dtype="float32")
    with pytest.raises(errors.AdaptersLeft, match="rank 2"):
        await client.deploy(
            "base", adapters.base, dtype="float32", max_adapters=4, max_adapter_rank=2
        )
    with pytest.raises(errors.DeploymentExists, match="adapter over base"):
        await client.deploy(deployed[0], adapters.path(0))


async def test_a_deleted_adapter_ends_its_requests_alone(
    client: sllm.AsyncClient, adapters: Adapters, base: str
) -> None:
    await client.deploy("brief", adapters.path(1), base=base)
    stream = client.generate("brief", PROMPTS[0], max_tokens=500, temperature=0.0, ignore_eos=True)
    other = client.generate(base, PROMPTS[0], max_tokens=300, temperature=0.0, ignore_eos=True)
    async for event in stream:
        if isinstance(event, sllm.Tokens):
            break
    await client.delete("brief")
    with pytest.raises(errors.Cancelled):
        await stream.result()
    assert len((await other.result()).token_ids) == 300
    with pytest.raises(errors.DeploymentNotFound):
        await client.complete("brief", PROMPTS[0], max_tokens=1)


@on_the_quick_one
async def test_an_adapter_leaves_when_nobody_has_asked_for_it(
    client: sllm.AsyncClient, adapters: Adapters, base: str
) -> None:
    await client.deploy("fleeting", adapters.path(2), base=base, keep_alive=0.0)
    await client.complete("fleeting", PROMPTS[0], **OPTIONS)

    async def gone() -> bool:
        return all("fleeting" not in one.adapters for one in await client.instances(base))

    await assert_eventually(gone)
    await client.delete("fleeting")


@on_the_slow_one
async def test_a_generation_takes_its_adapter_along(
    client: sllm.AsyncClient, cluster: Cluster, adapters: Adapters, engine: str
) -> None:
    await client.deploy(
        "moving-base",
        adapters.base,
        engine=engine,
        dtype="float32",
        max_adapters=2,
        min_replicas=2,
        max_replicas=2,
        kv_cache_tokens=2048,
    )
    await client.deploy("moving-adapter", adapters.path(3), base="moving-base")
    await asyncio.to_thread(cluster.wait_for_instances, 2, "moving-base")
    options: dict[str, Any] = {"max_tokens": 200, "temperature": 0.0, "ignore_eos": True}
    prompt = await client.tokenize("moving-base", PROMPTS[0])
    expected = adapters.expected(3, prompt, 200)
    stream, migration = await moved(
        client, lambda: client.generate("moving-adapter", PROMPTS[0], **options), 20
    )
    assert list((await stream.result()).token_ids) == expected
    assert migration.requests[0].outcome == "MOVED"
    lost = client.generate("moving-adapter", PROMPTS[0], **options)
    async for event in lost:
        if isinstance(event, sllm.Started):
            instance_id = event.instance_id
        if isinstance(event, sllm.Tokens):
            break
    await asyncio.to_thread(cluster.signal_worker, instance_id, 9)
    assert list((await lost.result()).token_ids) == expected
    await client.delete("moving-adapter")
    await client.delete("moving-base")


@on_the_quick_one
async def test_batches_and_samples_have_their_adapter(
    client: sllm.AsyncClient, adapters: Adapters, deployed: list[str]
) -> None:
    prompt = await client.tokenize("base", PROMPTS[1])
    expected = adapters.expected(5, prompt, MAX_TOKENS)
    several = await client.complete(deployed[5], PROMPTS[1], n=2, **OPTIONS)
    assert [list(one.token_ids) for one in several.choices] == [expected, expected]


@on_the_quick_one
@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        ({"rank": 32}, "rank 32, and its base takes up to 16"),
        ({"targets": ["lm_head"]}, "lm_head"),
        ({"settings": {"use_dora": True}}, "DoRA"),
        ({"settings": {"bias": "lora_only"}}, "biases"),
        ({"settings": {"modules_to_save": ["embed_tokens"]}}, "modules_to_save"),
    ],
    ids=lambda one: str(one)[:20],
)
async def test_what_does_not_fit_is_refused_with_the_numbers(
    client: sllm.AsyncClient,
    adapters: Adapters,
    base: str,
    tmp_path: Path,
    settings: dict[str, Any],
    numbers: str,
) -> None:
    directory = make_adapter(adapters.base, tmp_path / "bad", **settings)
    with pytest.raises(errors.UnsupportedAdapter, match=numbers):
        await client.deploy("bad", directory, base=base)


def _wider(model: Path, directory: Path) -> Path:
    """A model like another, of which a few layers are wider."""
    config = AutoConfig.from_pretrained(model)
    config.intermediate_size *= 2
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


@on_the_quick_one
async def test_adapters_of_others_and_other_things_are_refused(
    client: sllm.AsyncClient, adapters: Adapters, base: str, models: Path, tmp_path: Path
) -> None:
    wider = _wider(adapters.base, tmp_path / "wider")
    other = make_adapter(wider, tmp_path / "other", targets=["up_proj"])
    with pytest.raises(errors.UnsupportedAdapter, match=r"for another base.* instead of"):
        await client.deploy("bad", other, base=base)
    gpt = make_adapter(models / "tiny-gpt2", tmp_path / "gpt", targets=["c_attn"])
    with pytest.raises(errors.UnsupportedAdapter, match=r"c_attn.*does not have.*q_proj"):
        await client.deploy("bad", gpt, base=base)
    with pytest.raises(errors.UnsupportedAdapter, match="is no adapter"):
        await client.deploy("bad", models / "tiny-llama", base=base)
    with pytest.raises(errors.UnsupportedModel, match="is an adapter"):
        await client.deploy("bad", adapters.path(0))
    with pytest.raises(errors.DeploymentNotFound):
        await client.deploy("bad", adapters.path(0), base="nobody")
    with pytest.raises(errors.InvalidArgument, match=r"all else is its base's"):
        await client.deploy("bad", adapters.path(0), base=base, min_replicas=1)
    await client.deploy("plain", models / "tiny-llama", engine=ENGINES[0])
    with pytest.raises(errors.UnsupportedAdapter, match=r"takes no adapters.*max_adapters"):
        await client.deploy("bad", adapters.path(0), base="plain")
    await client.delete("plain")
