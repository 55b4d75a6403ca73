"""Generations that move with pages of their KV cache: outputs are what they would have been."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import sllm
from tests.e2e.cluster import Cluster, running
from tests.e2e.generations import moved, same, two_instances

PAGE = 16
PROMPT = 200
TOKENS = 100
"""Generated; it moves amid them."""
AT = 10
OPTIONS = ("--kv-cache-dram", "128MiB")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Cluster]:
    """Two nodes that keep pages, with an instance each of one deployment."""
    directory = tmp_path_factory.mktemp("pages")
    with running(directory, node_options=OPTIONS) as cluster:
        options = {"dtype": "float32", "kv_cache_tokens": 2048}
        with two_instances(cluster, "moving", models / "tiny-llama", "transformers", **options):
            yield cluster


def begin(client: sllm.AsyncClient, number: int) -> sllm.AsyncStream:
    """A greedy generation of a prompt that nobody has sent before."""
    return client.generate(
        "moving",
        prompt_token_ids=[5 + (n * 7 + number) % 200 for n in range(PROMPT)],
        max_tokens=TOKENS,
        temperature=0.0,
        ignore_eos=True,
    )


async def test_one_moves_with_its_pages_and_only_the_rest_is_computed(pair: Cluster) -> None:
    async with sllm.AsyncClient(pair.control.address) as client:
        stream, migration = await moved(client, lambda: begin(client, 1), AT, way="PAGES")
        result = await stream.result()
        same([result], [await begin(client, 1).result()])
    (one,) = migration.requests
    assert one.cache
    assert one.cache.way == "PAGES"
    assert result.migrations[0].cache == one.cache
    assert one.cache.page_bytes
    assert one.cache.page_tokens >= PROMPT // PAGE * PAGE, "so many were found, and not computed"


async def test_what_each_way_takes_is_learned_and_told(pair: Cluster) -> None:
    async with sllm.AsyncClient(pair.control.address) as client:
        await begin(client, 2).result()
        for number in (3, 4, 5):
            stream, migration = await moved(client, lambda: begin(client, number), AT)  # noqa: B023
            result = await stream.result()
            same([result], [await begin(client, number).result()])
            (one,) = migration.requests
            assert one.cache
            assert one.cache.why
            if one.cache.by_pages is not None and one.cache.by_tokens is not None:
                sooner = "PAGES" if one.cache.by_pages < one.cache.by_tokens else "TOKENS"
                assert one.cache.way in (sooner, "TOKENS")
